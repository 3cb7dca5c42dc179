// The C core of element networks as an XLA FFI call: one tensor, or a batch of tensors
// of one shape with networks of their own. Only sizes are checked and tables filled here.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "tables.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

using Prepare = int64_t (*)(Tensor*);
using Finish = int (*)(Tensor*, int64_t, float, int, Parallel, void*);

// The core for each width of the network, as Python has loaded it.
constexpr int kWidest = 256;
std::atomic<Prepare> prepare_of[kWidest];
std::atomic<Finish> finish_of[kWidest];

// A `Parallel` on XLA's threads: the caller's, and whatever others come free. Helpers
// that start late find no unit left; the shared state outlives them.
void with_pool(void* pool, int64_t count, Work work, void* job) {
  struct Shared {
    std::atomic<int64_t> next{0}, finished{0};
  };
  auto& threads = *static_cast<ffi::ThreadPool*>(pool);
  const int64_t helpers = std::min<int64_t>(threads.num_threads(), count) - 1;
  auto shared = std::make_shared<Shared>();
  auto drain = [shared, count, work, job]() {
    for (int64_t i; (i = shared->next.fetch_add(1)) < count;) {
      work(job, i);
      shared->finished.fetch_add(1, std::memory_order_release);
    }
  };
  for (int64_t h = 0; h < helpers; ++h) threads.Schedule(decltype(drain)(drain));
  drain();
  while (shared->finished.load(std::memory_order_acquire) < count) {
    std::this_thread::yield();
  }
}

// Scratch memory for one call. Where it is little, a thread keeps it: fresh memory costs
// more than what is done in it.
class Scratch {
 public:
  explicit Scratch(int64_t floats) {
    thread_local std::unique_ptr<float[]> kept;
    thread_local int64_t size = 0;
    if (floats > kMostKept) {
      own_.reset(new float[floats]);
    } else if (floats > size) {
      kept.reset(new float[floats]);
      size = floats;
    }
    at = own_ ? own_.get() : kept.get();
  }
  float* at;

 private:
  static constexpr int64_t kMostKept = 1 << 21;
  std::unique_ptr<float[]> own_;
};

using In = ffi::Buffer<ffi::F32>;
using Out = ffi::ResultBuffer<ffi::F32>;
using Ints = ffi::Span<const int64_t>;
using Floats = ffi::Span<const float>;

// `dims`: hidden, rows of w0, a, x, b, y, c, row_over_x, vector. `flags` and `reals`:
// the rule's, and then the least and the most size of the tensor.
ffi::Error Step(ffi::ThreadPool pool, In grad, In param, In momenta, In second, In row,
                In col, In w0, In b0, In w1, In b1, In w2, In b2, In decays, In scale,
                In finite, Out delta, Out momenta_out, Out second_out, Out row_out,
                Out col_out, Out looked, Ints dims, Ints slots, Ints flags, Floats reals) {
  if (dims.size() != 9 || slots.size() != INPUTS || flags.size() != 4 ||
      reals.size() != 7 || dims[0] < 1 || dims[0] >= kWidest) {
    return ffi::Error::InvalidArgument("elements: another number of attributes");
  }
  const int64_t h = dims[0], rows = dims[1];
  const Prepare prepare = prepare_of[h].load();
  const Finish finish = finish_of[h].load();
  if (!prepare || !finish) {
    return ffi::Error::InvalidArgument("elements: no code for this width");
  }
  Rule rule{};
  for (int i = 0; i < INPUTS; ++i) {
    if (slots[i] >= rows) return ffi::Error::InvalidArgument("elements: no such row");
    rule.slots[i] = static_cast<int32_t>(slots[i]);
  }
  rule.outputs = flags[0], rule.per_matrix = flags[1], rule.by_size = flags[2];
  rule.hold = flags[3];
  rule.exp_mult = reals[0], rule.limit = reals[1], rule.second_eps = reals[2];
  rule.channel_eps = reals[3], rule.vector_eps = reals[4];
  Tensor one{};
  one.rule = &rule;
  one.a = dims[2], one.x = dims[3], one.b = dims[4], one.y = dims[5], one.c = dims[6];
  one.row_over_x = dims[7], one.vector = dims[8];
  one.least = reals[5], one.most = reals[6], one.lr = 1.0f, one.unreached = -1;
  one.guard = 1;
  const int64_t need = prepare(&one), n = one.n;
  const int64_t lack_x = one.x ? n / one.x : 0, lack_y = one.y ? n / one.y : 0;
  const int64_t nrow = one.vector ? n : one.row_over_x ? lack_x : lack_y;
  const int64_t ncol = one.vector ? 0 : one.row_over_x ? lack_y : lack_x;
  const int64_t batch = static_cast<int64_t>(scale.element_count());
  const struct {
    const In& buffer;
    int64_t each;
  } expected[] = {{grad, n},          {param, n},
                  {momenta, 3 * n},   {second, n},
                  {row, 3 * nrow},    {col, 3 * ncol},
                  {w0, rows * h},     {b0, h},
                  {w1, h * h},        {b1, h},
                  {w2, h * rule.outputs}, {b2, rule.outputs},
                  {decays, 2 * DECAYS + 1}, {finite, 1}};
  for (const auto& e : expected) {
    if (static_cast<int64_t>(e.buffer.element_count()) != batch * e.each) {
      return ffi::Error::InvalidArgument("elements: sizes do not fit the dims");
    }
  }
  const Scratch scratch(batch * need);
  std::vector<Tensor> tensors;
  for (int64_t i = 0; i < batch; ++i) {
    Tensor t = one;
    const auto at = [i](const In& x, int64_t each) { return x.typed_data() + i * each; };
    // XLA lets the state's results be its operands; where it does not, they are copied.
    const auto kept = [i](const In& from, Out& to, int64_t each) {
      float* target = to->typed_data() + i * each;
      const float* source = from.typed_data() + i * each;
      if (target != source) std::memcpy(target, source, each * sizeof(float));
      return target;
    };
    t.momenta = kept(momenta, momenta_out, 3 * n);
    t.second = kept(second, second_out, n);
    t.row = kept(row, row_out, 3 * nrow);
    t.col = kept(col, col_out, 3 * ncol);
    t.out = delta->typed_data() + i * n;
    if (*at(finite, 1) == 0.0f) {
      std::fill(t.out, t.out + n, 0.0f);
      continue;
    }
    t.grad = at(grad, n);
    t.param = const_cast<float*>(at(param, n));  // only read: `out` is another
    t.w0 = at(w0, rows * h), t.b0 = at(b0, h), t.w1 = at(w1, h * h), t.b1 = at(b1, h);
    t.w2 = at(w2, h * rule.outputs), t.b2 = at(b2, rule.outputs);
    t.decays = at(decays, 2 * DECAYS + 1), t.scale = *at(scale, 1);
    t.scratch = scratch.at + i * need;
    tensors.push_back(t);
  }
  finish(tensors.data(), static_cast<int64_t>(tensors.size()), 0.0f, 0, with_pool, &pool);
  std::fill(looked->typed_data(), looked->typed_data() + batch, 0.0f);
  for (const Tensor& t : tensors)
    if (t.guard == 2) looked->typed_data()[(t.out - delta->typed_data()) / n] = NAN;
  return ffi::Error::Success();
}

}  // namespace

// Makes the core for one width known; both are functions of `elements.c`.
extern "C" void elements_register(int64_t hidden, void* prepare, void* finish) {
  if (hidden < 1 || hidden >= kWidest) return;
  prepare_of[hidden] = reinterpret_cast<Prepare>(prepare);
  finish_of[hidden] = reinterpret_cast<Finish>(finish);
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    LopaxElementStep, Step,
    ffi::Ffi::Bind()
        .Ctx<ffi::ThreadPool>()
        .Arg<In>().Arg<In>().Arg<In>().Arg<In>().Arg<In>().Arg<In>().Arg<In>().Arg<In>()
        .Arg<In>().Arg<In>().Arg<In>().Arg<In>().Arg<In>().Arg<In>().Arg<In>()
        .Ret<In>().Ret<In>().Ret<In>().Ret<In>().Ret<In>().Ret<In>()
        .Attr<Ints>("dims").Attr<Ints>("slots").Attr<Ints>("flags")
        .Attr<Floats>("reals"));
