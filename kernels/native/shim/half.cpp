// Defines what half.h declares. A half travels as its two bytes: the Rust side names no C++ type.
#include <cstdint>
#include <cstring>
#include <exception>

#include "mlx/c/error.h"
#include "mlx/c/private/array.h"

namespace {

template <typename Half>
int item(void *res, const mlx_array arr) {
  static_assert(sizeof(Half) == sizeof(uint16_t));
  try {
    const Half value = mlx_array_get_(arr).item<Half>();
    std::memcpy(res, &value, sizeof(Half));
  } catch (std::exception &e) {
    mlx_error(e.what());
    return 1;
  }
  return 0;
}

template <typename Half>
const void *data(const mlx_array arr) {
  try {
    return mlx_array_get_(arr).data<Half>();
  } catch (std::exception &e) {
    mlx_error(e.what());
    return nullptr;
  }
}

} // namespace

#ifndef HAS_FLOAT16
extern "C" int mlx_array_item_float16(void *res, const mlx_array arr) {
  return item<mlx::core::float16_t>(res, arr);
}

extern "C" const void *mlx_array_data_float16(const mlx_array arr) {
  return data<mlx::core::float16_t>(arr);
}
#endif

#ifndef HAS_BFLOAT16
extern "C" int mlx_array_item_bfloat16(void *res, const mlx_array arr) {
  return item<mlx::core::bfloat16_t>(res, arr);
}

extern "C" const void *mlx_array_data_bfloat16(const mlx_array arr) {
  return data<mlx::core::bfloat16_t>(arr);
}
#endif
