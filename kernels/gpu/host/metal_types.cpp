// The Metal sources as clang sees their types: address spaces are part of them, as in Metal's
// language. Parsed, never run: metal_on_host.h is for that.
typedef unsigned uint;
typedef unsigned short ushort;
typedef unsigned long size_t, ulong;

#define device __attribute__((address_space(1)))
#define constant __attribute__((address_space(2)))
#define threadgroup __attribute__((address_space(3)))
#define thread
// A kernel's own memory of a threadgroup: static, since clang allows no other here.
#define LOCAL static threadgroup
#define INFINITY __builtin_inff()

template <typename T, int N>
using vec = T __attribute__((ext_vector_type(N)));
typedef vec<float, 4> float4;
typedef vec<uint, 4> uint4;
typedef _Float16 half;
typedef __bf16 bfloat16_t;

struct At {
  uint x, y, z;
};
extern const At thread_position_in_threadgroup, threadgroup_position_in_grid;

template <typename To, typename From>
To as_type(From from) {
  return __builtin_bit_cast(To, from);
}
float fma(float, float, float);
float exp(float);
float log(float);
float sin(float);
float cos(float);
float fabs(float);
float fmax(float, float);
float rsqrt(float);
template <typename T>
T min(T, T);
template <typename T>
T max(T, T);
enum class mem_flags { mem_threadgroup };
void threadgroup_barrier(mem_flags);
template <typename T>
T simd_shuffle_xor(T, ushort);
template <typename T>
T simd_shuffle(T, ushort);
template <typename T>
T simd_sum(T);
void simdgroup_barrier(mem_flags);
typedef vec<ulong, 2> ulong2;
struct simdgroup_float8x8 {
  simdgroup_float8x8() = default;
  explicit simdgroup_float8x8(float);
};
void simdgroup_load(thread simdgroup_float8x8&, const device float*, ulong, ulong2 = ulong2(0),
                    bool = false);
void simdgroup_load(thread simdgroup_float8x8&, const threadgroup float*, ulong,
                    ulong2 = ulong2(0), bool = false);
void simdgroup_store(simdgroup_float8x8, device float*, ulong, ulong2 = ulong2(0), bool = false);
void simdgroup_store(simdgroup_float8x8, threadgroup float*, ulong, ulong2 = ulong2(0),
                     bool = false);
void simdgroup_multiply(thread simdgroup_float8x8&, simdgroup_float8x8, simdgroup_float8x8);
void simdgroup_multiply_accumulate(thread simdgroup_float8x8&, simdgroup_float8x8,
                                   simdgroup_float8x8, simdgroup_float8x8);
typedef int atomic_int;
enum memory_order { memory_order_relaxed };
int atomic_fetch_add_explicit(threadgroup atomic_int*, int, memory_order);
int atomic_load_explicit(const threadgroup atomic_int*, memory_order);
void atomic_store_explicit(threadgroup atomic_int*, int, memory_order);

#include "../scalar.metal"

#define SET_HK 2
#define SET_HV 4
#define SET_T 5
#define SET_CHUNKED 0
namespace gdn_verify {
#include "entry/gdn_verify.h"
}
#undef BODY
#undef SET_CHUNKED
#define SET_CHUNKED 1
namespace gdn_chunked {
#include "entry/gdn_verify.h"
}
#define SET_NQ 6
#define SET_NKV 2
#define SET_P 16
#define SET_E 8
#define SET_ROTARY 64
namespace ragged_attention {
#include "entry/ragged_attention.h"
}
#define SET_K 64
namespace largest {
#include "entry/top.h"
}
namespace drawing {
#include "entry/draw.h"
}
#undef BODY
namespace judging {
#include "entry/accept.h"
}
#define SET_BITS 8
#define SET_SUBS 2
#define SET_PARTS 8
#define SET_ROWS 8
#define SET_END 0
#define VARIANT plain
#include "entry/verify_qmm.h"
#define SET_ROWS 1
#define SET_END 1
#define VARIANT added
#include "entry/verify_qmm.h"
#define SET_ROWS 4
#define SET_END 2
#define VARIANT gated
#include "entry/verify_qmm.h"
#include "entry/rows.h"
