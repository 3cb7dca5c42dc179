/* The per-element rules of Celo, VeLO and Adafac-MLP for contiguous float32 tensors,
   on CPU threads.

   Compiled on first use by fused_cpu.py, which also lays out `Tensor` and `Rule`. The
   formulas are those of elements.py; this file only orders the work for the cache:

   celo_begin   sums of squared gradients by row and by column; is all finite?
   celo_finish  row and column statistics, then two passes over the elements: one
                updates the accumulators and sums the channels' squares, the other runs
                the MLP and writes the parameters.

   A tensor is [A, X, B, Y, C], X and Y its factored axes. `U` arrays lack X, `W` arrays
   lack Y. Work is cut into bands of X whose size does not depend on the number of
   threads, and partial sums are added in band order: results are bitwise the same
   however many threads there are. */

#include "celo_cpu.h"
#include "celo_cpu_view.h"

int64_t scratch_floats(const Tensor *t) {
  Tensor at_zero = *t;
  float origin;
  at_zero.scratch = &origin;
  Parts p = parts_of(&at_zero);
  int64_t last = t->vector ? 0 : t->items * t->b * t->y * t->c;
  return (p.partial_u - &origin) + last;
}

/* ---- first pass: is the gradient finite, and its factored sums ---- */

/* Adds the squares of `g` [count] to `u` and to `w`; 1 if one is not finite. */
static inline int32_t add_squares(const float *g, int64_t count, float limit, float *u,
                                  float *w) {
  int32_t bad = 0;
#pragma omp simd reduction(| : bad)
  for (int64_t i = 0; i < count; i++) {
    float v = g[i];
    bad |= not_finite(v);
    v = clip(v, limit);
    u[i] += v * v;
    w[i] += v * v;
  }
  return bad;
}

/* A slice [Y, C]: its squares are added to `u` [Y, C], their sums over Y stored in
   `w` [C]. Sums are kept for `width` neighbours, a multiple of C, so that the loops are
   long enough for vector instructions. */
static int32_t sum_slice(const Tensor *t, const float *g, float *u, float *w) {
  float sums[BLOCK];
  int64_t length = t->y * t->c, width = BLOCK / 4 / t->c * t->c;
  int32_t bad = 0;
  if (t->c == 1) width = BLOCK / 8;
  if (width < t->c) { /* C is long itself */
    memset(w, 0, sizeof(float) * (size_t)t->c);
    for (int64_t i = 0; i < length; i += t->c)
      bad |= add_squares(g + i, t->c, t->limit, u + i, w);
    return bad;
  }
  memset(sums, 0, sizeof sums);
  for (int64_t i = 0; i < length; i += width) {
    int64_t count = length - i < width ? length - i : width;
    bad |= add_squares(g + i, count, t->limit, u + i, sums);
  }
  for (int64_t c = 0; c < t->c; c++) {
    double total = 0.0;
    for (int64_t i = c; i < width; i += t->c) total += sums[i];
    w[c] = (float)total;
  }
  return bad;
}

static void sum_band(Job *job, Tensor *t, int64_t item) {
  Parts p = parts_of(t);
  int64_t a, x0, x1, length = t->y * t->c;
  band_range(t, item, &a, &x0, &x1);
  int32_t bad = 0;
  if (t->vector) {
    for (int64_t i = x0; i < x1; i++) {
      float g = t->grad[i];
      bad |= not_finite(g);
      g = clip(g, t->limit);
      p.sum_w[i] = g * g;
    }
  } else {
    float *partial = p.partial_u + item * t->b * length;
    memset(partial, 0, sizeof(float) * (size_t)(t->b * length));
    for (int64_t x = x0; x < x1; x++)
      for (int64_t b = 0; b < t->b; b++) {
        int64_t slice = (a * t->x + x) * t->b + b;
        bad |= sum_slice(t, t->grad + slice * length, partial + b * length,
                         p.sum_w + slice * t->c);
      }
  }
  if (bad) atomic_store(&job->bad, 1);
}

static void join_bands(Job *job, Tensor *t, int64_t item) {
  (void)job, (void)item;
  if (t->vector) return;
  Parts p = parts_of(t);
  int64_t size = t->b * t->y * t->c, bands = t->items / t->a;
  for (int64_t a = 0; a < t->a; a++) {
    float *u = p.sum_u + a * size;
    memcpy(u, p.partial_u + a * bands * size, sizeof(float) * (size_t)size);
    for (int64_t k = 1; k < bands; k++) {
      const float *part = p.partial_u + (a * bands + k) * size;
      for (int64_t i = 0; i < size; i++) u[i] += part[i];
    }
  }
}

/* ---- row and column statistics, once per tensor ---- */

/* Moments [3][n] move towards sum / length; `channels` are the moments and their
   inverse roots, which enter the first layer here. */
static void vector_channels(const Rule *r, float *moments, const float *sum, int64_t n,
                            float length, const float w0[6][HIDDEN], float *hidden,
                            int first) {
  float inverse = 1.0f / length;
  double squares[6] = {0};
  for (int k = 0; k < 3; k++) {
    float *m = moments + k * n, rate = r->factored[k];
    for (int64_t start = 0; start < n; start += BLOCK) {
      int64_t end = start + BLOCK < n ? start + BLOCK : n;
      float plain = 0.0f, root = 0.0f;
#pragma omp simd reduction(+ : plain, root)
      for (int64_t i = start; i < end; i++) {
        m[i] += rate * (sum[i] * inverse + 1e-30f - m[i]);
        plain += m[i] * m[i];
        root += 1.0f / (m[i] + 1e-8f);
      }
      squares[k] += plain;
      squares[3 + k] += root;
    }
  }
  for (int j = 0; j < HIDDEN; j++) {
    float *h = hidden + j * n;
    for (int64_t i = 0; i < n; i++) h[i] = first ? r->b0[j] : 0.0f;
    for (int k = 0; k < 3; k++) {
      const float *m = moments + k * n;
      float wm = w0[k][j] * rsqrt(1e-5f + (float)(squares[k] / (double)n));
      float wr = w0[3 + k][j] * rsqrt(1e-5f + (float)(squares[3 + k] / (double)n));
      for (int64_t i = 0; i < n; i++) h[i] += wm * m[i] + wr * rsqrt(m[i] + 1e-8f);
    }
  }
}

static void scales(const Tensor *t, const Parts *p) {
  if (t->vector) {
    /* A vector's momenta and its gradient are divided by the root moment with another
       epsilon; scale_u is what turns the second factor into the first. */
    for (int64_t i = 0; i < 3 * p->nw; i++) {
      p->scale_w[i] = safe_rsqrt(t->row[i] + 1e-9f);
      p->scale_u[i] = rsqrt(t->row[i] + t->rule->vector_eps) / p->scale_w[i];
    }
    return;
  }
  /* The row moment as [P, Q, R], Q the axis d1. */
  int64_t P = t->row_over_x ? t->a * t->b : t->a;
  int64_t Q = t->row_over_x ? t->y : t->x;
  int64_t R = t->row_over_x ? t->c : t->b * t->c;
  int64_t cols = t->row_over_x ? p->nw : p->nu;
  float *row_scale = t->row_over_x ? p->scale_u : p->scale_w;
  float *col_scale = t->row_over_x ? p->scale_w : p->scale_u;
  for (int64_t kp = 0; kp < 3 * P; kp++)
    for (int64_t r = 0; r < R; r++) {
      const float *row = t->row + kp * Q * R + r;
      float *scale = row_scale + kp * Q * R + r;
      double total = 0.0;
      for (int64_t q = 0; q < Q; q++) total += row[q * R];
      float mean = (float)(total / (double)Q) + 1e-9f;
      for (int64_t q = 0; q < Q; q++) scale[q * R] = safe_rsqrt(row[q * R] / mean);
    }
  for (int64_t i = 0; i < 3 * cols; i++) col_scale[i] = safe_rsqrt(t->col[i]);
}

static void factor(Job *job, Tensor *t, int64_t item) {
  (void)job, (void)item;
  const Rule *r = t->rule;
  Parts p = parts_of(t);
  if (t->vector) { /* row and column channels are the same array */
    vector_channels(r, t->row, p.sum_w, p.nw, 1.0f, r->vector_w0, p.hidden_w, 1);
  } else if (t->row_over_x) {
    vector_channels(r, t->row, p.sum_u, p.nu, (float)t->x, r->row_w0, p.hidden_u, 1);
    vector_channels(r, t->col, p.sum_w, p.nw, (float)t->y, r->col_w0, p.hidden_w, 0);
  } else {
    vector_channels(r, t->row, p.sum_w, p.nw, (float)t->y, r->row_w0, p.hidden_w, 1);
    vector_channels(r, t->col, p.sum_u, p.nu, (float)t->x, r->col_w0, p.hidden_u, 0);
  }
  scales(t, &p);
}

/* ---- passes over the elements, a block at a time ---- */

/* The 18 channels of element i, in order; USE(channel, value) for each. */
#define EACH_CHANNEL(USE)                                                      \
  float g = clip(grad[i], limit), q = rsqrt(s[i] + 1e-6f);                     \
  float w0_ = v.scale_w[0][i], w1_ = v.scale_w[1][i], w2_ = v.scale_w[2][i];   \
  float f0 = v.scale_u[0][i] * w0_, g0 = g * v.grad_u[0][i] * w0_;             \
  float f1 = v.scale_u[1][i] * w1_, g1 = g * v.grad_u[1][i] * w1_;             \
  float f2 = v.scale_u[2][i] * w2_, g2 = g * v.grad_u[2][i] * w2_;             \
  USE(0, g) USE(1, clip(g, 0.1f)) USE(2, param[i])                             \
  USE(3, m0[i]) USE(4, m1[i]) USE(5, m2[i]) USE(6, s[i])                       \
  USE(7, m0[i] * q) USE(8, m1[i] * q) USE(9, m2[i] * q) USE(10, q)             \
  USE(11, g0) USE(12, g1) USE(13, g2) USE(14, g * q)                           \
  USE(15, m0[i] * f0) USE(16, m1[i] * f1) USE(17, m2[i] * f2)

/* For each block of a band: pointers to its elements, and its `View`. */
#define EACH_BLOCK(WITH_HIDDEN)                                                \
  Parts p = parts_of(t);                                                       \
  int64_t a, x0, x1, slice = t->b * t->y * t->c;                               \
  band_range(t, item, &a, &x0, &x1);                                           \
  View v;                                                                      \
  v.slice = -1;                                                                \
  int64_t stop = (a * t->x + x1) * slice;                                      \
  for (int64_t e = (a * t->x + x0) * slice, length; e < stop; e += length) {   \
    length = block_length(t, e, stop);                                         \
    const float limit = t->limit;                                              \
    look(&v, t, &p, e, length, WITH_HIDDEN);                                   \
    const float *restrict grad = t->grad + e, *param = t->param + e;            \
    float *restrict s = t->second + e, *restrict m0 = t->momenta + e;          \
    float *restrict m1 = m0 + t->n, *restrict m2 = m1 + t->n;

static void update_band(Job *job, Tensor *t, int64_t item) {
  const Rule *r = t->rule;
  const float k0 = r->momentum[0], k1 = r->momentum[1], k2 = r->momentum[2];
  const float ks = r->second;
  (void)job;
  double total[CHANNELS] = {0};
  EACH_BLOCK(0)
#pragma omp simd
    for (int64_t i = 0; i < length; i++) {
      float g = clip(grad[i], limit);
      m0[i] += k0 * (g - m0[i]);
      m1[i] += k1 * (g - m1[i]);
      m2[i] += k2 * (g - m2[i]);
      s[i] += ks * (g * g - s[i]);
    }
    float a0 = 0, a1 = 0, a2 = 0, a3 = 0, a4 = 0, a5 = 0, a6 = 0, a7 = 0, a8 = 0;
    float a9 = 0, a10 = 0, a11 = 0, a12 = 0, a13 = 0, a14 = 0, a15 = 0, a16 = 0;
    float a17 = 0;
#define SQUARE(c, value) { float x = value; a##c += x * x; }
#pragma omp simd reduction(+ : a0, a1, a2, a3, a4, a5, a6, a7, a8, a9, a10, a11, a12, \
                               a13, a14, a15, a16, a17)
    for (int64_t i = 0; i < length; i++) {
      EACH_CHANNEL(SQUARE)
    }
    const float sums[CHANNELS] = {a0, a1, a2,  a3,  a4,  a5,  a6,  a7,  a8,
                                  a9, a10, a11, a12, a13, a14, a15, a16, a17};
    for (int c = 0; c < CHANNELS; c++) total[c] += sums[c];
  }
  for (int c = 0; c < CHANNELS; c++)
    p.squares[item * CHANNELS + c] = (float)total[c];
}

static void fold(Job *job, Tensor *t, int64_t item) {
  (void)job, (void)item;
  Parts p = parts_of(t);
  double total[CHANNELS] = {0};
  for (int64_t i = 0; i < t->items; i++)
    for (int c = 0; c < CHANNELS; c++) total[c] += p.squares[i * CHANNELS + c];
  for (int c = 0; c < CHANNELS; c++) {
    float normal = rsqrt(1e-5f + (float)(total[c] / (double)t->n));
    for (int j = 0; j < HIDDEN; j++)
      p.folded[c * HIDDEN + j] = t->rule->w0[c][j] * normal;
  }
  *p.size = t->scale;
  if (t->relative) {
    float size = sqrtf((float)(total[PARAM] / (double)t->n) + 1e-9f);
    *p.size *= fminf(fmaxf(size, t->least), t->most);
  }
}

/* The hidden layers and the outputs of a block; `h` [HIDDEN][BLOCK] is the first
   layer before its rectifier. Short loops: a long one would be bound by latency. */
static void finish_block(const Rule *r, float h[HIDDEN][BLOCK], float size,
                         int64_t length, float *restrict step) {
  float magnitude[BLOCK];
#pragma omp simd
  for (int64_t i = 0; i < length; i++) {
    float o0 = r->b2[0], o1 = r->b2[1], z[HIDDEN];
    for (int j = 0; j < HIDDEN; j++) z[j] = h[j][i] > 0.0f ? h[j][i] : 0.0f;
    for (int j = 0; j < HIDDEN; j++) {
      float y = r->b1[j];
      for (int k = 0; k < HIDDEN; k++) y += r->w1[k][j] * z[k];
      y = y > 0.0f ? y : 0.0f;
      o0 += r->w2[j][0] * y;
      o1 += r->w2[j][1] * y;
    }
    step[i] = o0 * size;
    magnitude[i] = o1;
  }
  for (int64_t i = 0; i < length; i++)
    step[i] *= exponential(r->exp_mult * magnitude[i]);
}

static void apply_band(Job *job, Tensor *t, int64_t item) {
  const Rule r = *t->rule;
  float decay = job->decay * t->decay, lr = t->lr;
  float w0[CHANNELS][HIDDEN], h[HIDDEN][BLOCK], step[BLOCK];
  memcpy(w0, parts_of(t).folded, sizeof w0);
  EACH_BLOCK(1)
#define FEED(c, value)                                                         \
  { float x = value; for (int j = 0; j < HIDDEN; j++) sum[j] += w0[c][j] * x; }
#pragma omp simd
    for (int64_t i = 0; i < length; i++) {
      float sum[HIDDEN];
      for (int j = 0; j < HIDDEN; j++) sum[j] = v.hidden_u[j][i] + v.hidden_w[j][i];
      EACH_CHANNEL(FEED)
      for (int j = 0; j < HIDDEN; j++) h[j][i] = sum[j];
    }
    finish_block(&r, h, *p.size, length, step);
    float *target = t->param + e;
    /* No step where there never was a gradient: there, all accumulators are zero. */
    for (int64_t i = 0; i < length; i++) {
      int reached = (m0[i] != 0.0f) | (m1[i] != 0.0f) | (m2[i] != 0.0f) | (s[i] != 0.0f);
      step[i] = lr * ((reached ? step[i] : 0.0f) - decay * target[i]);
    }
    if (t->update_only) memcpy(target, step, sizeof(float) * (size_t)length);
    else
      for (int64_t i = 0; i < length; i++) target[i] += step[i];
  }
}

/* 1 if a gradient is not finite, else 0; tensor states and parameters are untouched. */
int celo_begin(Tensor *tensors, int64_t count, int threads) {
  Job job = {.tensors = tensors, .count = count};
  run(&job, sum_band, 0, threads);
  run(&job, join_bands, 1, threads);
  return atomic_load(&job.bad);
}

void celo_finish(Tensor *tensors, int64_t count, float decay, int threads) {
  Job job = {.tensors = tensors, .count = count, .decay = decay};
  run(&job, factor, 1, threads);
  run(&job, update_band, 0, threads);
  run(&job, fold, 1, threads);
  run(&job, apply_band, 0, threads);
}
