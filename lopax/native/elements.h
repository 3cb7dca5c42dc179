/* Threads, scratch memory and small functions of elements.c. */

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>

#include "lanes.h"
#include "tables.h"

#ifndef HIDDEN
#define HIDDEN 4
#endif
#define UNITS (HIDDEN < 8 ? HIDDEN : 8) /* of a layer, whose sums stay in registers */
#define EACH_UNIT(j) UNROLLED(8) for (int j = 0; j < UNITS; j++)
#define SETS ((HIDDEN + UNITS - 1) / UNITS)
#define PADDED (UNITS * SETS)
#define BLOCK (HIDDEN > 8 ? 128 : 256) /* elements that stay in the first cache */
#define BAND (1 << 15)                 /* elements in a unit of work, about */

/* The network as the last pass wants it: units behind HIDDEN are zero. */
typedef struct {
  float w0[SETS][ELEMENTS][UNITS], w1[SETS][PADDED][UNITS];
  float b1[PADDED], w2[2][PADDED], b2[2];
  float size; /* the tensor's step size */
} Folded;

/* Where channels are normalised over matrices, a tensor is stack_a * stack_c of them:
   A of the blocks below, or C, whose elements alternate. */
static int64_t stack_a(const Tensor *t) {
  return t->rule->per_matrix && !t->vector ? t->a : 1;
}

static int64_t stack_c(const Tensor *t) {
  return t->rule->per_matrix && !t->vector ? t->c : 1;
}

/* A tensor's scratch memory, in floats. */
typedef struct {
  int64_t nu, nw;             /* sizes of one U and one W array */
  float *sum_u, *sum_w;       /* squared gradients summed over X, over Y */
  float *scale_u, *scale_w;   /* [3][n]: how g and m are preconditioned */
  float *hidden_u, *hidden_w; /* [PADDED][n]: contribution to the first layer */
  Folded *folded;
  float *normals;   /* [stack_a][ELEMENTS][stack_c], of several matrices */
  float *squares;   /* [items][ELEMENTS][stack_c] */
  float *partial_u; /* [items][B Y C] */
  float *end;
} Parts;

static Parts parts_of(const Tensor *t) {
  Parts p;
  float *at = t->scratch;
  int64_t stacked = stack_c(t), u = t->vector ? 0 : t->b * t->y * t->c;
  p.nu = t->a * u;
  p.nw = t->a * t->x * t->b * t->c;
#define TAKE(field, count) p.field = (void *)at, at += (count)
  TAKE(sum_u, p.nu);
  TAKE(sum_w, p.nw);
  TAKE(scale_u, 3 * (t->vector ? p.nw : p.nu)); /* vectors: see `scales` */
  TAKE(scale_w, 3 * p.nw);
  TAKE(hidden_u, PADDED * p.nu);
  TAKE(hidden_w, PADDED * p.nw);
  TAKE(folded, (int64_t)(sizeof(Folded) / sizeof(float)));
  TAKE(normals, stack_a(t) * ELEMENTS * stacked);
  TAKE(squares, t->items * ELEMENTS * stacked);
  TAKE(partial_u, t->items > 1 ? t->items * u : 0);
  TAKE(end, 0);
#undef TAKE
  if (t->items == 1) p.partial_u = p.sum_u;
  return p;
}

/* ---- threads: units of work are handed out in order, to whoever is free ---- */

typedef struct {
  Tensor *tensors;
  int64_t count;
  float decay; /* of a parameter with weight decay 1 */
  int summed;
  atomic_int bad;
  void (*work)(void *job, Tensor *, int64_t item);
  Parallel parallel;
  void *pool;
} Job;

/* Unit u is item u - first of the last tensor that begins at or before it. */
static void band_unit(void *argument, int64_t unit) {
  Job *job = argument;
  int64_t low = 0, high = job->count;
  while (high - low > 1) {
    int64_t middle = (low + high) / 2;
    if (job->tensors[middle].first <= unit) low = middle;
    else high = middle;
  }
  job->work(job, &job->tensors[low], unit - job->tensors[low].first);
}

static void tensor_unit(void *argument, int64_t unit) {
  Job *job = argument;
  job->work(job, &job->tensors[unit], 0);
}

/* Runs units 0..count-1, in this thread alone where there is little to do. */
static void hand_out(Job *job, int64_t count, int64_t elements, Work unit) {
  if (count < 2 || elements < BAND)
    for (int64_t i = 0; i < count; i++) unit(job, i);
  else job->parallel(job->pool, count, unit, job);
}

/* Whether threads share a tensor. */
static int large(const Tensor *t) { return t->n > BAND; }

/* Every item of all tensors, or of the large ones. */
static void each_band(Job *job, void (*work)(void *, Tensor *, int64_t), int of_large) {
  int64_t units = 0, elements = 0;
  job->work = work;
  for (int64_t i = 0; i < job->count; i++) {
    Tensor *t = &job->tensors[i];
    t->first = units;
    if (of_large && !large(t)) continue;
    units += t->items;
    elements += t->n;
  }
  hand_out(job, units, elements, band_unit);
}

static void each_tensor(Job *job, void (*work)(void *, Tensor *, int64_t)) {
  int64_t elements = 0;
  job->work = work;
  for (int64_t i = 0; i < job->count; i++) elements += job->tensors[i].n;
  hand_out(job, job->count, elements, tensor_unit);
}

typedef struct {
  void *job;
  Work work;
  int64_t count;
  atomic_llong next;
} Queue;

static void *drain(void *argument) {
  Queue *queue = argument;
  for (int64_t i; (i = atomic_fetch_add(&queue->next, 1)) < queue->count;)
    queue->work(queue->job, i);
  return NULL;
}

/* A `Parallel` for callers without threads; `pool` is a pointer to their number. */
static void with_threads(void *pool, int64_t count, Work work, void *job) {
  Queue queue = {.job = job, .work = work, .count = count};
  pthread_t others[64];
  int wanted = *(const int *)pool - 1, started = 0;
  if (wanted > count - 1) wanted = (int)(count - 1);
  while (started < wanted && started < 64 &&
         pthread_create(&others[started], NULL, drain, &queue) == 0)
    started++;
  drain(&queue);
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

static inline float inverse_root(float x) { return 1.0f / sqrtf(x); }

static inline float safe_root(float x) { return inverse_root(x > 1e-9f ? x : 1e-9f); }

static void band_range(const Tensor *t, int64_t item, int64_t *a, int64_t *x0,
                       int64_t *x1) {
  int64_t bands = (t->x + t->band - 1) / t->band;
  *a = item / bands;
  *x0 = (item % bands) * t->band;
  *x1 = *x0 + t->band < t->x ? *x0 + t->band : t->x;
}
