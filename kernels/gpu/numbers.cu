// numbers: what the host says, as an array. Arguments travel with the launch, while an array that
// the host fills lies in memory that both sides page: its first reader would wait for the page.
//
// before i32 [held]: what earlier calls said, not read if that is nothing; out i32 [held + SET_COUNT]:
// that, and what this one says. SET_COUNT is 32, 256 or 960: with 960 the arguments take 3 864 of the
// 4 096 bytes that any driver lets them have.

#define FOUR(p) int p##0, int p##1, int p##2, int p##3
#define LIST(p) FOUR(p##a), FOUR(p##b), FOUR(p##c), FOUR(p##d), FOUR(p##e), FOUR(p##f), \
    FOUR(p##g), FOUR(p##h)
#define MANY(p) LIST(p##a), LIST(p##b), LIST(p##c), LIST(p##d), LIST(p##e), LIST(p##f), LIST(p##g)
#define SAY4(p) p##0, p##1, p##2, p##3
#define SAY(p) SAY4(p##a), SAY4(p##b), SAY4(p##c), SAY4(p##d), SAY4(p##e), SAY4(p##f), \
    SAY4(p##g), SAY4(p##h)
#define SAY_MANY(p) SAY(p##a), SAY(p##b), SAY(p##c), SAY(p##d), SAY(p##e), SAY(p##f), SAY(p##g)
#if SET_COUNT == 32
#define TAKEN LIST(a)
#define SAID SAY(a)
#elif SET_COUNT == 256
#define TAKEN MANY(a), LIST(b)
#define SAID SAY_MANY(a), SAY(b)
#else
#define TAKEN MANY(a), MANY(b), MANY(c), MANY(d), LIST(e), LIST(f)
#define SAID SAY_MANY(a), SAY_MANY(b), SAY_MANY(c), SAY_MANY(d), SAY(e), SAY(f)
#endif

extern "C" __global__ void __launch_bounds__(256)
    SET_NAME(const int* before, int* out, int held, TAKEN) {
  for (int i = threadIdx.x; i < held; i += 256) out[i] = before[i];
  const int said[] = {SAID};
  static_assert(sizeof said == SET_COUNT * sizeof(int), "as many as are taken");
#pragma unroll
  for (int i = 0; i < SET_COUNT; ++i) {
    if (threadIdx.x == i % 256) out[held + i] = said[i];
  }
}
