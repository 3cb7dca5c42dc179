// One step of a per-element rule for a batch of equally shaped tensors, on CPU.
//
// Same arithmetic as the plain rules (the tested reference; see kernels/elements.py for
// which they are), arranged so that a tensor is read three times and nothing of size
// [elements, channels] exists:
//   1. row and column means of the squared gradient, then the factored moments and
//      everything that depends on the row or the column only;
//   2. momenta and second moment, with the mean squares of the 18 per-element channels;
//   3. the MLP, whose first layer has the channels' normalisers folded in.
//
// A tensor is seen as [A, X, B, Y, C], X and Y being the two factored dimensions.
// "P" quantities vary over [A, X, B, C], "Q" quantities over [A, B, Y, C]. A vector is
// A = X = B = Y = 1 with its full second moment as P and without Q.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#if defined(__AVX__)
#include <immintrin.h>
#endif

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

constexpr int kWidth = 8;    // floats in a vector register
constexpr int kVectors = 2;  // registers worked on together
constexpr int kLanes = kWidth * kVectors;
constexpr int kChannels = 18;  // per-element channels
constexpr int kInputs = 30;    // those and the row's and column's
constexpr int kDecays = 3;
constexpr int kUnits = 4;  // of a hidden layer, worked on together
constexpr int64_t kParallelElements = 1 << 15;
constexpr int kMaxChunks = 16;

// Vectors of eight floats in the compiler's own notation (GCC and Clang); it becomes
// two registers where the processor has only four lanes.
typedef float Vec __attribute__((vector_size(kWidth * sizeof(float))));
typedef int32_t VecInt __attribute__((vector_size(kWidth * sizeof(int32_t))));

struct Lanes {
  Vec v[kVectors];
};

#define EACH_VECTOR _Pragma("GCC unroll 2") for (int u = 0; u < kVectors; ++u)

inline Vec splat(float x) { return x - Vec{}; }

#if defined(__AVX__)
inline Vec max(Vec x, Vec y) { return (Vec)_mm256_max_ps((__m256)x, (__m256)y); }
inline Vec min(Vec x, Vec y) { return (Vec)_mm256_min_ps((__m256)x, (__m256)y); }
// Twelve bits from the table and one Newton step: 23 bits for x in [1e-30, 1e30].
inline Vec rsqrt(Vec x) {
  const Vec y = (Vec)_mm256_rsqrt_ps((__m256)x);
  return y * (1.5f - 0.5f * x * y * y);
}
#else
inline Vec max(Vec x, Vec y) { return x > y ? x : y; }
inline Vec min(Vec x, Vec y) { return x < y ? x : y; }
inline Vec rsqrt(Vec x) {
  Vec y;
  for (int i = 0; i < kWidth; ++i) y[i] = 1.0f / std::sqrt(x[i]);
  return y;
}
#endif

inline float sum(Vec x) {
  float total = 0.0f;
  for (int i = 0; i < kWidth; ++i) total += x[i];
  return total;
}

struct Shape {
  int64_t a, x, b, y, c;
  int64_t elements() const { return a * x * b * y * c; }
  int64_t p() const { return a * x * b * c; }
  int64_t q() const { return a * b * y * c; }
  // Stretches of elements that are contiguous, with contiguous Q and either constant
  // (c == 1) or contiguous P.
  int64_t runs() const { return c > 1 ? a * x * b * y : a * x * b; }
  int64_t run_length() const { return c > 1 ? c : y; }
};

struct Run {
  int64_t element, p, q;
};

inline Run run_at(const Shape& s, int64_t r) {
  if (s.c > 1) {
    const int64_t y = r % s.y, axb = r / s.y;
    const int64_t b = axb % s.b, a = axb / (s.b * s.x);
    return {r * s.c, axb * s.c, ((a * s.b + b) * s.y + y) * s.c};
  }
  const int64_t b = r % s.b, a = r / (s.b * s.x);
  return {r * s.y, r, (a * s.b + b) * s.y};
}

struct Settings {
  float exp_mult, clip;
  float second_eps, channel_eps, vector_eps;  // see kernels/elements.py
  bool row_is_p, vector, by_size;
  float least, most;  // the root mean square counts as within these
  bool hold;          // no step for elements that never saw a gradient other than zero
};

// One per tensor: three decays of the momenta, three of the factored moments, one of
// the second moment.
struct Decays {
  float momentum[kDecays], factored[kDecays], second;
  explicit Decays(const float* d) : second(d[2 * kDecays]) {
    for (int k = 0; k < kDecays; ++k) {
      momentum[k] = d[k];
      factored[k] = d[kDecays + k];
    }
  }
};

// The MLP's arrays, flattened in this order: w0 [30, H], b0, w1, b1, w2 [H, 2], b2.
template <int H>
struct Rule {
  const float *w0, *b0, *w1, *b1, *w2, *b2;
  explicit Rule(const float* t)
      : w0(t), b0(w0 + kInputs * H), w1(b0 + H), b1(w1 + H * H), w2(b1 + H),
        b2(w2 + 2 * H) {}
  static constexpr int64_t size() { return kInputs * H + H + H * H + H + 2 * H + 2; }
};

// Rows of w0 for the per-element channels, in the order `channels` lists them.
constexpr int kElementRows[kChannels] = {0,  1,  2,  3,  4,  5,  6,  7,  8,
                                         9,  10, 11, 12, 13, 14, 27, 28, 29};
constexpr int kRow = 15, kCol = 18, kRowRsqrt = 21, kColRsqrt = 24;

inline float safe_rsqrt(float x) { return 1.0f / std::sqrt(std::max(x, 1e-9f)); }

inline Vec exp(Vec x) {
  x = min(max(x, splat(-87.0f)), splat(88.0f));
  // Adding and subtracting 1.5 * 2^23 rounds to the nearest integer.
  const Vec n = (x * 1.44269504089f + 12582912.0f) - 12582912.0f;
  const Vec r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Vec y = splat(1.9875691500e-4f);
  y = y * r + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * r * r + r + 1.0f;
  return y * (Vec)((__builtin_convertvector(n, VecInt) + 127) << 23);
}

typedef Vec Unaligned __attribute__((aligned(sizeof(float)), may_alias));

inline VecInt first_lanes(int count) {
  const VecInt lane = {0, 1, 2, 3, 4, 5, 6, 7};
  return lane < count;
}

// `count` floats from memory, zero behind them; nothing behind them is touched.
inline Vec load_part(const float* from, int count) {
  if (count >= kWidth) return *reinterpret_cast<const Unaligned*>(from);
  if (count <= 0) return Vec{};
#if defined(__AVX__)
  return (Vec)_mm256_maskload_ps(from, (__m256i)first_lanes(count));
#else
  Vec x{};
  for (int i = 0; i < count; ++i) x[i] = from[i];
  return x;
#endif
}

inline void store_part(Vec x, float* to, int count) {
  if (count >= kWidth) {
    *reinterpret_cast<Unaligned*>(to) = x;
  } else if (count > 0) {
#if defined(__AVX__)
    _mm256_maskstore_ps(to, (__m256i)first_lanes(count), (__m256)x);
#else
    for (int i = 0; i < count; ++i) to[i] = x[i];
#endif
  }
}

inline void load(const float* from, int count, Lanes& to) {
  EACH_VECTOR to.v[u] = load_part(from + u * kWidth, count - u * kWidth);
}

inline void store(const Lanes& from, int count, float* to) {
  EACH_VECTOR store_part(from.v[u], to + u * kWidth, count - u * kWidth);
}

// Zero in the lanes behind `count`.
inline void blank(int count, Lanes& x) {
  if (count == kLanes) return;
  EACH_VECTOR x.v[u] = (Vec)((VecInt)x.v[u] & first_lanes(count - u * kWidth));
}

inline void clip(Lanes& g, float bound) {
  EACH_VECTOR g.v[u] = min(max(g.v[u], splat(-bound)), splat(bound));
}

// Runs chunks 0..count-1, on the caller's thread and on whatever pool threads come
// free. Helpers that start late find no chunk left; the shared state outlives them.
template <typename F>
void parallel(ffi::ThreadPool& pool, int64_t count, const F& work) {
  const int64_t helpers = std::min<int64_t>(pool.num_threads(), count) - 1;
  if (helpers <= 0) {
    for (int64_t i = 0; i < count; ++i) work(i);
    return;
  }
  struct Shared {
    std::atomic<int64_t> next{0}, finished{0};
  };
  auto shared = std::make_shared<Shared>();
  auto drain = [shared, count, &work]() {
    for (;;) {
      const int64_t i = shared->next.fetch_add(1);
      if (i >= count) return;
      work(i);
      shared->finished.fetch_add(1, std::memory_order_release);
    }
  };
  for (int64_t h = 0; h < helpers; ++h) pool.Schedule(decltype(drain)(drain));
  drain();
  while (shared->finished.load(std::memory_order_acquire) < count) {
    std::this_thread::yield();
  }
}

struct Tensor {
  const float *grad, *param, *momenta, *second, *p_state, *q_state;
  float *delta, *momenta_out, *second_out, *p_out, *q_out;
};

// Everything that varies over rows or columns only, for one tensor.
template <int H>
struct Factors {
  std::vector<float> storage;
  float *p_scale[kDecays], *q_scale[kDecays], *p_hidden[H], *q_hidden[H];
  float *m_scale[kDecays];  // P-side scale of the momenta: p_scale, but for vectors
  float* scratch;
  Factors(int64_t p, int64_t q, bool vector)
      : storage((kDecays + H) * (p + q) + std::max(p, q) +
                (vector ? kDecays * p : 0)) {
    float* at = storage.data();
    for (int k = 0; k < kDecays; ++k) p_scale[k] = at, at += p;
    for (int k = 0; k < kDecays; ++k) q_scale[k] = at, at += q;
    for (int j = 0; j < H; ++j) p_hidden[j] = at, at += p;
    for (int j = 0; j < H; ++j) q_hidden[j] = at, at += q;
    scratch = at, at += std::max(p, q);
    for (int k = 0; k < kDecays; ++k) m_scale[k] = vector ? at + k * p : p_scale[k];
  }
};

// Sums of g^2 + 1e-30 over the other factored dimension, for a range of runs.
void square_sums(const Shape& s, const Settings& set, const float* grad, int64_t from,
                 int64_t to, float* p_sum, float* q_sum) {
  const int64_t length = s.run_length();
  for (int64_t r = from; r < to; ++r) {
    const Run run = run_at(s, r);
    Lanes row{};
    for (int64_t at = 0; at < length; at += kLanes) {
      const int count = static_cast<int>(std::min<int64_t>(kLanes, length - at));
      Lanes g, q;
      load(grad + run.element + at, count, g);
      clip(g, set.clip);
      EACH_VECTOR g.v[u] = g.v[u] * g.v[u] + 1e-30f;
      blank(count, g);
      load(q_sum + run.q + at, count, q);
      EACH_VECTOR q.v[u] += g.v[u];
      store(q, count, q_sum + run.q + at);
      if (s.c > 1) {
        Lanes p;
        load(p_sum + run.p + at, count, p);
        EACH_VECTOR p.v[u] += g.v[u];
        store(p, count, p_sum + run.p + at);
      } else {
        EACH_VECTOR row.v[u] += g.v[u];
      }
    }
    if (s.c == 1) {
      EACH_VECTOR p_sum[run.p] += sum(row.v[u]);
    }
  }
}

// hidden[j] += w0[row][j] * value, normalised, for one small channel of n entries.
template <int H>
void add_hidden(const Rule<H>& rule, float eps, int row, int64_t n, const float* value,
                float* const* hidden) {
  double total = 0.0;
  for (int64_t i = 0; i < n; ++i) total += value[i] * value[i];
  const float scale =
      static_cast<float>(1.0 / std::sqrt(eps + total / static_cast<double>(n)));
  for (int j = 0; j < H; ++j) {
    const float w = rule.w0[row * H + j] * scale;
    float* h = hidden[j];
    for (int64_t i = 0; i < n; ++i) h[i] += w * value[i];
  }
}

// The moments [3, n] of one side and their reciprocal roots, as channels.
template <int H>
void add_moments(const Rule<H>& rule, float eps, int row, int rsqrt_row, int64_t n,
                 const float* moments, float* scratch, float* const* hidden) {
  for (int k = 0; k < kDecays; ++k) {
    const float* value = moments + k * n;
    add_hidden(rule, eps, row + k, n, value, hidden);
    for (int64_t i = 0; i < n; ++i) scratch[i] = 1.0f / std::sqrt(value[i] + 1e-8f);
    add_hidden(rule, eps, rsqrt_row + k, n, scratch, hidden);
  }
}

// Factored moments from the sums, their scales, and their part of the first layer.
template <int H>
void update_factors(const Shape& s, const Settings& set, const Decays& decays,
                    const Rule<H>& rule, const Tensor& t, const float* p_sum,
                    const float* q_sum, Factors<H>& f) {
  const int64_t np = s.p(), nq = set.vector ? 0 : s.q();
  const float p_mean = set.vector ? 1.0f : 1.0f / static_cast<float>(s.y);
  const float q_mean = 1.0f / static_cast<float>(s.x);
  for (int k = 0; k < kDecays; ++k) {
    const float d = decays.factored[k];
    for (int64_t i = 0; i < np; ++i) {
      t.p_out[k * np + i] = d * t.p_state[k * np + i] + (1.0f - d) * p_sum[i] * p_mean;
    }
    for (int64_t i = 0; i < nq; ++i) {
      t.q_out[k * nq + i] = d * t.q_state[k * nq + i] + (1.0f - d) * q_sum[i] * q_mean;
    }
    if (set.vector) {
      for (int64_t i = 0; i < np; ++i) {
        f.p_scale[k][i] = safe_rsqrt(t.p_out[k * np + i] + 1e-9f);
        f.m_scale[k][i] = 1.0f / std::sqrt(t.p_out[k * np + i] + set.vector_eps);
        f.q_scale[k][i] = 1.0f;
      }
      continue;
    }
    const float* row = (set.row_is_p ? t.p_out + k * np : t.q_out + k * nq);
    const float* col = (set.row_is_p ? t.q_out + k * nq : t.p_out + k * np);
    float* row_scale = set.row_is_p ? f.p_scale[k] : f.q_scale[k];
    float* col_scale = set.row_is_p ? f.q_scale[k] : f.p_scale[k];
    // The row moment is averaged over its remaining factored dimension: [outer, dim,
    // inner] is P as [A, X, B*C] or Q as [A*B, Y, C].
    const int64_t outer = set.row_is_p ? s.a : s.a * s.b;
    const int64_t dim = set.row_is_p ? s.x : s.y;
    const int64_t inner = set.row_is_p ? s.b * s.c : s.c;
    for (int64_t o = 0; o < outer; ++o) {
      for (int64_t i = 0; i < inner; ++i) {
        const int64_t base = o * dim * inner + i;
        double total = 0.0;
        for (int64_t m = 0; m < dim; ++m) total += row[base + m * inner];
        const float mean = static_cast<float>(total / static_cast<double>(dim)) + 1e-9f;
        for (int64_t m = 0; m < dim; ++m) {
          row_scale[base + m * inner] = safe_rsqrt(row[base + m * inner] / mean);
        }
      }
    }
    const int64_t cols = set.row_is_p ? nq : np;
    for (int64_t i = 0; i < cols; ++i) col_scale[i] = safe_rsqrt(col[i]);
  }
  for (int j = 0; j < H; ++j) {
    std::fill(f.p_hidden[j], f.p_hidden[j] + np, rule.b0[j]);
    std::fill(f.q_hidden[j], f.q_hidden[j] + (set.vector ? np : nq), 0.0f);
  }
  const int p_first = set.row_is_p ? kRow : kCol;
  const int p_rsqrt = set.row_is_p ? kRowRsqrt : kColRsqrt;
  const int q_first = kRow + kCol - p_first;
  const int q_rsqrt = kRowRsqrt + kColRsqrt - p_rsqrt;
  add_moments(rule, set.channel_eps, p_first, p_rsqrt, np, t.p_out, f.scratch, f.p_hidden);
  if (set.vector) {
    add_moments(rule, set.channel_eps, q_first, q_rsqrt, np, t.p_out, f.scratch, f.p_hidden);
  } else {
    add_moments(rule, set.channel_eps, q_first, q_rsqrt, nq, t.q_out, f.scratch, f.q_hidden);
  }
}

struct Element {
  Lanes grad, param, momenta[kDecays], second;
};

// The 18 per-element channels of a block of lanes.
template <int H>
inline void channels(const Shape& s, float second_eps, const Factors<H>& f,
                     const Run& run, int64_t at, int count, const Element& e,
                     Lanes* out) {
  Lanes scaling;
  EACH_VECTOR {
    const Vec g = e.grad.v[u];
    scaling.v[u] = rsqrt(e.second.v[u] + second_eps);
    out[0].v[u] = g;
    out[1].v[u] = min(max(g, splat(-0.1f)), splat(0.1f));
    out[2].v[u] = e.param.v[u];
    out[6].v[u] = e.second.v[u];
    out[10].v[u] = scaling.v[u];
    out[14].v[u] = g * scaling.v[u];
  }
#pragma GCC unroll 3
  for (int k = 0; k < kDecays; ++k) {
    Lanes scale, p, pm;
    load(f.q_scale[k] + run.q + at, count, scale);
    if (s.c > 1) {
      load(f.p_scale[k] + run.p + at, count, p);
      load(f.m_scale[k] + run.p + at, count, pm);
    } else {
      EACH_VECTOR {
        p.v[u] = splat(f.p_scale[k][run.p]);
        pm.v[u] = splat(f.m_scale[k][run.p]);
      }
    }
    EACH_VECTOR {
      const Vec m = e.momenta[k].v[u];
      out[3 + k].v[u] = m;
      out[7 + k].v[u] = m * scaling.v[u];
      out[11 + k].v[u] = e.grad.v[u] * (scale.v[u] * p.v[u]);
      out[15 + k].v[u] = m * (scale.v[u] * pm.v[u]);
    }
  }
}

// The part of an element that both passes read from the caller.
inline void load_inputs(const Tensor& t, float bound, int64_t at, int count,
                        Element& e) {
  load(t.grad + at, count, e.grad);
  clip(e.grad, bound);
  load(t.param + at, count, e.param);
}

// Momenta and second moment of a range of runs, and sums of squares per channel.
template <int H>
void update_moments(const Shape& s, const Settings& set, const Decays& decays,
                    const Tensor& t, const Factors<H>& f, int64_t from, int64_t to,
                    double* sums) {
  const int64_t n = s.elements(), length = s.run_length();
  // Summed in single precision for a while, then in double.
  Vec acc[kChannels] = {};
  int since = 0;
  const auto flush = [&]() {
    for (int c = 0; c < kChannels; ++c) {
      sums[c] += sum(acc[c]);
      acc[c] = Vec{};
    }
    since = 0;
  };
  for (int64_t r = from; r < to; ++r) {
    const Run run = run_at(s, r);
    for (int64_t at = 0; at < length; at += kLanes) {
      const int count = static_cast<int>(std::min<int64_t>(kLanes, length - at));
      const int64_t e0 = run.element + at;
      Element e;
      load_inputs(t, set.clip, e0, count, e);
      for (int k = 0; k < kDecays; ++k) {
        const float d = decays.momentum[k];
        load(t.momenta + k * n + e0, count, e.momenta[k]);
        EACH_VECTOR {
          e.momenta[k].v[u] = d * e.momenta[k].v[u] + (1.0f - d) * e.grad.v[u];
        }
        store(e.momenta[k], count, t.momenta_out + k * n + e0);
      }
      load(t.second + e0, count, e.second);
      EACH_VECTOR {
        const Vec g = e.grad.v[u];
        e.second.v[u] = decays.second * e.second.v[u] + (1.0f - decays.second) * (g * g);
      }
      store(e.second, count, t.second_out + e0);
      Lanes ch[kChannels];
      channels(s, set.second_eps, f, run, at, count, e, ch);
      blank(count, ch[10]);  // the one channel that is not zero for zero input
#pragma GCC unroll 18
      for (int c = 0; c < kChannels; ++c) {
        EACH_VECTOR acc[c] += ch[c].v[u] * ch[c].v[u];
      }
      if (++since == 128) flush();
    }
  }
  flush();
}

// The MLP over a range of runs; `w0` is [18][H] with the normalisers folded in.
template <int H>
void apply_rule(const Shape& s, const Settings& set, const Rule<H>& rule,
                const Tensor& t, const Factors<H>& f, const float (*w0)[H],
                float scale, int64_t from, int64_t to) {
  const int64_t n = s.elements(), length = s.run_length();
  for (int64_t r = from; r < to; ++r) {
    const Run run = run_at(s, r);
    for (int64_t at = 0; at < length; at += kLanes) {
      const int count = static_cast<int>(std::min<int64_t>(kLanes, length - at));
      const int64_t e0 = run.element + at;
      Element e;
      load_inputs(t, set.clip, e0, count, e);
      for (int k = 0; k < kDecays; ++k) {
        load(t.momenta_out + k * n + e0, count, e.momenta[k]);
      }
      load(t.second_out + e0, count, e.second);
      Lanes ch[kChannels];
      channels(s, set.second_eps, f, run, at, count, e, ch);
      Lanes h[H], h2[H], out;
      // Four units at a time: their sums stay in registers.
#pragma GCC unroll 2
      for (int first = 0; first < H; first += kUnits) {
        Lanes part[kUnits];
#pragma GCC unroll 4
        for (int j = 0; j < kUnits; ++j) {
          Lanes p;
          load(f.q_hidden[first + j] + run.q + at, count, part[j]);
          if (s.c > 1) {
            load(f.p_hidden[first + j] + run.p + at, count, p);
          } else {
            EACH_VECTOR p.v[u] = splat(f.p_hidden[first + j][run.p]);
          }
          EACH_VECTOR part[j].v[u] += p.v[u];
        }
#pragma GCC unroll 18
        for (int c = 0; c < kChannels; ++c) {
#pragma GCC unroll 4
          for (int j = 0; j < kUnits; ++j) {
            EACH_VECTOR part[j].v[u] += w0[c][first + j] * ch[c].v[u];
          }
        }
#pragma GCC unroll 4
        for (int j = 0; j < kUnits; ++j) {
          EACH_VECTOR h[first + j].v[u] = max(part[j].v[u], Vec{});
        }
      }
#pragma GCC unroll 2
      for (int first = 0; first < H; first += kUnits) {
        Lanes part[kUnits];
#pragma GCC unroll 4
        for (int j = 0; j < kUnits; ++j) {
          EACH_VECTOR part[j].v[u] = splat(rule.b1[first + j]);
        }
#pragma GCC unroll 8
        for (int c = 0; c < H; ++c) {
#pragma GCC unroll 4
          for (int j = 0; j < kUnits; ++j) {
            EACH_VECTOR part[j].v[u] += rule.w1[c * H + first + j] * h[c].v[u];
          }
        }
#pragma GCC unroll 4
        for (int j = 0; j < kUnits; ++j) {
          EACH_VECTOR h2[first + j].v[u] = max(part[j].v[u], Vec{});
        }
      }
      EACH_VECTOR {
        Vec direction = splat(rule.b2[0]);
#pragma GCC unroll 8
        for (int c = 0; c < H; ++c) direction += rule.w2[c * 2] * h2[c].v[u];
        out.v[u] = -direction * scale;
      }
      if (set.exp_mult != 0.0f) {
        EACH_VECTOR {
          Vec magnitude = splat(rule.b2[1]);
#pragma GCC unroll 8
          for (int c = 0; c < H; ++c) magnitude += rule.w2[c * 2 + 1] * h2[c].v[u];
          out.v[u] *= exp(set.exp_mult * magnitude);
        }
      }
      if (set.hold) {
        EACH_VECTOR {
          const VecInt reached = (e.momenta[0].v[u] != 0.0f) | (e.momenta[1].v[u] != 0.0f) |
                                 (e.momenta[2].v[u] != 0.0f) | (e.second.v[u] != 0.0f);
          out.v[u] = (Vec)((VecInt)out.v[u] & reached);
        }
      }
      store(out, count, t.delta + e0);
    }
  }
}

template <int H>
void step_tensor(const Shape& s, const Settings& set, const Decays& decays,
                 const Rule<H>& rule, float context, const Tensor& t,
                 ffi::ThreadPool& pool, bool may_split) {
  const int64_t n = s.elements(), np = s.p(), nq = set.vector ? np : s.q();
  // The number of chunks depends on the shape alone, so sums are reproducible.
  const int64_t runs = s.runs();
  const int64_t chunks =
      may_split && n >= kParallelElements ? std::min<int64_t>(kMaxChunks, runs) : 1;
  const auto begin = [&](int64_t i) { return runs * i / chunks; };

  Factors<H> f(np, nq, set.vector);
  std::vector<float> sums(chunks * (np + nq), 0.0f);
  if (set.vector) {
    for (int64_t i = 0; i < n; ++i) {
      const float g = std::min(std::max(t.grad[i], -set.clip), set.clip);
      sums[i] = g * g + 1e-30f;
    }
  } else {
    parallel(pool, chunks, [&](int64_t i) {
      float* p = sums.data() + i * (np + nq);
      square_sums(s, set, t.grad, begin(i), begin(i + 1), p, p + np);
    });
    for (int64_t i = 1; i < chunks; ++i) {
      const float* part = sums.data() + i * (np + nq);
      for (int64_t j = 0; j < np + nq; ++j) sums[j] += part[j];
    }
  }
  update_factors(s, set, decays, rule, t, sums.data(), sums.data() + np, f);

  std::vector<double> squares(chunks * kChannels, 0.0);
  parallel(pool, chunks, [&](int64_t i) {
    update_moments(s, set, decays, t, f, begin(i), begin(i + 1), &squares[i * kChannels]);
  });
  float w0[kChannels][H];
  double param_square = 0.0;
  for (int c = 0; c < kChannels; ++c) {
    double total = 0.0;
    for (int64_t i = 0; i < chunks; ++i) total += squares[i * kChannels + c];
    total /= static_cast<double>(n);
    if (c == 2) param_square = total;
    const float scale = static_cast<float>(1.0 / std::sqrt(set.channel_eps + total));
    for (int j = 0; j < H; ++j) {
      w0[c][j] = rule.w0[kElementRows[c] * H + j] * scale;
    }
  }
  if (set.by_size && !std::isfinite(param_square)) {
    // Squares left float's range: once more, in double.
    param_square = 0.0;
    for (int64_t i = 0; i < n; ++i) {
      const double x = t.param[i];
      param_square += x * x;
    }
    param_square /= static_cast<double>(n);
  }
  const double rms = std::sqrt(param_square + 1e-9);
  const double size = set.by_size ? std::clamp<double>(rms, set.least, set.most) : 1.0;
  const float scale = context * static_cast<float>(size);
  parallel(pool, chunks, [&](int64_t i) {
    apply_rule(s, set, rule, t, f, w0, scale, begin(i), begin(i + 1));
  });
}

void keep_tensor(const Shape& s, const Settings& set, const Tensor& t) {
  const int64_t n = s.elements(), np = s.p(), nq = set.vector ? 0 : s.q();
  std::fill(t.delta, t.delta + n, 0.0f);
  const auto copy = [](const float* from, int64_t count, float* to) {
    if (from != to) std::memcpy(to, from, count * sizeof(float));
  };
  copy(t.momenta, kDecays * n, t.momenta_out);
  copy(t.second, n, t.second_out);
  copy(t.p_state, kDecays * np, t.p_out);
  copy(t.q_state, kDecays * nq, t.q_out);
}

using In = ffi::Buffer<ffi::F32>;
using Out = ffi::ResultBuffer<ffi::F32>;

struct Buffers {
  const In &grad, &param, &momenta, &second, &p_state, &q_state, &net, &decays,
      &context, &finite;
  Out &delta, &momenta_out, &second_out, &p_out, &q_out;
};

template <int H>
ffi::Error step_batch(ffi::ThreadPool& pool, const Shape& shape, const Settings& set,
                      const Buffers& b) {
  const int64_t n = shape.elements();
  const int64_t np = shape.p(), nq = set.vector ? 0 : shape.q();
  const int64_t batch = static_cast<int64_t>(b.context.element_count());
  constexpr int64_t net_size = Rule<H>::size(), num_decays = 2 * kDecays + 1;
  const auto is = [&](const In& buffer, int64_t each) {
    return static_cast<int64_t>(buffer.element_count()) == batch * each;
  };
  if (!is(b.grad, n) || !is(b.param, n) || !is(b.momenta, kDecays * n) ||
      !is(b.second, n) || !is(b.p_state, kDecays * np) ||
      (!set.vector && !is(b.q_state, kDecays * nq)) || !is(b.net, net_size) ||
      !is(b.decays, num_decays) || !is(b.finite, 1)) {
    return ffi::Error::InvalidArgument("elements: sizes do not fit the dims");
  }
  const auto one = [&](int64_t i) {
    const Tensor t{b.grad.typed_data() + i * n,
                   b.param.typed_data() + i * n,
                   b.momenta.typed_data() + i * kDecays * n,
                   b.second.typed_data() + i * n,
                   b.p_state.typed_data() + i * kDecays * np,
                   b.q_state.typed_data() + i * kDecays * nq,
                   b.delta->typed_data() + i * n,
                   b.momenta_out->typed_data() + i * kDecays * n,
                   b.second_out->typed_data() + i * n,
                   b.p_out->typed_data() + i * kDecays * np,
                   b.q_out->typed_data() + i * kDecays * nq};
    if (b.finite.typed_data()[i] == 0.0f) {
      keep_tensor(shape, set, t);
    } else {
      step_tensor(shape, set, Decays(b.decays.typed_data() + i * num_decays),
                  Rule<H>(b.net.typed_data() + i * net_size),
                  b.context.typed_data()[i], t, pool, batch == 1);
    }
  };
  if (batch == 1) {
    one(0);
  } else {
    const int64_t chunks = batch * n < kParallelElements
                               ? 1
                               : std::min<int64_t>(batch, kMaxChunks);
    parallel(pool, chunks, [&](int64_t i) {
      for (int64_t j = batch * i / chunks; j < batch * (i + 1) / chunks; ++j) one(j);
    });
  }
  return ffi::Error::Success();
}

ffi::Error Step(ffi::ThreadPool pool, In grad, In param, In momenta, In second,
                In p_state, In q_state, In net, In decays, In context, In finite,
                Out delta, Out momenta_out, Out second_out, Out p_out, Out q_out,
                ffi::Span<const int64_t> dims, int64_t hidden, float exp_mult,
                float grad_clip, float second_eps, float channel_eps, float vector_eps,
                bool by_size, float least, float most, bool hold, bool row_is_p,
                bool vector) {
  if (dims.size() != 5) {
    return ffi::Error::InvalidArgument("elements: expected 5 dims");
  }
  const Shape shape{dims[0], dims[1], dims[2], dims[3], dims[4]};
  const Settings set{exp_mult,   grad_clip, second_eps, channel_eps,
                     vector_eps, row_is_p,  vector,     by_size,
                     least,      most,      hold};
  const Buffers b{grad, param, momenta, second, p_state, q_state, net, decays, context,
                  finite, delta, momenta_out, second_out, p_out, q_out};
  switch (hidden) {
    case 4: return step_batch<4>(pool, shape, set, b);
    case 8: return step_batch<8>(pool, shape, set, b);
    case 32: return step_batch<32>(pool, shape, set, b);
  }
  return ffi::Error::InvalidArgument("elements: no code for this width");
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(LopaxElementStep, Step,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<In>()
                                  .Arg<In>()
                                  .Arg<In>()
                                  .Arg<In>()
                                  .Arg<In>()
                                  .Arg<In>()
                                  .Arg<In>()
                                  .Arg<In>()
                                  .Arg<In>()
                                  .Arg<In>()
                                  .Ret<In>()
                                  .Ret<In>()
                                  .Ret<In>()
                                  .Ret<In>()
                                  .Ret<In>()
                                  .Attr<ffi::Span<const int64_t>>("dims")
                                  .Attr<int64_t>("hidden")
                                  .Attr<float>("exp_mult")
                                  .Attr<float>("grad_clip")
                                  .Attr<float>("second_eps")
                                  .Attr<float>("channel_eps")
                                  .Attr<float>("vector_eps")
                                  .Attr<bool>("by_size")
                                  .Attr<float>("least")
                                  .Attr<float>("most")
                                  .Attr<bool>("hold")
                                  .Attr<bool>("row_is_p")
                                  .Attr<bool>("vector"));
