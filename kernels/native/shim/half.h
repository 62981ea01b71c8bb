// What mlx-c declares only on Arm: its float16 and bfloat16 accessors, which mlx-rs names.
// bindgen reads this after mlx-c's headers on machines that are not Arm; half.cpp defines them.
#pragma once

#include "mlx/c/array.h"

#ifndef HAS_FLOAT16
typedef _Float16 float16_t;
int mlx_array_item_float16(float16_t *res, const mlx_array arr);
const float16_t *mlx_array_data_float16(const mlx_array arr);
#endif

#ifndef HAS_BFLOAT16
typedef unsigned short bfloat16_t;
int mlx_array_item_bfloat16(bfloat16_t *res, const mlx_array arr);
const bfloat16_t *mlx_array_data_bfloat16(const mlx_array arr);
#endif
