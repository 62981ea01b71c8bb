// accept: how many of its drafts a sequence keeps, and the token after them. The contract and the
// method are those of accept.cu.
//
// Inputs: found, drawn, settings, sequences, found_0, drawn_0 to found_3, drawn_3, scalars (rows of
// the trunk and of the head at each depth). Output: out. A threadgroup is a sequence, a thread a
// candidate.

#ifndef BODY

enum { K = SET_K, WIDTH = 1 + 2 * K, SETTINGS = 8, SEQUENCE = 12, VERDICT = 8, DRAFTS = 4 };

// Of a candidate: its logit is no number or infinite, its weight no number or infinite, as bits.
inline bool is_bad(int logit, int weight) {
  const bool never = uint(logit) == 0xff800000u;
  return ((logit & 0x7f800000) == 0x7f800000 && !never) || (weight & 0x7f800000) == 0x7f800000;
}

#else

LOCAL float p[K];
LOCAL float q[K];
LOCAL float rest[K];
LOCAL int q_ids[K];
LOCAL int stands;
LOCAL uint votes[K / 32];
const int i = thread_position_in_threadgroup.x;
const device int* sequence = sequences + threadgroup_position_in_grid.x * SEQUENCE;
const int first = sequence[0], depth = sequence[1], forced = sequence[2];
device int* verdict = out + threadgroup_position_in_grid.x * VERDICT;
for (int d = 0; d < DRAFTS; ++d) {
  const device int* head = d == 0 ? drawn_0 : d == 1 ? drawn_1 : d == 2 ? drawn_2 : drawn_3;
  const int place = sequence[4 + d];
  if (i == d) verdict[3 + d] = d >= depth ? 0 : place < 0 ? -1 - place : head[place];
}
if (i == DRAFTS) verdict[7] = 0;

for (int d = forced < 0 ? 0 : min(forced, depth);; ++d) {
  const int row = first + d;
  const device int* top = found + row * WIDTH;
  const int weight = drawn[scalars[0] + row * K + i];
  bool bad = top[0] != K || is_bad(top[1 + K + i], weight);
  // A row with nothing to judge: all drafts stand.
  const bool last = d == depth || forced >= 0;
  const int place = last ? -1 : sequence[4 + d];
  const device int* head = d == 0 ? drawn_0 : d == 1 ? drawn_1 : d == 2 ? drawn_2 : drawn_3;
  const int draft = last ? 0 : place < 0 ? -1 - place : head[place];
  q_ids[i] = i == 0 ? draft : -1;
  q[i] = i == 0 ? 1.0f : 0.0f;
  if (place >= 0) {
    const device int* of_head = d == 0 ? found_0 : d == 1 ? found_1 : d == 2 ? found_2 : found_3;
    const device int* candidates = of_head + place * WIDTH;
    const int theirs = head[scalars[1 + d] + place * K + i];
    bad = bad || candidates[0] != K || is_bad(candidates[1 + K + i], theirs);
    q_ids[i] = candidates[1 + i];
    q[i] = as_type<float>(theirs);
  }
  p[i] = as_type<float>(weight);
  if (i == 0) stands = 0;
  const uint here_bad = simd_sum(uint(bad));
  if (i % 32 == 0) votes[i / 32] = here_bad;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  uint all_bad = 0;
  for (int j = 0; j < K / 32; ++j) all_bad += votes[j];
  if (all_bad > 0 || last) {
    if (i == 0) {
      verdict[0] = all_bad > 0 ? 1 : 0;
      verdict[1] = all_bad > 0 ? 0 : d;
      verdict[2] = all_bad > 0 ? 0 : drawn[row];
    }
    return;
  }

  float p_sum = 0.0f, q_sum = 0.0f, theirs = 0.0f;
  const int id = top[1 + i];
  for (int j = 0; j < K; ++j) {
    p_sum += p[j];
    q_sum += q[j];
    if (q_ids[j] == id) theirs = q[j];
  }
  const float here = p[i] / p_sum, there = theirs / q_sum;
  rest[i] = here > there ? here - there : 0.0f;
  const device int* set = settings + row * SETTINGS;
  if (set[4] != 0) {
    // Both were drawn with one noise.
    if (i == 0) stands = drawn[row] == draft ? 1 : 0;
  } else if (id == draft && as_type<float>(sequence[8 + d]) * there < here) {
    stands = 1;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (stands == 0) {
    if (i > 0) return;
    int next = drawn[row];
    if (set[4] == 0) {
      float sum = 0.0f;
      for (int j = 0; j < K; ++j) sum += rest[j];
      float left = as_type<float>(set[5]) * (sum > 0.0f ? sum : p_sum);
      int chosen = 0;
      for (int j = 0; j < K; ++j) {
        const float weight = sum > 0.0f ? rest[j] : p[j];
        if (weight == 0.0f) continue;
        chosen = j;
        if (left < weight) break;
        left -= weight;
      }
      next = top[1 + chosen];
    }
    verdict[0] = 0;
    verdict[1] = d;
    verdict[2] = next;
    return;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
}

#endif
