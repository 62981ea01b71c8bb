// mlx-c calls std::format with plain {} only, and gcc before 13 has no <format>.
// Force-included: where the compiler has the real header, this is the real header.
#pragma once

#ifdef __cplusplus
#if __has_include(<format>)
#include <format>
#else
#include <sstream>
#include <string>
#include <string_view>

namespace std {

template <typename... Args>
string format(string_view pattern, const Args &...args) {
  ostringstream out;
  const auto until_hole = [&] {
    const auto hole = pattern.find("{}");
    out << pattern.substr(0, hole);
    pattern.remove_prefix(hole == string_view::npos ? pattern.size() : hole + 2);
  };
  ((until_hole(), out << args), ...);
  out << pattern;
  return out.str();
}

} // namespace std
#endif
#endif
