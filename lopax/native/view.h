/* How a block of elements finds its row and column values; part of elements.c. */

/* Pointers such that the block's i-th element has entry i. Where the array does not lie
   so in memory, a copy does. */
#define COPY (3 * BLOCK) /* a period of up to BLOCK, begun anywhere, and its last turn */
typedef struct {
  const float *scale_u[3], *scale_w[3], *hidden_u[PADDED], *hidden_w[PADDED];
  const float *grad_u[3]; /* scale_u, as the gradient sees it */
  float copies[2 * (3 + PADDED)][COPY];
  int64_t slice; /* whose W entries are in `copies`; -1 for none */
} View;

static const float ONES[BLOCK] = {[0 ... BLOCK - 1] = 1.0f};
static const float ZEROS[BLOCK];

/* A slice is the Y C elements of one (a, x, b). In a slice U entries lie in a row and W
   entries repeat with period C, so a block within one costs next to nothing; but blocks
   cut at short slices would be too short. */
static int long_slices(const Tensor *t) { return t->y * t->c >= BLOCK / 2; }

static int64_t block_length(const Tensor *t, int64_t e, int64_t stop) {
  int64_t length = stop - e < BLOCK ? stop - e : BLOCK, left = length;
  if (t->vector) return length;
  if (t->c >= BLOCK) left = t->c - e % t->c;
  else if (long_slices(t)) left = t->y * t->c - e % (t->y * t->c);
  if (left < length) length = left;
  if (stack_c(t) > 1) length -= length % t->c; /* blocks begin with the first matrix */
  return length;
}

static void view_short(const float *u, const float *w, const Tensor *t, int64_t e,
                       int64_t length, float *copy_u, float *copy_w) {
  int64_t slice = e / (t->y * t->c), y = e / t->c % t->y, c = e % t->c;
  for (int64_t i = 0; i < length;) {
    int64_t run = t->c - c < length - i ? t->c - c : length - i;
    int64_t group = slice / (t->x * t->b) * t->b + slice % t->b;
    const float *from_u = u + (group * t->y + y) * t->c + c;
    const float *from_w = w + slice * t->c + c;
    for (int64_t k = 0; k < run; k++, i++) copy_u[i] = from_u[k], copy_w[i] = from_w[k];
    c = 0;
    if (++y == t->y) y = 0, slice++;
  }
}

/* Fills `copy` with the `c` values again and again. */
static void repeat(float *copy, const float *values, int64_t c) {
  if (c == 1) {
    float value = values[0];
    for (int i = 0; i < BLOCK; i++) copy[i] = value;
    return;
  }
  int64_t filled = c, needed = BLOCK + c - 1;
  memcpy(copy, values, sizeof(float) * (size_t)c);
  while (filled < needed) { /* whole turns, twice as many each time */
    int64_t more = filled < COPY - filled ? filled : (COPY - filled) / c * c;
    memcpy(copy + filled, copy, sizeof(float) * (size_t)more);
    filled += more;
  }
}

static void look(View *v, const Tensor *t, const Parts *p, int64_t e, int64_t length,
                 int with_hidden) {
  int64_t slice = e / (t->y * t->c), at = e % (t->y * t->c), c = e % t->c;
  int64_t group = slice / (t->x * t->b) * t->b + slice % t->b;
  for (int k = 0; k < 3 + (with_hidden ? PADDED : 0); k++) {
    const float **u = k < 3 ? &v->scale_u[k] : &v->hidden_u[k - 3];
    const float **w = k < 3 ? &v->scale_w[k] : &v->hidden_w[k - 3];
    const float *from_u = k < 3 ? p->scale_u + k * p->nu : p->hidden_u + (k - 3) * p->nu;
    const float *from_w = k < 3 ? p->scale_w + k * p->nw : p->hidden_w + (k - 3) * p->nw;
    float *copy_u = v->copies[2 * k], *copy_w = v->copies[2 * k + 1];
    if (t->vector) {
      *u = k < 3 ? p->scale_u + k * p->nw + e : ZEROS;
      *w = from_w + e;
    } else if (t->c >= BLOCK) {
      *u = from_u + group * t->y * t->c + at;
      *w = from_w + slice * t->c + c;
    } else if (long_slices(t)) {
      if (slice != v->slice) repeat(copy_w, from_w + slice * t->c, t->c);
      *u = from_u + group * t->y * t->c + at;
      *w = copy_w + c;
    } else {
      view_short(from_u, from_w, t, e, length, copy_u, copy_w);
      *u = copy_u;
      *w = copy_w;
    }
    if (k < 3) v->grad_u[k] = t->vector ? ONES : *u;
  }
  v->slice = slice;
}
