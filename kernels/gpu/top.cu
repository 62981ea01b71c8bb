// top: of every row of logits the SET_K largest, ascending by id; at a tie the lowest ids. What is no
// number, whatever its sign, counts as the largest of all: a row that has one shows it.
//
// logits [R, V], halves; out i32 [R, 1 + 2·K]: how many were found, ids, values as bits of floats.
// −1 where more than ROOM logits are as large as the bar, which a row of equal numbers can do.
//
// A block is a row. The K-th largest of the threads' own maxima is a bar that at least K logits
// reach; those that do are ranked by counting.

constexpr int K = SET_K, THREADS = 1024, ROOM = 2048;

// A logit as an integer of the same order.
__device__ __forceinline__ unsigned key_of(unsigned half) {
  if ((half & 0x7fffu) > Scalar::INFINITE) return 0xffffu;
  return half & 0x8000u ? 0xffffu & ~half : half | 0x8000u;
}

// Calls f with every index of a row and its logit, as an integer of the same order.
template <typename F>
__device__ __forceinline__ void each_key(const u16* row, int v, const F& f) {
  for (int i = threadIdx.x * 8; i < v; i += THREADS * 8) {
    const uint4 bits = *reinterpret_cast<const uint4*>(row + i);
    const unsigned words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const unsigned half = words[j / 2] >> (16 * (j % 2)) & 0xffffu;
      f(i + j, key_of(half));
    }
  }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    SET_NAME(const u16* logits, int* out, int v) {
  __shared__ unsigned keys[ROOM], ids[ROOM];
  __shared__ unsigned best_keys[K], best_ids[K];
  __shared__ int found;
  const u16* row = logits + static_cast<size_t>(blockIdx.x) * v;
  int* to = out + blockIdx.x * (1 + 2 * K);
  unsigned most = 0;
  each_key(row, v, [&](int, unsigned here) { most = max(most, here); });
  unsigned bar = 0;
  for (unsigned bit = 0x8000u; bit > 0; bit /= 2) {
    if (__syncthreads_count(most >= (bar | bit)) >= K) bar |= bit;
  }
  if (threadIdx.x == 0) found = 0;
  __syncthreads();
  each_key(row, v, [&](int id, unsigned here) {
    if (here < bar) return;
    const int at = atomicAdd(&found, 1);
    if (at < ROOM) keys[at] = here, ids[at] = id;
  });
  __syncthreads();
  const int n = found;
  if (n > ROOM) {
    if (threadIdx.x == 0) to[0] = -1;
    return;
  }
  for (int i = threadIdx.x; i < n; i += THREADS) {
    int rank = 0;
    for (int j = 0; j < n; ++j) {
      rank += keys[j] > keys[i] || (keys[j] == keys[i] && ids[j] < ids[i]);
    }
    if (rank < K) best_keys[rank] = keys[i], best_ids[rank] = ids[i];
  }
  __syncthreads();
  if (threadIdx.x < K) {
    const unsigned id = best_ids[threadIdx.x], here = best_keys[threadIdx.x];
    int place = 0;
    for (int j = 0; j < K; ++j) place += best_ids[j] < id;
    const u16 bits = static_cast<u16>(here & 0x8000u ? here & 0x7fffu : ~here);
    to[1 + place] = id;
    to[1 + K + place] = __float_as_uint(widen(bits));
  }
  if (threadIdx.x == 0) to[0] = K;
}
