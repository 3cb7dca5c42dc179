/* Types, threads and small functions of celo_cpu.c. */

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifndef HIDDEN
#define HIDDEN 4
#endif
#define BLOCK 256   /* elements whose intermediate values stay in the first cache */
#define CHANNELS 18 /* channels with a value per element */
#define PARAM 2

typedef struct {
  float momentum[3], factored[3], second, exp_mult, vector_eps;
  float w0[CHANNELS][HIDDEN], b0[HIDDEN];
  float row_w0[6][HIDDEN], col_w0[6][HIDDEN], vector_w0[6][HIDDEN];
  float w1[HIDDEN][HIDDEN], b1[HIDDEN], w2[HIDDEN][2], b2[2];
} Rule;

typedef struct {
  float *param, *momenta, *second, *row, *col;
  const float *grad;
  float *scratch; /* see `Parts` */
  const Rule *rule;
  int64_t n, a, x, b, y, c, band, items, row_over_x, vector, update_only, relative;
  float lr, decay, limit, scale; /* limit: of gradients; scale: of the step */
  float least, most; /* the root mean square counts as within these */
} Tensor;

/* A tensor's scratch memory, in floats. The order is that of `scratch_floats`. */
typedef struct {
  int64_t nu, nw;          /* sizes of one U and one W array */
  float *sum_u, *sum_w;    /* squared gradients summed over X, over Y */
  float *scale_u, *scale_w;   /* [3][n]: how g and m are preconditioned */
  float *hidden_u, *hidden_w; /* [HIDDEN][n]: contribution to the first layer */
  float *folded;           /* [CHANNELS][HIDDEN] normalised first-layer weights */
  float *size;             /* the tensor's step size */
  float *squares;          /* [items][CHANNELS] */
  float *partial_u;        /* [items][B Y C] */
} Parts;

static Parts parts_of(const Tensor *t) {
  Parts p;
  float *at = t->scratch;
  p.nu = t->a * t->b * t->y * t->c;
  p.nw = t->a * t->x * t->b * t->c;
  if (t->vector) p.nu = 0;
#define TAKE(field, count) p.field = at; at += (count)
  TAKE(sum_u, p.nu);
  TAKE(sum_w, p.nw);
  TAKE(scale_u, 3 * (t->vector ? p.nw : p.nu)); /* vectors: see `scales` */
  TAKE(scale_w, 3 * p.nw);
  TAKE(hidden_u, HIDDEN * p.nu);
  TAKE(hidden_w, HIDDEN * p.nw);
  TAKE(folded, CHANNELS * HIDDEN);
  TAKE(size, 1);
  TAKE(squares, CHANNELS * t->items);
  TAKE(partial_u, t->vector ? 0 : t->items * t->b * t->y * t->c);
#undef TAKE
  return p;
}

/* ---- threads: items are handed out in order, to whoever is free ---- */

typedef struct Job Job;
typedef void (*Work)(Job *, Tensor *, int64_t item);

struct Job {
  Tensor *tensors;
  int64_t count;
  float decay; /* of a parameter with weight decay 1 */
  int per_tensor; /* one item a tensor, instead of `tensor.items` */
  Work work;
  atomic_llong next;
  atomic_int bad;
};

static void *worker(void *argument) {
  Job *job = argument;
  int64_t tensor = 0, before = 0;
  for (;;) {
    int64_t mine = atomic_fetch_add(&job->next, 1);
    while (tensor < job->count) {
      int64_t items = job->per_tensor ? 1 : job->tensors[tensor].items;
      if (mine < before + items) break;
      before += items;
      tensor++;
    }
    if (tensor == job->count) return NULL;
    job->work(job, &job->tensors[tensor], mine - before);
  }
}

static void run(Job *job, Work work, int per_tensor, int threads) {
  pthread_t others[64];
  int started = 0;
  job->work = work;
  job->per_tensor = per_tensor;
  atomic_store(&job->next, 0);
  while (started < threads - 1 && started < 64 &&
         pthread_create(&others[started], NULL, worker, job) == 0)
    started++;
  worker(job);
  while (started > 0) pthread_join(others[--started], NULL);
}

/* ---- small functions ---- */

static inline float clip(float x, float limit) {
  x = x < -limit ? -limit : x;
  return x > limit ? limit : x;
}

/* By its bits: what compilers may assume of arithmetic does not touch this. */
static inline int32_t not_finite(float x) {
  int32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return (bits & 0x7f800000) == 0x7f800000;
}

static inline float rsqrt(float x) { return 1.0f / sqrtf(x); }

static inline float safe_rsqrt(float x) { return rsqrt(x > 1e-9f ? x : 1e-9f); }

/* exp to float32 accuracy (Cephes' polynomial), in a form compilers vectorise. */
static inline float exponential(float x) {
  x = clip(x, 87.0f);
  float n = rintf(x * 1.44269504f);
  float r = x - n * 0.693359375f + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  int32_t bits = ((int32_t)n + 127) << 23;
  float power;
  memcpy(&power, &bits, sizeof power);
  return p * power;
}

static void band_range(const Tensor *t, int64_t item, int64_t *a, int64_t *x0,
                       int64_t *x1) {
  int64_t bands = (t->x + t->band - 1) / t->band;
  *a = item / bands;
  *x0 = (item % bands) * t->band;
  *x1 = *x0 + t->band < t->x ? *x0 + t->band : t->x;
}
