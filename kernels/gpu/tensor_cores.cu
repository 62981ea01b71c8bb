// The instructions that verify_qmm.cu is made of: pairs of halves, tensor cores, loads, copies on
// their way to shared memory, barriers of some warps. It includes nothing: halves are bits here,
// and the run-time compiler needs no header. What they do on the host says host/tensor_cores.h.

namespace verify_qmm {

typedef unsigned short u16;

struct Brain {
  // Bits of 128 and 2048, under whose last places nibbles fit, of −128 and −2048, and of 1.
  static constexpr unsigned LOW = 0x43004300u, HIGH = 0x45004500u;
  static constexpr unsigned LESS_LOW = 0xc300c300u, LESS_HIGH = 0xc500c500u, ONES = 0x3f803f80u;
  // a · b + c of pairs, each rounded once.
  static __device__ __forceinline__ unsigned fma2(unsigned a, unsigned b, unsigned c) {
    unsigned d;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
  }
  static __device__ __forceinline__ float low(unsigned pair) {
    return __uint_as_float(pair << 16);
  }
  static __device__ __forceinline__ u16 round(float value) {
    u16 bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
  }
  static __device__ __forceinline__ void mma(float (&d)[4], const unsigned (&a)[4], unsigned b0,
                                             unsigned b1) {
    asm(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
};

struct Half {
  static constexpr unsigned LOW = 0x64006400u, HIGH = 0x74007400u;
  static constexpr unsigned LESS_LOW = 0xe400e400u, LESS_HIGH = 0xf400f400u, ONES = 0x3c003c00u;
  static __device__ __forceinline__ unsigned fma2(unsigned a, unsigned b, unsigned c) {
    unsigned d;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
  }
  static __device__ __forceinline__ float low(unsigned pair) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(static_cast<u16>(pair & 0xffffu)));
    return value;
  }
  static __device__ __forceinline__ u16 round(float value) {
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
  }
  static __device__ __forceinline__ void mma(float (&d)[4], const unsigned (&a)[4], unsigned b0,
                                             unsigned b1) {
    asm(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
};

// Weights pass through once: they are not to push x out of the first cache.
__device__ __forceinline__ uint4 load_once(const uint4* from) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from));
  return v;
}

__device__ __forceinline__ uint4 load_kept(const uint4* from) {
  uint4 v;
  asm("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
      : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
      : "l"(from));
  return v;
}

// A word's nibbles in the places of the mask, and bits of `magic` above them.
__device__ __forceinline__ unsigned nibbles(unsigned word, unsigned magic) {
  unsigned pair;
  asm("lop3.b32 %0, %1, 0x000f000f, %2, 0xea;" : "=r"(pair) : "r"(word), "r"(magic));
  return pair;
}

// Both halves of a pair made its low one, or its high one.
__device__ __forceinline__ unsigned twice_low(unsigned pair) {
  return __byte_perm(pair, 0, 0x1010);
}
__device__ __forceinline__ unsigned twice_high(unsigned pair) {
  return __byte_perm(pair, 0, 0x3232);
}

// silu(gate)·up with every rounding spelled out: it must not depend on how a variant is compiled.
__device__ __forceinline__ float gated(float gate, float up) {
  const float power = __fmul_rn(gate, -1.4426950408889634f);
  float falling;
  asm volatile("ex2.approx.ftz.f32 %0, %1;" : "=f"(falling) : "f"(power));
  return __fmul_rn(__fdiv_rn(gate, __fadd_rn(1.0f, falling)), up);
}

// Shared memory of a block beside what the source declares.
extern __shared__ uint4 room[];

// 16 bytes on their way to `to`, a place of shared memory; they are there once `arrived` says so of
// the copies that were sent off with them.
__device__ __forceinline__ void bring(uint4* to, const uint4* from) {
  asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16;" ::"r"(
                   static_cast<unsigned>(__cvta_generic_to_shared(to))),
               "l"(from)
               : "memory");
}
__device__ __forceinline__ void send_off() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits for all of the thread's copies but those that were sent off in the last LATER times.
template <int LATER>
__device__ __forceinline__ void arrived() {
  asm volatile("cp.async.wait_group %0;" ::"n"(LATER) : "memory");
}

// A barrier of `threads` threads, one of the block's.
__device__ __forceinline__ void meet(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier + 1), "r"(threads) : "memory");
}

}  // namespace verify_qmm
