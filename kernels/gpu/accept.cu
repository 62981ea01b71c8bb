// accept: how many of its drafts a sequence keeps, and the token after them: the law of
// src/core/accept.rs, over what top.cu and draw.cu left of the trunk's rows (p) and the head's (q).
//
// found, drawn: of the trunk's rows, [R, 1 + 2·K] and [R + R·K]; settings [≥ R, 8] those of the
// draws from them. found_d, drawn_d: of the head's rows at depth d. sequences i32 [S, 12]: the first
// of its rows of the trunk (depth + 1), its depth, how many drafts stand whatever they are (−1 for
// what the law says), 0, for each draft its row of the head (−1 − token where it is certain), and
// for each the number u that decides about it. out i32 [S, 8]: 0, how many stand, the token after
// them, the drafts; or 1 in place of the first where the host has to look: where top found nothing,
// or candidates have no weight that is a number, in a row that matters. A logit of minus infinity has
// the weight 0: its token never comes.
//
// Random numbers are those of the core, to 24 bits; so draws are its own, but where a number falls
// as near to an edge as sums in fp32 are from sums in double precision.
//
// A block is a sequence, a thread a candidate.

constexpr int K = SET_K, WIDTH = 1 + 2 * K, SETTINGS = 8, SEQUENCE = 12, VERDICT = 8, DRAFTS = 4;

// Of a candidate: its logit is no number or infinite, its weight no number or infinite, as bits.
__device__ __forceinline__ bool is_bad(int logit, int weight) {
  const bool never = static_cast<unsigned>(logit) == 0xff800000u;
  return ((logit & 0x7f800000) == 0x7f800000 && !never) || (weight & 0x7f800000) == 0x7f800000;
}

extern "C" __global__ void __launch_bounds__(K)
    SET_NAME(const int* found, const int* drawn, const int* settings, const int* sequences,
             const int* found_0, const int* drawn_0, const int* found_1, const int* drawn_1,
             const int* found_2, const int* drawn_2, const int* found_3, const int* drawn_3,
             int* out, int rows, int rows_0, int rows_1, int rows_2, int rows_3) {
  __shared__ float p[K], q[K], rest[K];
  __shared__ int q_ids[K];
  __shared__ bool stands;
  const int i = threadIdx.x;
  const int* sequence = sequences + blockIdx.x * SEQUENCE;
  const int first = sequence[0], depth = sequence[1], forced = sequence[2];
  int* verdict = out + blockIdx.x * VERDICT;
  auto head = [&](int d) {
    return d == 0 ? drawn_0 : d == 1 ? drawn_1 : d == 2 ? drawn_2 : drawn_3;
  };
  auto draft_at = [&](int d) {
    const int place = sequence[4 + d];
    return place < 0 ? -1 - place : head(d)[place];
  };
  if (i < DRAFTS) verdict[3 + i] = i < depth ? draft_at(i) : 0;
  if (i == DRAFTS) verdict[7] = 0;
  auto decide = [&](bool known, int accepted, int next) {
    if (i > 0) return;
    verdict[0] = !known, verdict[1] = accepted, verdict[2] = next;
  };

  for (int d = forced < 0 ? 0 : min(forced, depth);; ++d) {
    const int row = first + d;
    const int* top = found + row * WIDTH;
    const int weight = drawn[rows + row * K + i];
    bool bad = top[0] != K || is_bad(top[1 + K + i], weight);
    // A row with nothing to judge: all drafts stand.
    const bool last = d == depth || forced >= 0;
    const int draft = last ? 0 : draft_at(d), place = last ? -1 : sequence[4 + d];
    q_ids[i] = i == 0 ? draft : -1, q[i] = i == 0;
    if (place >= 0) {
      const int* of_head = d == 0 ? found_0 : d == 1 ? found_1 : d == 2 ? found_2 : found_3;
      const int count = d == 0 ? rows_0 : d == 1 ? rows_1 : d == 2 ? rows_2 : rows_3;
      const int* candidates = of_head + place * WIDTH;
      const int theirs = head(d)[count + place * K + i];
      bad |= candidates[0] != K || is_bad(candidates[1 + K + i], theirs);
      q_ids[i] = candidates[1 + i], q[i] = __int_as_float(theirs);
    }
    p[i] = __int_as_float(weight);
    if (i == 0) stands = false;
    if (__syncthreads_count(bad) > 0) return decide(false, 0, 0);
    if (last) return decide(true, d, drawn[row]);

    float p_sum = 0.0f, q_sum = 0.0f, theirs = 0.0f;
    const int id = top[1 + i];
    for (int j = 0; j < K; ++j) {
      p_sum += p[j], q_sum += q[j];
      if (q_ids[j] == id) theirs = q[j];
    }
    const float here = p[i] / p_sum, there = theirs / q_sum;
    rest[i] = max(here - there, 0.0f);
    const int* set = settings + row * SETTINGS;
    if (set[4] != 0) {
      // Both were drawn with one noise.
      if (i == 0) stands = drawn[row] == draft;
    } else if (id == draft && __int_as_float(sequence[8 + d]) * there < here) {
      stands = true;
    }
    __syncthreads();
    if (!stands) {
      if (i > 0) return;
      if (set[4] != 0) return decide(true, d, drawn[row]);
      float sum = 0.0f;
      for (int j = 0; j < K; ++j) sum += rest[j];
      const float* weights = sum > 0.0f ? rest : p;
      float left = __int_as_float(set[5]) * (sum > 0.0f ? sum : p_sum);
      int next = 0;
      for (int j = 0; j < K; ++j) {
        if (weights[j] == 0.0f) continue;
        next = j;
        if (left < weights[j]) break;
        left -= weights[j];
      }
      return decide(true, d, top[1 + next]);
    }
    __syncthreads();
  }
}
