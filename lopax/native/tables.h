/* Made by `python -m lopax.native.tables`; do not edit. */

#pragma once
#include <stdint.h>

#define INPUTS 30
#define ELEMENTS 18 /* with a value per element */
#define LINES 6 /* with one per row, or per column */
#define DECAYS 3
#define PARAM 2 /* among the elements */
#define CLIP 0.1f
#define LINE_EPS 1e-08f
#define SIZE_EPS 1e-09

static const int PLACE[ELEMENTS] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13,
    14, 27, 28, 29};
static const int ROW_PLACE[LINES] = {15, 16, 17, 21, 22, 23};
static const int COL_PLACE[LINES] = {18, 19, 20, 24, 25, 26};

#define EACH_CHANNEL(USE) \
  USE(0, grad) USE(1, clipped_grad) USE(2, param) USE(3, momenta0) \
  USE(4, momenta1) USE(5, momenta2) USE(6, second) USE(7, momenta0 * rsqrt) \
  USE(8, momenta1 * rsqrt) USE(9, momenta2 * rsqrt) USE(10, rsqrt) \
  USE(11, grad * factor0) USE(12, grad * factor1) USE(13, grad * factor2) \
  USE(14, grad * rsqrt) USE(15, momenta0 * momenta_factor0) \
  USE(16, momenta1 * momenta_factor1) USE(17, momenta2 * momenta_factor2)

typedef struct Rule {
  int32_t slots[30], outputs, per_matrix, by_size, hold;
  float exp_mult, limit, second_eps, channel_eps, vector_eps;
} Rule;

typedef struct Tensor {
  const float *grad;
  float *param, *momenta, *second, *row, *col, *out;
  const float *w0, *b0, *w1, *b1, *w2, *b2, *decays;
  float *scratch;
  const struct Rule *rule;
  int64_t a, x, b, y, c, row_over_x, vector, n, band, items, first, add, guard,
      unreached;
  float scale, least, most, lr, decay;
} Tensor;

typedef void (*Work)(void *job, int64_t unit);
/* Runs units 0..count-1, each once, in any order and thread. */
typedef void (*Parallel)(void *pool, int64_t count, Work work, void *job);
