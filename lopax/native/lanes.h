/* Vectors of floats in the compiler's own notation (GCC and Clang), and what that lacks.

   Instructions are named where compilers do not find them in the generic form. */

#if defined(__AVX512F__) && defined(__AVX512DQ__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
typedef float Lanes __attribute__((vector_size(4 * LANES)));
typedef int32_t LanesInt __attribute__((vector_size(4 * LANES)));
typedef float Unaligned __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
#define INLINE static inline __attribute__((always_inline))
#define OUTLINE static __attribute__((noinline))
#define PRAGMA(text) _Pragma(#text)
#define UNROLLED(count) PRAGMA(GCC unroll count)

INLINE Lanes splat(float x) { return x - (Lanes){0}; }

/* `least` and `most` of a vector and a bound; NaN stays. `first`: the lanes before
   `count`, and zero. `near_root`: about 1 / sqrt(x), to eleven bits and more. */
#if LANES == 16
#include <immintrin.h>
INLINE Lanes least(Lanes x, float b) {
  return (Lanes)_mm512_min_ps((__m512)splat(b), (__m512)x);
}
INLINE Lanes most(Lanes x, float b) {
  return (Lanes)_mm512_max_ps((__m512)splat(b), (__m512)x);
}
INLINE __mmask16 before(int64_t count) { return (__mmask16)((1u << count) - 1u); }
INLINE Lanes load_first(const float *from, int64_t count) {
  return (Lanes)_mm512_maskz_loadu_ps(before(count), from);
}
INLINE void store_first(float *to, Lanes x, int64_t count) {
  _mm512_mask_storeu_ps(to, before(count), (__m512)x);
}
INLINE Lanes first(Lanes x, int64_t count) {
  return (Lanes)_mm512_maskz_mov_ps(before(count), (__m512)x);
}
INLINE Lanes near_root(Lanes x) { return (Lanes)_mm512_rsqrt14_ps((__m512)x); }
#else
INLINE LanesInt before(int64_t count) {
#if LANES == 8
  const LanesInt lane = {0, 1, 2, 3, 4, 5, 6, 7};
#else
  const LanesInt lane = {0, 1, 2, 3};
#endif
  return lane < (int32_t)count;
}
INLINE Lanes first(Lanes x, int64_t count) {
  return (Lanes)((LanesInt)x & before(count));
}
#if LANES == 8
#include <immintrin.h>
INLINE Lanes least(Lanes x, float b) {
  return (Lanes)_mm256_min_ps((__m256)splat(b), (__m256)x);
}
INLINE Lanes most(Lanes x, float b) {
  return (Lanes)_mm256_max_ps((__m256)splat(b), (__m256)x);
}
INLINE Lanes load_first(const float *from, int64_t count) {
  return (Lanes)_mm256_maskload_ps(from, (__m256i)before(count));
}
INLINE void store_first(float *to, Lanes x, int64_t count) {
  _mm256_maskstore_ps(to, (__m256i)before(count), (__m256)x);
}
INLINE Lanes near_root(Lanes x) { return (Lanes)_mm256_rsqrt_ps((__m256)x); }
#else
#ifdef __SSE2__
#include <immintrin.h>
INLINE Lanes least(Lanes x, float b) { return (Lanes)_mm_min_ps(splat(b), x); }
INLINE Lanes most(Lanes x, float b) { return (Lanes)_mm_max_ps(splat(b), x); }
#else
INLINE Lanes chosen(LanesInt which, Lanes x, Lanes other) {
  return (Lanes)(((LanesInt)x & which) | ((LanesInt)other & ~which));
}
INLINE Lanes least(Lanes x, float b) { return chosen(x > b, splat(b), x); }
INLINE Lanes most(Lanes x, float b) { return chosen(x < b, splat(b), x); }
#endif
INLINE Lanes load_first(const float *from, int64_t count) {
  Lanes x = {0};
  memcpy(&x, from, sizeof(float) * (size_t)count);
  return x;
}
INLINE void store_first(float *to, Lanes x, int64_t count) {
  memcpy(to, &x, sizeof(float) * (size_t)count);
}
#endif
#endif

/* The lanes at `from`, and zero behind the first `count` of them. */
INLINE Lanes load(const float *from, int64_t count) {
  if (count < LANES) return load_first(from, count);
  return *(const Unaligned *)from;
}

INLINE void store(float *to, Lanes x, int64_t count) {
  if (count >= LANES) *(Unaligned *)to = x;
  else store_first(to, x, count);
}

INLINE Lanes within(Lanes x, float bound) { return least(most(x, -bound), bound); }

INLINE Lanes rectified(Lanes x) { return most(x, 0.0f); }

/* 1 / sqrt(x) for x from 1e-36 to 1e37; an estimate with one step of Newton's. */
INLINE Lanes over_root(Lanes x) {
#if LANES > 4
  x = least(most(x, 1e-36f), 1e37f);
  Lanes y = near_root(x);
  return y * (1.5f - 0.5f * x * y * y);
#else
  Lanes y;
  for (int i = 0; i < LANES; i++) y[i] = 1.0f / sqrtf(x[i]);
  return y;
#endif
}

/* exp: 2^n 2^r, r from -1/2 to 1/2 (Cephes' polynomial). Adding 1.5 * 2^23 rounds to the
   nearest integer, which then is in the last bits. */
INLINE Lanes exponential(Lanes x) {
  x = within(x, 87.0f);
  Lanes n = x * 1.44269504f + 12582912.0f, r = x * 1.44269504f - (n - 12582912.0f);
  Lanes p = splat(1.535336188e-4f);
  p = p * r + 1.339887440e-3f;
  p = p * r + 9.618437358e-3f;
  p = p * r + 5.550332471e-2f;
  p = p * r + 2.402264791e-1f;
  p = p * r + 6.931472029e-1f;
  p = p * r + 1.0f;
  return (Lanes)((LanesInt)p + ((LanesInt)n << 23));
}

INLINE int any(LanesInt x) {
  int32_t found = 0;
  for (int i = 0; i < LANES; i++) found |= x[i];
  return found != 0;
}
