/* One step of an element network (lopax/rules/element_net.py) for contiguous float32
   tensors, on CPU threads. Compiled for one width of the network at first use.

   The plain forms in JAX and torch are the reference; this file only orders the work
   for the cache, and builds nothing of size [elements, channels]:

   sums     squared gradients by row and by column; is all finite?
   factor   row and column statistics, and their part of the first layer
   update   the accumulators, and the channels' squares
   fold     the channels' normalisers, into the first layer's weights
   apply    the network

   A tensor is [A, X, B, Y, C], X and Y its factored axes. `U` arrays lack X, `W` arrays
   lack Y; a vector is X alone. Work is cut into bands of X whose size does not depend on
   the number of threads, and partial sums are added in band order: results are bitwise
   the same however many threads there are. */

#include "elements.h"
#include "view.h"

/* ---- is the gradient finite, and its factored sums ---- */

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
  float sums[BLOCK], limit = t->rule->limit;
  int64_t length = t->y * t->c, width = BLOCK / 4 / t->c * t->c;
  int32_t bad = 0;
  if (t->c == 1) width = BLOCK / 8;
  if (width < t->c) { /* C is long itself */
    memset(w, 0, sizeof(float) * (size_t)t->c);
    for (int64_t i = 0; i < length; i += t->c)
      bad |= add_squares(g + i, t->c, limit, u + i, w);
    return bad;
  }
  memset(sums, 0, sizeof(float) * (size_t)width);
  for (int64_t i = 0; i < length; i += width) {
    int64_t count = length - i < width ? length - i : width;
    bad |= add_squares(g + i, count, limit, u + i, sums);
  }
  for (; t->c == 1 && width > 4; width /= 2) /* side by side, not one after another */
    for (int64_t i = 0; i < width / 2; i++) sums[i] += sums[i + width / 2];
  for (int64_t c = 0; c < t->c; c++) {
    double total = 0.0;
    for (int64_t i = c; i < width; i += t->c) total += sums[i];
    w[c] = (float)total;
  }
  return bad;
}

static void sums(void *job, Tensor *t, int64_t item) {
  Parts p = parts_of(t);
  int64_t a, x0, x1, length = t->y * t->c;
  band_range(t, item, &a, &x0, &x1);
  int32_t bad = 0;
  if (t->vector) {
    for (int64_t i = x0; i < x1; i++) {
      float g = t->grad[i];
      bad |= not_finite(g);
      g = clip(g, t->rule->limit);
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
  if (bad) atomic_store(&((Job *)job)->bad, 1);
}

static void join_bands(const Tensor *t, const Parts *p) {
  if (t->vector || t->items == 1) return;
  int64_t size = t->b * t->y * t->c, bands = t->items / t->a;
  for (int64_t a = 0; a < t->a; a++) {
    float *u = p->sum_u + a * size;
    memcpy(u, p->partial_u + a * bands * size, sizeof(float) * (size_t)size);
    for (int64_t k = 1; k < bands; k++) {
      const float *part = p->partial_u + (a * bands + k) * size;
      for (int64_t i = 0; i < size; i++) u[i] += part[i];
    }
  }
}

/* ---- row and column statistics, once per tensor ---- */

/* Weight of unit j for one of the inputs; 0 for those the network has not. */
static float weight(const Tensor *t, int place, int j) {
  int slot = t->rule->slots[place];
  return slot < 0 || j >= HIDDEN ? 0.0f : t->w0[(int64_t)slot * HIDDEN + j];
}

/* The moments and their inverse roots [6][length] of one matrix as channels: their
   part of the first layer, added to `hidden`. `step` is the distance of neighbours. */
static inline void add_lines(const float *moments, int64_t n, int64_t length,
                             int64_t step, float eps, float w[LINES][PADDED],
                             float *hidden) {
  for (int k = 0; k < DECAYS; k++) {
    const float *m = moments + k * n;
    double plain = 0.0, root = 0.0;
    for (int64_t start = 0; start < length; start += BLOCK) {
      int64_t end = start + BLOCK < length ? start + BLOCK : length;
      float squares = 0.0f, inverses = 0.0f;
#pragma omp simd reduction(+ : squares, inverses)
      for (int64_t i = start; i < end; i++) {
        float x = m[i * step];
        squares += x * x;
        inverses += 1.0f / (x + LINE_EPS);
      }
      plain += squares, root += inverses;
    }
    plain = 1.0 / sqrt(eps + plain / (double)length);
    root = 1.0 / sqrt(eps + root / (double)length);
    for (int j = 0; j < HIDDEN; j++) {
      float wm = w[k][j] * (float)plain, wr = w[DECAYS + k][j] * (float)root;
      float *h = hidden + j * n;
      for (int64_t i = 0; i < length; i++)
        h[i * step] += wm * m[i * step] + wr * inverse_root(m[i * step] + LINE_EPS);
    }
  }
}

/* Moments [3][n] move towards sum / length; their part of the first layer. `kinds`:
   which inputs they are, one kind or for vectors both. */
static void lines(const Tensor *t, float *moments, const float *sum, int64_t n,
                  int64_t over, int kinds, float *hidden, int first) {
  float inverse = 1.0f / (float)over, w[LINES][PADDED];
  int seen = 0;
  for (int k = 0; k < DECAYS; k++) {
    float *m = moments + k * n, rate = 1.0f - t->decays[DECAYS + k];
    for (int64_t i = 0; i < n; i++) m[i] += rate * (sum[i] * inverse + 1e-30f - m[i]);
  }
  for (int j = 0; j < PADDED; j++)
    for (int64_t i = 0; i < n; i++)
      hidden[j * n + i] = first && j < HIDDEN ? t->b0[j] : 0.0f;
  for (int c = 0; c < LINES; c++) {
    for (int j = 0; j < PADDED; j++) {
      w[c][j] = kinds & 1 ? weight(t, ROW_PLACE[c], j) : 0.0f;
      if (kinds & 2) w[c][j] += weight(t, COL_PLACE[c], j);
    }
    seen |= ((kinds & 1) && t->rule->slots[ROW_PLACE[c]] >= 0) ||
            ((kinds & 2) && t->rule->slots[COL_PLACE[c]] >= 0);
  }
  if (!seen) return;
  float eps = t->rule->channel_eps;
  int64_t outer = stack_a(t), inner = stack_c(t), length = n / (outer * inner);
  for (int64_t o = 0; o < outer; o++) {
    int64_t at = o * length * inner;
    if (inner == 1) add_lines(moments + at, n, length, 1, eps, w, hidden + at);
    else
      for (int64_t c = 0; c < inner; c++, at++)
        add_lines(moments + at, n, length, inner, eps, w, hidden + at);
  }
}

static void scales(const Tensor *t, const Parts *p) {
  if (t->vector) {
    /* A vector's momenta and its gradient are divided by the root moment with another
       epsilon; scale_u is what turns the second factor into the first. */
    for (int64_t i = 0; i < DECAYS * p->nw; i++) {
      p->scale_w[i] = safe_root(t->row[i] + 1e-9f);
      p->scale_u[i] = inverse_root(t->row[i] + t->rule->vector_eps) / p->scale_w[i];
    }
    return;
  }
  /* The row moment as [P, Q, R], Q the second largest axis. */
  int64_t P = t->row_over_x ? t->a * t->b : t->a;
  int64_t Q = t->row_over_x ? t->y : t->x;
  int64_t R = t->row_over_x ? t->c : t->b * t->c;
  int64_t cols = t->row_over_x ? p->nw : p->nu;
  float *row_scale = t->row_over_x ? p->scale_u : p->scale_w;
  float *col_scale = t->row_over_x ? p->scale_w : p->scale_u;
  for (int64_t kp = 0; kp < DECAYS * P; kp++)
    for (int64_t r = 0; r < R; r++) {
      const float *row = t->row + kp * Q * R + r;
      float *scale = row_scale + kp * Q * R + r;
      double total = 0.0;
      for (int64_t q = 0; q < Q; q++) total += row[q * R];
      float mean = (float)(total / (double)Q) + 1e-9f;
      for (int64_t q = 0; q < Q; q++) scale[q * R] = safe_root(row[q * R] / mean);
    }
  for (int64_t i = 0; i < DECAYS * cols; i++) col_scale[i] = safe_root(t->col[i]);
}

static void factor(void *job, Tensor *t, int64_t item) {
  (void)job, (void)item;
  Parts p = parts_of(t);
  join_bands(t, &p);
  if (t->unreached > 0) t->unreached = 0;
  t->guard = t->guard != 0;
  if (t->vector) { /* row and column channels are the same array */
    lines(t, t->row, p.sum_w, p.nw, 1, 3, p.hidden_w, 1);
  } else if (t->row_over_x) {
    lines(t, t->row, p.sum_u, p.nu, t->x, 1, p.hidden_u, 1);
    lines(t, t->col, p.sum_w, p.nw, t->y, 2, p.hidden_w, 0);
  } else {
    lines(t, t->row, p.sum_w, p.nw, t->y, 1, p.hidden_w, 1);
    lines(t, t->col, p.sum_u, p.nu, t->x, 2, p.hidden_u, 0);
  }
  scales(t, &p);
}

/* ---- passes over the elements, some lanes at a time ---- */

/* A pass's pointers to the first element of a block. */
typedef struct {
  const float *grad, *param;
  float *second, *momenta[DECAYS], *out;
} Block;

/* Fetches what the loops want soon: the streams are more than processors foresee. */
INLINE void ahead(const Block *x, int64_t i) {
  i += 8 * LANES;
  __builtin_prefetch(x->grad + i), __builtin_prefetch(x->param + i);
  __builtin_prefetch(x->second + i);
  for (int k = 0; k < DECAYS; k++) __builtin_prefetch(x->momenta[k] + i);
}

/* For each block of a band: its elements `x`, and its view `v`. */
#define EACH_BLOCK(WITH_HIDDEN)                                                \
  Parts p = parts_of(t);                                                       \
  int64_t a, x0, x1, slice = t->b * t->y * t->c, period = stack_c(t);          \
  band_range(t, item, &a, &x0, &x1);                                           \
  const int flat = is_flat(t);                                                 \
  View v;                                                                      \
  v.slice = -1;                                                                \
  int64_t stop = (a * t->x + x1) * slice;                                      \
  for (int64_t e = (a * t->x + x0) * slice, length; e < stop; e += length) {   \
    int64_t i = 0;                                                             \
    length = flat ? look_flat(&v, t, &p, a, e, WITH_HIDDEN)                    \
                  : block_length(t, e, stop);                                  \
    if (!flat) look(&v, t, &p, e, length, WITH_HIDDEN);                        \
    float *m = t->momenta + e;                                                 \
    const Block x = {t->grad + e, t->param + e, t->second + e,                 \
                     {m, m + t->n, m + 2 * t->n}, t->out + e};

#define EACH_FULL for (; i + LANES <= length; i += LANES)

/* The terms that channels are products of, by the names of tables.h; with `flat` the W
   arrays have one value for the block. */
#define FACTOR(k)                                                              \
  Lanes w##k = flat ? splat(v->flat_scale[k]) : load(v->scale_w[k] + i, count); \
  Lanes factor##k = load(v->grad_u[k] + i, count) * w##k;                      \
  Lanes momenta_factor##k = factor##k;                                         \
  if (!flat && v->vector) momenta_factor##k = load(v->scale_u[k] + i, count) * w##k;
#define TERMS                                                                  \
  Lanes clipped_grad = within(grad, CLIP), rsqrt = over_root(second + eps);    \
  if (count < LANES) rsqrt = first(rsqrt, count);                              \
  FACTOR(0) FACTOR(1) FACTOR(2)

/* How far accumulators move, and the rule's bounds. */
typedef struct {
  float momenta[DECAYS], second, limit, eps;
} Rates;

/* Moves the accumulators of lanes, and adds the squares of their channels to `squares`,
   or by their place in a block to `each`. */
INLINE void update_lanes(const Block *x, const View *v, const Rates *r, int64_t i,
                         int64_t count, int flat, Lanes *squares,
                         float each[ELEMENTS][BLOCK + LANES]) {
  ahead(x, i);
  const float eps = r->eps;
  Lanes grad = within(load(x->grad + i, count), r->limit);
  Lanes param = load(x->param + i, count), second = load(x->second + i, count);
#define MOVE(k)                                                                \
  Lanes momenta##k = load(x->momenta[k] + i, count);                           \
  momenta##k += r->momenta[k] * (grad - momenta##k);                           \
  store(x->momenta[k] + i, momenta##k, count);
  MOVE(0) MOVE(1) MOVE(2)
  second += r->second * (grad * grad - second);
  store(x->second + i, second, count);
  TERMS
#define SQUARE(c, value)                                                       \
  {                                                                            \
    Lanes z = value;                                                           \
    if (each) *(Unaligned *)&each[c][i] += z * z;                              \
    else squares[c] += z * z;                                                  \
  }
  EACH_CHANNEL(SQUARE)
}

/* The last lanes of a block, fewer than LANES. */
OUTLINE void update_last(const Block *x, const View *v, const Rates *r, int64_t i,
                         int64_t count, Lanes *squares,
                         float each[ELEMENTS][BLOCK + LANES]) {
  if (each) update_lanes(x, v, r, i, count, 0, squares, each);
  else update_lanes(x, v, r, i, count, v->is_flat, squares, NULL);
}

static void update(void *job, Tensor *t, int64_t item) {
  const Rates r = {{1.0f - t->decays[0], 1.0f - t->decays[1], 1.0f - t->decays[2]},
                   1.0f - t->decays[2 * DECAYS], t->rule->limit, t->rule->second_eps};
  (void)job;
  Lanes total[ELEMENTS] = {{0}}, sum[ELEMENTS] = {{0}};
  int64_t summed = 0; /* elements in `sum`, not yet in `total`: few terms are exact */
  /* Where matrices alternate: by place in a block. */
  float each[ELEMENTS][BLOCK + LANES];
  if (stack_c(t) > 1) memset(each, 0, sizeof each);
  EACH_BLOCK(0)
    if (flat) EACH_FULL update_lanes(&x, &v, &r, i, LANES, 1, sum, NULL);
    else if (period == 1) EACH_FULL update_lanes(&x, &v, &r, i, LANES, 0, sum, NULL);
    else EACH_FULL update_lanes(&x, &v, &r, i, LANES, 0, NULL, each);
    if (i < length)
      update_last(&x, &v, &r, i, length - i, total, period > 1 ? each : NULL);
    if ((summed += length) >= FLAT || e + length >= stop)
      for (int c = summed = 0; c < ELEMENTS; c++)
        total[c] += sum[c], sum[c] = (Lanes){0};
  }
  float *squares = p.squares + item * ELEMENTS * period;
  for (int c = 0; c < ELEMENTS; c++)
    for (int64_t k = 0; k < period; k++) {
      double found = 0.0;
      for (int64_t i = k; period > 1 && i < BLOCK; i += period) found += each[c][i];
      for (int i = 0; period == 1 && i < LANES; i++) found += total[c][i];
      squares[c * period + k] = (float)found;
    }
}

/* The sum of squares of a tensor whose squares have left float's range. */
static double squares_of(const float *x, int64_t n) {
  double total = 0.0;
  for (int64_t i = 0; i < n; i++) total += (double)x[i] * x[i];
  return total;
}

static void fold(void *job, Tensor *t, int64_t item) {
  (void)job, (void)item;
  Parts p = parts_of(t);
  Folded *f = p.folded;
  int64_t outer = stack_a(t), period = stack_c(t), bands = t->items / outer;
  double count = (double)(t->n / (outer * period)), params = 0.0;
  for (int c = 0; c < ELEMENTS; c++)
    for (int64_t o = 0; o < outer; o++)
      for (int64_t k = 0; k < period; k++) {
        double total = 0.0;
        for (int64_t i = o * bands; i < (o + 1) * bands; i++)
          total += p.squares[(i * ELEMENTS + c) * period + k];
        if (c == PARAM) params += total;
        p.normals[(o * ELEMENTS + c) * period + k] =
            (float)(1.0 / sqrt(t->rule->channel_eps + total / count));
      }
  for (int j = 0; j < PADDED; j++) {
    int known = j < HIDDEN, set = j / UNITS, unit = j % UNITS;
    for (int c = 0; c < ELEMENTS; c++)
      f->w0[set][c][unit] =
          weight(t, PLACE[c], j) * (outer * period == 1 ? p.normals[c] : 1.0f);
    for (int k = 0; k < PADDED; k++)
      f->w1[set][k][unit] = known && k < HIDDEN ? t->w1[k * HIDDEN + j] : 0.0f;
    f->b1[j] = known ? t->b1[j] : 0.0f;
    for (int o = 0; o < 2; o++)
      f->w2[o][j] = known && o < t->rule->outputs ? t->w2[j * t->rule->outputs + o] : 0.0f;
  }
  for (int o = 0; o < 2; o++) f->b2[o] = o < t->rule->outputs ? t->b2[o] : 0.0f;
  f->size = -t->scale;
  if (t->rule->by_size) {
    if (!isfinite(params)) params = squares_of(t->param, t->n);
    double size = sqrt(params / (double)t->n + SIZE_EPS);
    f->size *= (float)fmin(fmax(size, t->least), t->most);
  }
}

/* What the last pass makes of a step. */
typedef struct {
  float limit, eps, exp_mult, size, lr, shrink;
  int hold, reach; /* no step where there never was a gradient; look for such elements */
  int add, guard;
  LanesInt unreached, bad; /* found */
} Finish;

/* The heads of lanes: the step, and the exponent of its size. */
typedef float Heads[2][FLAT + LANES];
INLINE void network_lanes(const Block *x, const View *v, const Folded *f,
                          float normal[ELEMENTS][COPY], const Finish *s, int64_t i,
                          int64_t count, int flat, Heads heads) {
  __asm__ volatile("" ::: "memory"); /* or weights would be loaded, and spilled, before */
  ahead(x, i);
  const float eps = s->eps;
  Lanes grad = within(load(x->grad + i, count), s->limit);
  Lanes param = load(x->param + i, count), second = load(x->second + i, count);
  Lanes momenta0 = load(x->momenta[0] + i, count);
  Lanes momenta1 = load(x->momenta[1] + i, count);
  Lanes momenta2 = load(x->momenta[2] + i, count);
  TERMS
  Lanes h[PADDED], sum[UNITS], o0 = splat(f->b2[0]), o1 = splat(f->b2[1]);
  for (int set = 0; set < SETS; set++) {
    EACH_UNIT(j) {
      int k = set * UNITS + j;
      sum[j] = load(v->hidden_u[k] + i, count);
      sum[j] += flat ? splat(v->flat[k]) : load(v->hidden_w[k] + i, count);
    }
#define FEED(c, value)                                                         \
  {                                                                            \
    Lanes z = value;                                                           \
    if (normal) z *= load(normal[c] + i, count);                               \
    EACH_UNIT(j) sum[j] += f->w0[set][c][j] * z;                               \
  }
    EACH_CHANNEL(FEED)
    EACH_UNIT(j) h[set * UNITS + j] = rectified(sum[j]);
  }
  for (int set = 0; set < SETS; set++) {
    EACH_UNIT(j) sum[j] = splat(f->b1[set * UNITS + j]);
    UNROLLED(8) for (int k = 0; k < PADDED; k++)
      EACH_UNIT(j) sum[j] += f->w1[set][k][j] * h[k];
    EACH_UNIT(j) {
      Lanes z = rectified(sum[j]);
      o0 += f->w2[0][set * UNITS + j] * z;
      o1 += f->w2[1][set * UNITS + j] * z;
    }
  }
  store(heads[0] + i, o0, LANES), store(heads[1] + i, o1, LANES);
}

OUTLINE void network_last(const Block *x, const View *v, const Folded *f,
                          float normal[ELEMENTS][COPY], const Finish *s, int64_t i,
                          int64_t count, Heads heads) {
  if (normal) network_lanes(x, v, f, normal, s, i, count, 0, heads);
  else network_lanes(x, v, f, NULL, s, i, count, v->is_flat, heads);
}

/* From the heads to the step, which is scaled, held, decayed, added, guarded. */
INLINE void finish_lanes(const Block *x, Finish *s, Heads heads, int64_t i,
                         int64_t left) {
  int64_t count = left < LANES ? left : LANES;
  Lanes step = s->size * load(heads[0] + i, LANES), size = load(heads[1] + i, LANES);
  if (s->exp_mult != 0.0f) step *= exponential(s->exp_mult * size);
  if (s->hold | s->reach) { /* where there never was a gradient, all of them are zero */
    LanesInt reached = (LanesInt)load(x->second + i, count);
    for (int k = 0; k < DECAYS; k++) reached |= (LanesInt)load(x->momenta[k] + i, count);
    reached = reached << 1 != 0; /* without the sign of zero */
    if (s->hold) step = (Lanes)((LanesInt)step & reached);
    if (s->reach) s->unreached |= (LanesInt)first((Lanes)~reached, count);
  }
  step = s->lr * step;
  if (s->shrink != 0.0f) step -= s->shrink * load(x->param + i, count);
  if (s->add) step += load(x->param + i, count);
  if (s->guard) { /* what is not finite stays, or is no step */
    LanesInt lost = ((LanesInt)step & 0x7f800000) == 0x7f800000, kept = {0};
    if (s->add) kept = (LanesInt)load(x->param + i, count);
    s->bad |= (LanesInt)first((Lanes)lost, count);
    step = (Lanes)(((LanesInt)step & ~lost) | (kept & lost));
  }
  store(x->out + i, step, count);
}

static void apply(void *job, Tensor *t, int64_t item) {
  const Rule *r = t->rule;
  Folded f = *parts_of(t).folded;
  Finish s = {r->limit, r->second_eps, r->exp_mult, f.size, t->lr,
              t->lr * ((Job *)job)->decay * t->decay, r->hold, t->unreached >= 0,
              t->add != 0, t->guard != 0};
  float copies[ELEMENTS][COPY], (*normal)[COPY] = stack_c(t) > 1 ? copies : NULL;
  Heads heads;
  EACH_BLOCK(1)
    if (e == (a * t->x + x0) * slice && stack_a(t) * period > 1) /* once */
      for (int c = 0; c < ELEMENTS; c++) {
        const float *normals = p.normals + (a * ELEMENTS + c) * period;
        if (normal) repeat(normal[c], normals, period);
        else
          for (int j = 0; j < PADDED; j++) f.w0[j / UNITS][c][j % UNITS] *= normals[0];
      }
    if (flat) EACH_FULL network_lanes(&x, &v, &f, NULL, &s, i, LANES, 1, heads);
    else if (!normal) EACH_FULL network_lanes(&x, &v, &f, NULL, &s, i, LANES, 0, heads);
    else EACH_FULL network_lanes(&x, &v, &f, normal, &s, i, LANES, 0, heads);
    if (i < length) network_last(&x, &v, &f, normal, &s, i, length - i, heads);
    for (i = 0; i < length; i += LANES) finish_lanes(&x, &s, heads, i, length - i);
  }
  if (any(s.bad)) __atomic_store_n(&t->guard, 2, __ATOMIC_RELAXED);
  if (any(s.unreached) && t->unreached == 0)
    __atomic_store_n(&t->unreached, 1, __ATOMIC_RELAXED);
}

/* What comes before the elements of large tensors, and all of small ones. */
static void whole_or_factor(void *job, Tensor *t, int64_t item) {
  if (t->n == 0) return;
  int small = !large(t);
  for (item = 0; small && !((Job *)job)->summed && item < t->items; item++)
    sums(job, t, item);
  factor(job, t, 0);
  for (item = 0; small && item < t->items; item++) update(job, t, item);
  if (small) fold(job, t, 0);
  for (item = 0; small && item < t->items; item++) apply(job, t, item);
}

static void fold_large(void *job, Tensor *t, int64_t item) {
  if (large(t)) fold(job, t, item);
}

/* ---- what callers call ---- */

int64_t elements_sizes(int which) { return which ? sizeof(Rule) : sizeof(Tensor); }

/* Cuts a tensor of known shape and rule into bands; its scratch memory in floats. */
int64_t elements_prepare(Tensor *t) {
  Tensor at_zero;
  float origin;
  int64_t slice = t->b * t->y * t->c, least = t->vector ? 1 : 8;
  t->n = t->a * t->x * slice;
  t->band = slice ? (BAND + slice - 1) / slice : 1;
  if (t->band < least) t->band = least; /* partial sums over X stay small */
  t->items = t->n ? t->a * ((t->x + t->band - 1) / t->band) : 0;
  at_zero = *t;
  at_zero.scratch = &origin;
  return parts_of(&at_zero).end - &origin;
}

/* 1 if a gradient is not finite, else 0; tensor states and parameters are untouched. */
int elements_begin(Tensor *tensors, int64_t count, Parallel parallel, void *pool) {
  Job job = {.tensors = tensors, .count = count, .pool = pool};
  job.parallel = parallel ? parallel : with_threads;
  each_band(&job, sums, 0);
  return atomic_load(&job.bad);
}

/* The step; after `elements_begin` (`summed`), or without. 1 if a guarded result was not
   finite; `guard` of the tensors it was in is 2. */
int elements_finish(Tensor *tensors, int64_t count, float decay, int summed,
                     Parallel parallel, void *pool) {
  Job job = {.tensors = tensors, .count = count, .decay = decay, .summed = summed};
  job.parallel = parallel ? parallel : with_threads;
  job.pool = pool;
  if (!summed) each_band(&job, sums, 1);
  each_tensor(&job, whole_or_factor);
  each_band(&job, update, 1);
  each_tensor(&job, fold_large);
  each_band(&job, apply, 1);
  for (int64_t i = 0; i < count; i++) job.bad |= tensors[i].guard == 2;
  return job.bad;
}
