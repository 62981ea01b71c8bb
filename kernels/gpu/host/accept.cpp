// Draws and acceptance of cases that stdin gives and the core judges: see tests/accept.rs. All are
// ints: the sequences S, rows of the trunk and of the head at four depths, the table of sequences;
// then for the trunk and for each depth what top found, and the draws' settings. Out come the drafts
// of every depth, and the verdicts.
#define SET_TYPE Brain
#define SET_K 64
#ifdef METAL
#include "metal_on_host.h"
#include "../scalar.metal"
namespace drawing {
#include "entry/draw.h"
}
#undef BODY
namespace judging {
#include "entry/accept.h"
}
#else
#include "cuda_on_host.h"
namespace drawing {
#define SET_NAME draw
#include "../draw.cu"
#undef SET_NAME
}
namespace judging {
#define SET_NAME accept
#include "../accept.cu"
}
#endif

using Ints = std::vector<int>;
constexpr int FOUND = 1 + 2 * SET_K;

static Ints read(size_t count) {
  Ints ints(count);
  if (std::fread(ints.data(), sizeof(int), count, stdin) != count) std::abort();
  return ints;
}
static void write(const int* ints, size_t count) {
  if (std::fwrite(ints, sizeof(int), count, stdout) != count) std::abort();
}

struct Draws {
  int rows;
  Ints found, settings, drawn;

  explicit Draws(int rows)
      : rows(rows), found(read(rows * FOUND)), settings(read(rows * 8)), drawn(rows * 65, -7) {
    if (rows == 0) return;
    launch(rows, 64, [&] {
#ifdef METAL
      drawing::draw(found.data(), settings.data(), &this->rows, drawn.data());
#else
      drawing::draw(found.data(), settings.data(), drawn.data(), this->rows);
#endif
    });
  }
};

int main() {
  const Ints sizes = read(6);
  const int count = sizes[0];
  const Ints table = read(count * 12);
  std::vector<Draws> all;
  for (int i = 1; i < 6; ++i) all.emplace_back(sizes[i]);
  Ints out(count * 8, -7);
  const auto &p = all[0], &a = all[1], &b = all[2], &c = all[3], &d = all[4];
  launch(count, 64, [&] {
#ifdef METAL
    judging::accept(p.found.data(), p.drawn.data(), p.settings.data(), table.data(),
                    a.found.data(), a.drawn.data(), b.found.data(), b.drawn.data(),
                    c.found.data(), c.drawn.data(), d.found.data(), d.drawn.data(), &sizes[1],
                    out.data());
#else
    judging::accept(p.found.data(), p.drawn.data(), p.settings.data(), table.data(),
                    a.found.data(), a.drawn.data(), b.found.data(), b.drawn.data(),
                    c.found.data(), c.drawn.data(), d.found.data(), d.drawn.data(), out.data(),
                    p.rows, a.rows, b.rows, c.rows, d.rows);
#endif
  });
  for (int i = 1; i < 5; ++i) write(all[i].drawn.data(), all[i].rows);
  write(out.data(), out.size());
}
