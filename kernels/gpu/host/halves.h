// Halves on the host.
#pragma once

#include "fibers.h"

// To the nearest, ties to even.
struct bfloat16_t {
  uint16_t bits;
  bfloat16_t() = default;
  explicit bfloat16_t(float value) {
    const auto wide = bits_as<uint32_t>(value);
    const bool none = (wide & 0x7fffffffu) > 0x7f800000u;
    bits = none ? wide >> 16 | 0x40u : (wide + 0x7fffu + (wide >> 16 & 1u)) >> 16;
  }
  operator float() const { return bits_as<float>(static_cast<uint32_t>(bits) << 16); }
};

struct half {
  uint16_t bits;
  half() = default;
  explicit half(float value) {
    const uint16_t sign = std::signbit(value) ? 0x8000u : 0u;
    const float size = std::fabs(value);
    if (std::isnan(value)) {
      bits = 0x7e00u;
    } else if (size >= 65520.0f) {
      bits = sign | 0x7c00u;
    } else {
      // Steps of the value's binade, of the smallest one for what is smaller still.
      const int power = size < 0x1p-14f ? -14 : std::ilogb(size);
      const auto steps = static_cast<uint32_t>(std::nearbyint(std::ldexp(size, 10 - power)));
      bits = sign | (((power + 14) << 10) + steps);
    }
  }
  operator float() const {
    const int power = bits >> 10 & 31;
    const float size = power == 31 ? (bits & 0x3ffu ? NAN : INFINITY)
                       : power == 0 ? std::ldexp(bits & 0x3ffu, -24)
                                    : std::ldexp(0x400u | (bits & 0x3ffu), power - 25);
    return bits & 0x8000u ? -size : size;
  }
};
