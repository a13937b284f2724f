// Gradients of linear attention with a diagonal plus low rank erase on the CPU. State columns do not mix, so a
// strip of them goes through a chunk by itself: the states before every token are computed again from the one
// saved at the chunk's start, then the gradient of the state comes back through them. README.md has the
// equations.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/linear_attention/kernel_cpu_dplr_backward.cc"
#include "ops/simd/targets.h"

#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "ops/linear_attention/dplr-inl.h"
#include "ops/linear_attention/kernel_dplr.h"

HWY_BEFORE_NAMESPACE();
namespace weft::kernels {
namespace HWY_NAMESPACE {

// Value channels of a strip, a multiple of four, and key channels of a vector.
constexpr int64_t kRows = 8, kLanes = hn::MaxLanes(Floats());

// The places of a key channel's inputs and of its sums over value channels, for one token. `kDQ` collects what
// reads the state before the token.
enum KeyKind { kQ, kK, kA, kB, kDecay, kKeyKinds };
enum SumKind { kDQ, kDK, kDA, kDB, kDDecay, kSumKinds };
// The same of a value channel: scale dy, write v, what a recalls, and the gradients of the last two.
enum ValueKind { kDY, kValue, kRecalled, kDValue, kDRecalled, kValueKinds };

// Scratch of one thread. All of a strip and a vector of key channels lies together, so that the loops over
// value channels need one pointer. Channels beyond K and V are zero.
struct DplrWorkspace {
  int64_t groups, strips;  // vectors of key channels, strips of value channels
  float *keys, *sums;      // [C, groups, kinds, kLanes]
  float* values;           // [C, strips, kinds, kRows]
  float *state, *dstate;   // [strips, groups, kRows, kLanes]: before the chunk; the gradient
  float* history;          // [C, groups, kRows, kLanes]: a strip before every token
  int64_t floats = 0;

  DplrWorkspace(const DplrProblem& p, float* memory)
      : groups((p.key_width + kLanes - 1) / kLanes), strips((p.value_width + kRows - 1) / kRows) {
    const auto take = [&](int64_t size) {
      float* at = memory ? memory + floats : nullptr;
      floats += (size + 15) / 16 * 16;
      return at;
    };
    keys = take(p.chunk * groups * kKeyKinds * kLanes);
    sums = take(p.chunk * groups * kSumKinds * kLanes);
    values = take(p.chunk * strips * kValueKinds * kRows);
    state = take(state_floats());
    dstate = take(state_floats());
    history = take(p.chunk * strip_floats());
  }
  int64_t strip_floats() const { return groups * kRows * kLanes; }
  int64_t state_floats() const { return strips * strip_floats(); }
  float* token_keys(int64_t r) const { return keys + r * groups * kKeyKinds * kLanes; }
  float* token_sums(int64_t r) const { return sums + r * groups * kSumKinds * kLanes; }
  float* token_values(int64_t r, int64_t strip) const {
    return values + (r * strips + strip) * kValueKinds * kRows;
  }
};

// Calls body(in [K, V], in w.state) for every entry of a state.
template <class Body>
HWY_INLINE void for_each_entry(const DplrProblem& p, const DplrWorkspace& w, const Body& body) {
  for (int64_t strip = 0; strip < w.strips; ++strip)
    for (int64_t i = 0; i < p.key_width; ++i) {
      const int64_t v = strip * kRows, count = std::min(kRows, p.value_width - v);
      const int64_t to = (strip * w.groups + i / kLanes) * kRows * kLanes + i % kLanes;
      for (int64_t n = 0; n < count; ++n) body(i * p.value_width + v + n, to + n * kLanes);
    }
}

void load_state(const DplrProblem& p, const DplrWorkspace& w, const float* from, float* to) {
  fill_row(w.state_floats(), 0, to);
  if (from) for_each_entry(p, w, [&](int64_t outside, int64_t inside) { to[inside] = from[outside]; });
}

float write_strength(const DplrProblem& p, const Chunk& c, int64_t r) {
  return p.write.data ? *p.write.at(c.batch, c.begin + r, c.head) : 1;
}

// A row of key channels into its place in [groups, kinds, kLanes].
void load_keys(const DplrProblem& p, const float* from, int64_t kinds, float* to) {
  const Floats d;
  for (int64_t i = 0; i < p.key_width; i += kLanes, to += kinds * kLanes)
    hn::Store(load_part(d, from + i, p.key_width - i), d, to);
}

// to = a * from for a strip, of which `count` value channels exist.
HWY_INLINE void scale_strip(int64_t count, float a, const float* from, float* to) {
  if (count == kRows)
    scale_row(kRows, a, from, to);
  else
    scale_row(count, a, from, to);
}

void load_rows(const DplrProblem& p, const DplrGradients& g, const Chunk& c, const DplrWorkspace& w,
               int64_t at) {
  fill_row(c.rows * w.strips * kValueKinds * kRows, 0, w.values);
  fill_row(c.rows * w.groups * kSumKinds * kLanes, 0, w.sums);
  for (int64_t r = 0; r < c.rows; ++r) {
    const int64_t t = c.begin + r, from = (at + r * p.heads) * p.value_width;
    float* keys = w.token_keys(r);
    decay_factors(p, c, t, w.history);  // free as yet
    load_keys(p, w.history, kKeyKinds, keys + kDecay * kLanes);
    load_keys(p, p.q.at(c.batch, t, c.key_head), kKeyKinds, keys + kQ * kLanes);
    load_keys(p, p.k.at(c.batch, t, c.key_head), kKeyKinds, keys + kK * kLanes);
    load_keys(p, erase_row(p, p.erase_read, c, t), kKeyKinds, keys + kA * kLanes);
    load_keys(p, erase_row(p, p.erase_write, c, t), kKeyKinds, keys + kB * kLanes);
    const float write = write_strength(p, c, r);
    for (int64_t strip = 0; strip < w.strips; ++strip) {
      const int64_t v = strip * kRows, count = std::min(kRows, p.value_width - v);
      float* values = w.token_values(r, strip);
      scale_strip(count, p.scale, g.dy + from + v, values + kDY * kRows);
      scale_strip(count, write, p.v.at(c.batch, t, c.head) + v, values + kValue * kRows);
      scale_strip(count, 1, p.recalled + from + v, values + kRecalled * kRows);
    }
  }
}

// history[r] = the strip's state before token c.begin + r
void replay(const Chunk& c, const DplrWorkspace& w, int64_t strip) {
  const Floats d;
  const int64_t rows = c.rows, keys_row = w.groups * kKeyKinds * kLanes, history_row = w.strip_floats(),
                values_row = w.strips * kValueKinds * kRows;
  for (int64_t group = 0; group < w.groups; ++group) {
    const float *keys = w.keys + group * kKeyKinds * kLanes, *values = w.token_values(0, strip);
    const float* from = w.state + (strip * w.groups + group) * kRows * kLanes;
    float* to = w.history + group * kRows * kLanes;
    VecF s[kRows];
#pragma GCC unroll 8
    for (int n = 0; n < kRows; ++n) s[n] = hn::Load(d, from + n * kLanes);
    for (int64_t r = 0;; ++r) {
#pragma GCC unroll 8
      for (int n = 0; n < kRows; ++n) hn::Store(s[n], d, to + n * kLanes);
      if (r + 1 == rows) break;
      const auto decay = hn::Load(d, keys + kDecay * kLanes), b = hn::Load(d, keys + kB * kLanes),
                 k = hn::Load(d, keys + kK * kLanes);
#pragma GCC unroll 8
      for (int n = 0; n < kRows; ++n) {
        const auto kept = hn::MulAdd(b, hn::Set(d, values[kRecalled * kRows + n]), hn::Mul(decay, s[n]));
        s[n] = hn::MulAdd(k, hn::Set(d, values[kValue * kRows + n]), kept);
      }
      keys += keys_row, values += values_row, to += history_row;
    }
  }
}

// to[n] = sum of the lanes of x[n], n < 4
HWY_INLINE void store_sums(const VecF* x, float* to) {
#if HWY_TARGET == HWY_SCALAR
  for (int n = 0; n < 4; ++n) to[n] = hn::GetLane(x[n]);
#else
  const Floats d;
  const hn::Repartition<double, Floats> pairs;
  const auto x01 =
      hn::BitCast(pairs, hn::Add(hn::InterleaveLower(d, x[0], x[1]), hn::InterleaveUpper(d, x[0], x[1])));
  const auto x23 =
      hn::BitCast(pairs, hn::Add(hn::InterleaveLower(d, x[2], x[3]), hn::InterleaveUpper(d, x[2], x[3])));
  const auto sums = hn::Add(hn::BitCast(d, hn::InterleaveLower(pairs, x01, x23)),
                            hn::BitCast(d, hn::InterleaveUpper(pairs, x01, x23)));
  const hn::Half<Floats> half;
  const auto halves = hn::Add(hn::LowerHalf(half, sums), hn::UpperHalf(half, sums));
#if HWY_TARGET == HWY_AVX3
  const hn::Half<decltype(half)> quarter;
  hn::StoreU(hn::Add(hn::LowerHalf(quarter, halves), hn::UpperHalf(quarter, halves)), quarter, to);
#else
  hn::StoreU(halves, half, to);
#endif
#endif
}

// The read of token r: dstate becomes the gradient of the state after it; kDValue and kDRecalled are sums over
// its key channels.
void through_read(const DplrWorkspace& w, int64_t r, int64_t strip) {
  const Floats d;
  const int64_t groups = w.groups;
  float* values = w.token_values(r, strip);
  for (int64_t half = 0; half < kRows; half += 4, values += 4) {
    const float* keys = w.token_keys(r);
    float* dstate = w.dstate + strip * w.strip_floats() + half * kLanes;
    VecF dvalue[4], drecalled[4], dy[4];
#pragma GCC unroll 4
    for (int n = 0; n < 4; ++n) {
      dvalue[n] = drecalled[n] = hn::Zero(d);
      dy[n] = hn::Set(d, values[kDY * kRows + n]);
    }
    for (int64_t group = 0; group < groups; ++group) {
      const auto q = hn::Load(d, keys + kQ * kLanes), k = hn::Load(d, keys + kK * kLanes),
                 b = hn::Load(d, keys + kB * kLanes);
#pragma GCC unroll 4
      for (int n = 0; n < 4; ++n) {
        const auto ds = hn::MulAdd(q, dy[n], hn::Load(d, dstate + n * kLanes));
        hn::Store(ds, d, dstate + n * kLanes);
        dvalue[n] = hn::MulAdd(k, ds, dvalue[n]);
        drecalled[n] = hn::MulAdd(b, ds, drecalled[n]);
      }
      keys += kKeyKinds * kLanes, dstate += kRows * kLanes;
    }
    store_sums(dvalue, values + kDValue * kRows);
    store_sums(drecalled, values + kDRecalled * kRows);
  }
}

// The update of token r: the strip's part of the sums; dstate becomes the gradient of the state before it.
void through_update(const DplrWorkspace& w, int64_t r, int64_t strip) {
  const Floats d;
  const int64_t groups = w.groups;
  const float *keys = w.token_keys(r), *values = w.token_values(r, strip);
  const float* history = w.history + r * w.strip_floats();
  float *sums = w.token_sums(r), *dstate = w.dstate + strip * w.strip_floats();
  for (int64_t group = 0; group < groups; ++group) {
    const auto decay = hn::Load(d, keys + kDecay * kLanes), a = hn::Load(d, keys + kA * kLanes);
    auto dq = hn::Load(d, sums + kDQ * kLanes), dk = hn::Load(d, sums + kDK * kLanes),
         da = hn::Load(d, sums + kDA * kLanes), db = hn::Load(d, sums + kDB * kLanes),
         ddecay = hn::Load(d, sums + kDDecay * kLanes);
#pragma GCC unroll 8
    for (int n = 0; n < kRows; ++n) {
      const auto s = hn::Load(d, history + n * kLanes), ds = hn::Load(d, dstate + n * kLanes);
      const auto drecalled = hn::Set(d, values[kDRecalled * kRows + n]);
      dq = hn::MulAdd(hn::Set(d, values[kDY * kRows + n]), s, dq);
      da = hn::MulAdd(drecalled, s, da);
      ddecay = hn::MulAdd(ds, s, ddecay);
      dk = hn::MulAdd(hn::Set(d, values[kValue * kRows + n]), ds, dk);
      db = hn::MulAdd(hn::Set(d, values[kRecalled * kRows + n]), ds, db);
      hn::Store(hn::MulAdd(decay, ds, hn::Mul(a, drecalled)), d, dstate + n * kLanes);
    }
    hn::Store(dq, d, sums + kDQ * kLanes), hn::Store(dk, d, sums + kDK * kLanes);
    hn::Store(da, d, sums + kDA * kLanes), hn::Store(db, d, sums + kDB * kLanes);
    hn::Store(ddecay, d, sums + kDDecay * kLanes);
    keys += kKeyKinds * kLanes, sums += kSumKinds * kLanes;
    history += kRows * kLanes, dstate += kRows * kLanes;
  }
}

// Sums to gradients of the key channels of token r; `at` is its (b T + t) H + h. What q reads is the state after
// the token: the one before it, decayed, plus the two rows written.
void store_keys(const DplrProblem& p, const DplrGradients& g, const DplrWorkspace& w, int64_t r, int64_t at) {
  const Floats d;
  const float *keys = w.token_keys(r), *sums = w.token_sums(r);
  float by_value[kRows] = {}, by_recalled[kRows] = {};
  for (int64_t strip = 0; strip < w.strips; ++strip) {
    const float* values = w.token_values(r, strip);
    multiply_add_row(kRows, values + kValue * kRows, values + kDY * kRows, by_value);
    multiply_add_row(kRows, values + kRecalled * kRows, values + kDY * kRows, by_recalled);
  }
  const float of_value = sum_row(kRows, by_value), of_recalled = sum_row(kRows, by_recalled);
  auto scalar_decay = hn::Zero(d);
  for (int64_t i = 0; i < p.key_width; i += kLanes, keys += kKeyKinds * kLanes, sums += kSumKinds * kLanes) {
    const int64_t left = p.key_width - i, to = at * p.key_width + i;
    const auto decay = hn::Load(d, keys + kDecay * kLanes);
    const auto written = hn::MulAdd(hn::Set(d, of_recalled), hn::Load(d, keys + kB * kLanes),
                                    hn::Mul(hn::Set(d, of_value), hn::Load(d, keys + kK * kLanes)));
    const auto ddecay = hn::Mul(decay, hn::Load(d, sums + kDDecay * kLanes));
    scalar_decay = hn::Add(scalar_decay, ddecay);
    if (g.dq) store_part(hn::MulAdd(decay, hn::Load(d, sums + kDQ * kLanes), written), d, g.dq + to, left);
    if (g.dk) store_part(hn::Load(d, sums + kDK * kLanes), d, g.dk + to, left);
    if (g.derase_read) store_part(hn::Load(d, sums + kDA * kLanes), d, g.derase_read + to, left);
    if (g.derase_write) store_part(hn::Load(d, sums + kDB * kLanes), d, g.derase_write + to, left);
    if (g.dlog_decay && p.decay == Decay::vector) store_part(ddecay, d, g.dlog_decay + to, left);
  }
  if (g.dlog_decay && p.decay != Decay::vector) g.dlog_decay[at] = sum_lanes(d, scalar_decay);
}

void store_values(const DplrProblem& p, const DplrGradients& g, const Chunk& c, const DplrWorkspace& w,
                  int64_t r, int64_t at) {
  const float write = write_strength(p, c, r);
  float dwrite = 0;
  for (int64_t strip = 0; strip < w.strips; ++strip) {
    const int64_t v = strip * kRows, count = std::min(kRows, p.value_width - v);
    const float* dvalue = w.token_values(r, strip) + kDValue * kRows;
    if (g.dv) scale_strip(count, write, dvalue, g.dv + at * p.value_width + v);
    if (g.dwrite) dwrite += dot(count, dvalue, p.v.at(c.batch, c.begin + r, c.head) + v);
  }
  if (g.dwrite) g.dwrite[at] = dwrite;
}

// `ahead`: the chunk whose inputs should come closer meanwhile.
void chunk_backward(const DplrProblem& p, const DplrGradients& g, const Chunk& c, const Chunk& ahead,
                    const DplrWorkspace& w) {
  const int64_t at = (c.batch * p.tokens + c.begin) * p.heads + c.head;
  load_rows(p, g, c, w, at);
  for (int64_t strip = 0; strip < w.strips; ++strip) {
    replay(c, w, strip);
    for (int64_t r = c.rows - 1; r >= 0; --r) {
      if (strip + 1 == w.strips && r < ahead.rows) {
        const int64_t from = ((c.batch * p.tokens + ahead.begin + r) * p.heads + c.head) * p.value_width;
        prefetch_token(p, ahead, r);
        prefetch_row(g.dy + from, p.value_width);
        prefetch_row(p.recalled + from, p.value_width);
      }
      through_read(w, r, strip);
      through_update(w, r, strip);
    }
  }
  for (int64_t r = 0; r < c.rows; ++r) {
    store_keys(p, g, w, r, at + r * p.heads);
    store_values(p, g, c, w, r, at + r * p.heads);
  }
  if (c.empty) fill_row(w.state_floats(), 0, w.dstate);
}

void dplr_backward(const DplrProblem& p, const DplrGradients& g, float* scratch, int64_t begin, int64_t end) {
  const DplrWorkspace w(p, scratch);
  const int64_t state_size = p.key_width * p.value_width;
  for (int64_t task = begin; task < end; ++task) {
    load_state(p, w, g.dstate ? g.dstate + task * state_size : nullptr, w.dstate);
    for (int64_t index = chunk_count(p, task) - 1; index >= 0; --index) {
      const Chunk before = chunk_at(p, task, std::max<int64_t>(0, index - 1), false);
      load_state(p, w, saved_state(p, task, index), w.state);
      chunk_backward(p, g, chunk_at(p, task, index, index == 0), before, w);
    }
    if (!g.dinitial) continue;
    float* to = g.dinitial + task * state_size;
    for_each_entry(p, w, [&](int64_t outside, int64_t inside) { to[outside] = w.dstate[inside]; });
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace weft::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace weft::kernels {

int64_t dplr_backward_scratch(const DplrProblem& p) {
  DplrProblem widest = p;  // enough for vectors of up to 16 key channels
  widest.key_width = (p.key_width + 15) / 16 * 16;
  return N_SCALAR::DplrWorkspace(widest, nullptr).floats;
}

WEFT_SIMD_DISPATCH(dplr_backward,
                   (const DplrProblem& p, const DplrGradients& g, float* scratch, int64_t begin, int64_t end),
                   (p, g, scratch, begin, end))

}  // namespace weft::kernels
#endif
