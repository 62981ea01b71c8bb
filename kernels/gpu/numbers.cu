// numbers: what the host says, as an array. Arguments travel with the launch, while an array that
// the host fills lies in memory that both sides page: its first reader would wait for the page.
// SET_COUNT is 32 or 256.

#define FOUR(p) int p##0, int p##1, int p##2, int p##3
#define LIST(p) FOUR(p##a), FOUR(p##b), FOUR(p##c), FOUR(p##d), FOUR(p##e), FOUR(p##f), \
    FOUR(p##g), FOUR(p##h)
#define SAY4(p) p##0, p##1, p##2, p##3
#define SAY(p) SAY4(p##a), SAY4(p##b), SAY4(p##c), SAY4(p##d), SAY4(p##e), SAY4(p##f), \
    SAY4(p##g), SAY4(p##h)
#if SET_COUNT == 32
#define TAKEN LIST(a)
#define SAID SAY(a)
#else
#define TAKEN LIST(a), LIST(b), LIST(c), LIST(d), LIST(e), LIST(f), LIST(g), LIST(h)
#define SAID SAY(a), SAY(b), SAY(c), SAY(d), SAY(e), SAY(f), SAY(g), SAY(h)
#endif

extern "C" __global__ void __launch_bounds__(32)
    SET_NAME(const void*, int* out, TAKEN) {
  const int said[] = {SAID};
#pragma unroll
  for (int i = 0; i < SET_COUNT; ++i) {
    if (threadIdx.x == i % 32) out[i] = said[i];
  }
}
