// top: of every row of logits the SET_K largest, ascending by id; at a tie the lowest ids. The
// contract and the method are those of top.cu.
//
// Inputs: logits, scalars (the vocabulary). Output: out. A threadgroup is a row.

#ifndef BODY

enum { K = SET_K, THREADS = 1024, ROOM = 2048 };

// A logit as an integer of the same order. Infinity has no bit of a mantissa.
inline uint key_of(Scalar logit) {
  const uint bits = as_type<ushort>(logit), infinite = as_type<ushort>(Scalar(INFINITY));
  if ((bits & 0x7fffu) > infinite) return 0xffffu;
  return bits & 0x8000u ? 0xffffu & ~bits : bits | 0x8000u;
}

#else

LOCAL uint keys[ROOM];
LOCAL uint ids[ROOM];
LOCAL uint best_keys[K];
LOCAL uint best_ids[K];
LOCAL uint votes[THREADS / 32];
LOCAL atomic_int found;
const int vocabulary = scalars[0], thread_at = thread_position_in_threadgroup.x;
const device Scalar* row = logits + size_t(threadgroup_position_in_grid.x) * vocabulary;
device int* to = out + threadgroup_position_in_grid.x * (1 + 2 * K);
uint most = 0;
for (int i = thread_at; i < vocabulary; i += THREADS) most = max(most, key_of(row[i]));
uint bar = 0;
for (uint bit = 0x8000u; bit > 0; bit /= 2) {
  const uint here = simd_sum(uint(most >= (bar | bit)));
  if (thread_at % 32 == 0) votes[thread_at / 32] = here;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  uint reached = 0;
  for (int i = 0; i < THREADS / 32; ++i) reached += votes[i];
  if (reached >= uint(K)) bar |= bit;
  threadgroup_barrier(mem_flags::mem_threadgroup);
}
if (thread_at == 0) atomic_store_explicit(&found, 0, memory_order_relaxed);
threadgroup_barrier(mem_flags::mem_threadgroup);
for (int i = thread_at; i < vocabulary; i += THREADS) {
  const uint here = key_of(row[i]);
  if (here < bar) continue;
  const int at = atomic_fetch_add_explicit(&found, 1, memory_order_relaxed);
  if (at < ROOM) {
    keys[at] = here;
    ids[at] = i;
  }
}
threadgroup_barrier(mem_flags::mem_threadgroup);
const int n = atomic_load_explicit(&found, memory_order_relaxed);
if (n > ROOM) {
  if (thread_at == 0) to[0] = -1;
  return;
}
for (int i = thread_at; i < n; i += THREADS) {
  int rank = 0;
  for (int j = 0; j < n; ++j) {
    rank += keys[j] > keys[i] || (keys[j] == keys[i] && ids[j] < ids[i]);
  }
  if (rank < K) {
    best_keys[rank] = keys[i];
    best_ids[rank] = ids[i];
  }
}
threadgroup_barrier(mem_flags::mem_threadgroup);
if (thread_at < K) {
  const uint id = best_ids[thread_at], here = best_keys[thread_at];
  int place = 0;
  for (int j = 0; j < K; ++j) place += best_ids[j] < id;
  const ushort bits = here & 0x8000u ? here & 0x7fffu : ~here;
  to[1 + place] = id;
  to[1 + K + place] = as_type<int>(widen(as_type<Scalar>(bits)));
}
if (thread_at == 0) to[0] = K;

#endif
