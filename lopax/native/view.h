/* How a block of elements finds its row and column values; part of elements.c. */

/* Pointers such that the block's i-th element has entry i. Where the array does not lie
   so in memory, a copy does. */
#define COPY (3 * BLOCK) /* a period of up to BLOCK, begun anywhere, and its last turn */
typedef struct {
  const float *scale_u[DECAYS], *scale_w[DECAYS], *hidden_u[PADDED], *hidden_w[PADDED];
  const float *grad_u[DECAYS]; /* scale_u, as the gradient sees it */
  float copies[2 * (DECAYS + PADDED)][COPY];
  float flat_scale[DECAYS], flat[PADDED]; /* instead of W arrays, with one value each */
  int is_flat, vector;
  int64_t slice; /* the block's; its W entries are in `copies`; -1 for none */
  int64_t group, at; /* of flat blocks: the slice's place in U arrays, the block's in it */
} View;

/* The k-th of the arrays a block sees: three of `scale`, and those of `hidden`. */
static const float *array_of(const float *scale, const float *hidden, int64_t n, int k) {
  return k < DECAYS ? scale + k * n : hidden + (k - DECAYS) * n;
}

#define FLAT 1024 /* the longest block with one value of W arrays */
static const float ONES[BLOCK] = {[0 ... BLOCK - 1] = 1.0f};
static const float ZEROS[BLOCK];

/* A slice is the Y C elements of one (a, x, b). In a slice U entries lie in a row and W
   entries repeat with period C, so a block within one costs next to nothing; but blocks
   cut at short slices would be too short. */
static int long_slices(const Tensor *t) { return t->y * t->c >= BLOCK / 2; }

/* Whether blocks are within slices that have one value of each W array. */
static int is_flat(const Tensor *t) {
  if (t->vector || t->c != 1) return 0;
  return long_slices(t) || (t->y >= 4 * LANES && t->y % LANES == 0);
}

/* Of a block that is not flat. */
static int64_t block_length(const Tensor *t, int64_t e, int64_t stop) {
  int64_t length = stop - e < BLOCK ? stop - e : BLOCK, left = length;
  if (t->vector) return length;
  if (t->c >= BLOCK) left = t->c - e % t->c;
  else if (long_slices(t)) left = t->y * t->c - e % (t->y * t->c);
  if (left < length) length = left;
  if (stack_c(t) > 1) length -= length % t->c; /* blocks begin with the first matrix */
  return length;
}

/* The next flat block of band `a`, which begins at `e`; its length. */
static int64_t look_flat(View *v, const Tensor *t, const Parts *p, int64_t a, int64_t e,
                         int with_hidden) {
  if (v->slice < 0) v->slice = e / t->y, v->group = a * t->b, v->at = 0;
  else if (v->at == t->y) { /* U arrays have the slices of one x */
    v->at = 0, v->slice++, v->group++;
    if (v->group == (a + 1) * t->b) v->group = a * t->b;
  }
  int64_t u = v->group * t->y + v->at, w = v->slice, left = t->y - v->at;
  v->is_flat = 1, v->vector = 0;
  for (int k = 0; k < DECAYS; k++) {
    v->scale_u[k] = v->grad_u[k] = p->scale_u + k * p->nu + u;
    v->flat_scale[k] = p->scale_w[k * p->nw + w];
  }
  for (int k = 0; with_hidden && k < PADDED; k++) {
    v->hidden_u[k] = p->hidden_u + k * p->nu + u;
    v->flat[k] = p->hidden_w[k * p->nw + w];
  }
  left = left < FLAT ? left : FLAT;
  v->at += left;
  return left;
}

/* Copies of all arrays for a block that has several slices, one run after another. */
static void view_short(View *v, const Tensor *t, const Parts *p, int64_t e,
                       int64_t length, int count) {
  int64_t slice = e / (t->y * t->c), at = e % (t->y * t->c), turn = t->y * t->c;
  for (int64_t i = 0; i < length; slice++, at = 0) {
    int64_t run = turn - at < length - i ? turn - at : length - i;
    int64_t group = slice / (t->x * t->b) * t->b + slice % t->b;
    for (int k = 0; k < count; k++) {
      const float *w = array_of(p->scale_w, p->hidden_w, p->nw, k) + slice * t->c;
      const float *u = array_of(p->scale_u, p->hidden_u, p->nu, k) + group * turn + at;
      float *copy_u = v->copies[2 * k] + i, *copy_w = v->copies[2 * k + 1] + i;
      for (int64_t j = 0; j < run; j++) copy_u[j] = u[j];
      if (t->c == 1)
        for (int64_t j = 0; j < run; j++) copy_w[j] = w[0];
      else
        for (int64_t j = 0, c = at % t->c; j < run; j++, c = c + 1 == t->c ? 0 : c + 1)
          copy_w[j] = w[c];
    }
    i += run;
  }
}

/* Fills `copy` with the `c` values again and again. */
static void repeat(float *copy, const float *values, int64_t c) {
  int64_t filled = c, needed = BLOCK + c - 1;
  memcpy(copy, values, sizeof(float) * (size_t)c);
  while (filled < needed) { /* whole turns, twice as many each time */
    int64_t more = filled < COPY - filled ? filled : (COPY - filled) / c * c;
    memcpy(copy + filled, copy, sizeof(float) * (size_t)more);
    filled += more;
  }
}

/* Any other block. */
static void look(View *v, const Tensor *t, const Parts *p, int64_t e, int64_t length,
                 int with_hidden) {
  int64_t turn = t->y * t->c, slice = e / turn, at = e - slice * turn;
  int64_t group = slice / (t->x * t->b) * t->b + slice % t->b;
  int count = DECAYS + (with_hidden ? PADDED : 0), wide = t->c >= BLOCK;
  int copied = !t->vector && !wide && !long_slices(t);
  int64_t c = at % t->c;
  v->is_flat = 0;
  v->vector = t->vector;
  if (copied) view_short(v, t, p, e, length, count);
  for (int k = 0; k < count; k++) {
    const float **u = k < DECAYS ? &v->scale_u[k] : &v->hidden_u[k - DECAYS];
    const float **w = k < DECAYS ? &v->scale_w[k] : &v->hidden_w[k - DECAYS];
    const float *from_u = array_of(p->scale_u, p->hidden_u, p->nu, k);
    const float *from_w = array_of(p->scale_w, p->hidden_w, p->nw, k);
    float *copy_w = v->copies[2 * k + 1];
    if (t->vector) {
      *u = k < DECAYS ? p->scale_u + k * p->nw + e : ZEROS;
      *w = from_w + e;
    } else if (copied) {
      *u = v->copies[2 * k];
      *w = copy_w;
    } else {
      if (!wide && slice != v->slice) repeat(copy_w, from_w + slice * t->c, t->c);
      *u = from_u + group * turn + at;
      *w = wide ? from_w + slice * t->c + c : copy_w + c;
    }
    if (k < DECAYS) v->grad_u[k] = t->vector ? ONES : *u;
  }
  v->slice = slice;
}
