// Decoding with a ring of updates on the CPU.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/linear_attention/kernel_cpu_ring.cc"
#include "ops/simd/targets.h"

#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "ops/linear_attention/dplr-inl.h"
#include "ops/linear_attention/kernel_ring.h"

HWY_BEFORE_NAMESPACE();
namespace weft::kernels {
namespace HWY_NAMESPACE {

// Vectors of columns whose sums stay in registers, and rows after which the next columns follow: few, so that
// memory is read nearly in order.
constexpr int kSweepVectors = 4;
constexpr int64_t kSweepRows = 16;

struct RingScratch {
  float *read, *recall;            // [K] what the state is read with, for y and for the erase
  float *ring_read, *ring_recall;  // [N R] the same for the ring's values
  float *y, *recalled;             // [V]
  float *keys, *decay;             // [N R, K] keys decayed to the newest entry, and [K] the state's decay
  int64_t floats = 0;

  RingScratch(const RingProblem& p, float* memory) {
    const auto take = [&](int64_t size) {
      float* at = memory ? memory + floats : nullptr;
      floats += (size + 15) / 16 * 16;
      return at;
    };
    const int64_t entries = p.capacity * p.rows;
    read = take(p.key_width), recall = take(p.key_width), decay = take(p.key_width);
    ring_read = take(entries), ring_recall = take(entries), keys = take(entries * p.key_width);
    y = take(p.value_width), recalled = take(p.value_width);
  }
};

// The ring of one task.
struct Ring {
  float *keys, *values, *decays;
  Ring(const RingProblem& p, int64_t task)
      : keys(p.keys + task * p.capacity * p.rows * p.key_width),
        values(p.values + task * p.capacity * p.rows * p.value_width),
        decays(p.decays + task * p.capacity * p.decay_width) {}
};

// to *= the decay of an entry
void decay_row(const RingProblem& p, const float* decay, float* to) {
  if (p.decay_width == p.key_width)
    multiply_row_in_place(p.key_width, decay, to);
  else if (p.decay_width == 1)
    scale_row(p.key_width, *decay, to, to);
}

// to += the rows of data, weighted: both sums in one sweep, or only the first.
template <int kVectors, bool kBoth>
HWY_INLINE void sweep_columns(int64_t rows, int64_t row, int64_t left, const float* read, const float* recall,
                              const float* data, float* y, float* recalled) {
  const Floats d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const int64_t last = left - (kVectors - 1) * lanes;
  const bool whole = last >= lanes;
  const auto mask = hn::FirstN(d, static_cast<size_t>(last));
  VecF sum[kVectors], other[kVectors];
#pragma GCC unroll 4
  for (int j = 0; j < kVectors; ++j) {
    sum[j] = load_part(d, y + j * lanes, left - j * lanes);
    if (kBoth) other[j] = load_part(d, recalled + j * lanes, left - j * lanes);
  }
  for (int64_t i = 0; i < rows; ++i, data += row) {
    prefetch_row(data + kSweepRows * row, kVectors * lanes);
    const auto r = hn::Set(d, read[i]), e = hn::Set(d, kBoth ? recall[i] : 0);
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) {
      const auto x = whole || j + 1 < kVectors ? hn::LoadU(d, data + j * lanes)
                                               : hn::MaskedLoad(mask, d, data + j * lanes);
      sum[j] = hn::MulAdd(r, x, sum[j]);
      if (kBoth) other[j] = hn::MulAdd(e, x, other[j]);
    }
  }
#pragma GCC unroll 4
  for (int j = 0; j < kVectors; ++j) {
    store_part(sum[j], d, y + j * lanes, left - j * lanes);
    if (kBoth) store_part(other[j], d, recalled + j * lanes, left - j * lanes);
  }
}

// y += read' data and, with kBoth, recalled += recall' data; data [rows, V].
template <bool kBoth>
void sweep(const RingProblem& p, int64_t rows, const float* data, const float* read, const float* recall,
           float* y, float* recalled) {
  const int64_t lanes = hn::Lanes(Floats()), row = p.value_width;
  for (int64_t i = 0; i < rows; i += kSweepRows) {
    const int64_t count = std::min(kSweepRows, rows - i);
    for (int64_t j = 0; j < row; j += kSweepVectors * lanes) {
      const auto columns = [&]<int kVectors>() HWY_ATTR {
        sweep_columns<kVectors, kBoth>(count, row, row - j, read + i, recall + i, data + i * row + j, y + j,
                                       recalled + j);
      };
      const int64_t left = row - j;
      if (left > 3 * lanes)
        columns.template operator()<4>();
      else if (left > 2 * lanes)
        columns.template operator()<3>();
      else if (left > lanes)
        columns.template operator()<2>();
      else
        columns.template operator()<1>();
    }
  }
}

// Dots of one key with both rows.
template <bool kBoth>
HWY_INLINE void key_dots(int64_t n, const float* key, const float* a, const float* b, float* to_a,
                         float* to_b) {
  const Floats d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  auto sum_a = hn::Zero(d), sum_b = hn::Zero(d), more_a = hn::Zero(d), more_b = hn::Zero(d);
  int64_t i = 0;
  for (; i + 2 * lanes <= n; i += 2 * lanes) {
    const auto x = hn::LoadU(d, key + i), z = hn::LoadU(d, key + i + lanes);
    sum_a = hn::MulAdd(x, hn::LoadU(d, a + i), sum_a);
    more_a = hn::MulAdd(z, hn::LoadU(d, a + i + lanes), more_a);
    if (kBoth) sum_b = hn::MulAdd(x, hn::LoadU(d, b + i), sum_b);
    if (kBoth) more_b = hn::MulAdd(z, hn::LoadU(d, b + i + lanes), more_b);
  }
  for (; i < n; i += lanes) {
    const auto x = load_part(d, key + i, n - i);
    sum_a = hn::MulAdd(x, load_part(d, a + i, n - i), sum_a);
    if (kBoth) sum_b = hn::MulAdd(x, load_part(d, b + i, n - i), sum_b);
  }
  *to_a = sum_lanes(d, hn::Add(sum_a, more_a));
  if (kBoth) *to_b = sum_lanes(d, hn::Add(sum_b, more_b));
}

// y and recalled of the state as it is after `length` entries, decayed as read and recall say. Walks from the
// newest entry to the oldest, and lets the rows that read decay on the way: no exponential, no division.
template <bool kBoth>
void read_ring(const RingProblem& p, const Ring& ring, int64_t length, const float* state,
               const RingScratch& w) {
  const int64_t width = p.key_width;
  float scalar = 1;  // decay not yet in the rows
  for (int64_t e = length - 1; e >= 0; --e) {
    for (int64_t n = e * p.rows; n < (e + 1) * p.rows; ++n) {
      key_dots<kBoth>(width, ring.keys + n * width, w.read, w.recall, w.ring_read + n, w.ring_recall + n);
      w.ring_read[n] *= scalar;
      if (kBoth) w.ring_recall[n] *= scalar;
    }
    if (p.decay_width == 1 && width > 1) {
      scalar *= ring.decays[e];
    } else {
      decay_row(p, ring.decays + e * p.decay_width, w.read);
      if (kBoth) decay_row(p, ring.decays + e * p.decay_width, w.recall);
    }
  }
  scale_row(width, scalar, w.read, w.read);
  if (kBoth) scale_row(width, scalar, w.recall, w.recall);
  fill_row(p.value_width, 0, w.y);
  fill_row(p.value_width, 0, w.recalled);
  sweep<kBoth>(p, width, state, w.read, w.recall, w.y, w.recalled);
  sweep<kBoth>(p, length * p.rows, ring.values, w.ring_read, w.ring_recall, w.y, w.recalled);
}

// The oldest `count` entries into the state; the others of `length` move to the front.
void fold(const RingProblem& p, const Ring& ring, int64_t length, int64_t count, float* state,
          const RingScratch& w) {
  const int64_t width = p.key_width;
  fill_row(width, 1, w.decay);
  for (int64_t e = count - 1; e >= 0; --e) {
    for (int64_t n = e * p.rows; n < (e + 1) * p.rows; ++n)
      multiply_row(width, w.decay, ring.keys + n * width, w.keys + n * width);
    decay_row(p, ring.decays + e * p.decay_width, w.decay);
  }
  const int64_t row = p.value_width;
  for (int64_t i = 0; i < width; i += kSweepRows) {
    const int64_t end = std::min(i + kSweepRows, width);
    for (int64_t n = i; n < end; ++n) scale_row(row, w.decay[n], state + n * row, state + n * row);
    gemm(end - i, row, count * p.rows, transposed(w.keys + i, width), ring.values, row, state + i * row, row,
         {1, true});
  }
  const auto shift = [&](float* rows, int64_t size) {
    std::copy(rows + count * size, rows + length * size, rows);
  };
  shift(ring.keys, p.rows * width), shift(ring.values, p.rows * p.value_width);
  shift(ring.decays, p.decay_width);
}

// The rows that read: read = scale q, recall = k or a, decayed by the token's own decay as far as that comes
// before.
void load_reads(const RingProblem& p, const Chunk& c, const float* decay, const RingScratch& w) {
  scale_row(p.key_width, p.scale, p.q.at(c.batch, 0, c.key_head), w.read);
  if (!p.bonus) decay_row(p, decay, w.read);
  const float* recall = p.erase_read.data ? erase_row(p, p.erase_read, c, 0) : p.k.at(c.batch, 0, c.key_head);
  scale_row(p.key_width, 1, recall, w.recall);
  if (!p.erase_read.data) decay_row(p, decay, w.recall);
}

// What the token writes, as entry `e`, and what of it is in its own y.
void append(const RingProblem& p, const Chunk& c, const Ring& ring, int64_t e, const RingScratch& w) {
  const int64_t width = p.key_width, columns = p.value_width;
  const float *q = p.q.at(c.batch, 0, c.key_head), *k = p.k.at(c.batch, 0, c.key_head);
  const float* v = p.v.at(c.batch, 0, c.head);
  float *keys = ring.keys + e * p.rows * width, *values = ring.values + e * p.rows * columns;
  const auto add_own = [&] { add_row(columns, p.scale * dot(width, q, keys), values, w.y); };
  if (p.erase_read.data) {
    const float* b = erase_row(p, p.erase_write, c, 0);
    std::copy(b, b + width, keys);
    std::copy(w.recalled, w.recalled + columns, values);
    add_own();
    keys += width, values += columns;
  }
  std::copy(k, k + width, keys);
  scale_row(columns, p.write.data ? *p.write.at(c.batch, 0, c.head) : 1, v, values);
  if (p.beta.data) add_row(columns, -*p.beta.at(c.batch, 0, c.head), w.recalled, values);
  if (!p.bonus) return add_own();
  multiply_row(width, p.bonus + c.head * width, k, w.recall);
  add_row(columns, p.scale * dot(width, q, w.recall), v, w.y);
}

void linear_attention_ring_step(const RingProblem& p, float* scratch, int64_t begin, int64_t end) {
  const RingScratch w(p, scratch);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t b = task / p.heads, h = task % p.heads, length = ring_length(p, b);
    const Chunk c{b, h, h / (p.heads / p.key_heads), 0, 1, false};
    const Ring ring(p, task);
    float* state = p.state + task * p.key_width * p.value_width;
    if (p.fresh && p.fresh[b])
      fill_row(p.key_width * p.value_width, 0, state);
    else if (length < p.length[b])
      fold(p, ring, p.length[b], p.length[b] - length, state, w);
    float* decay = ring.decays + length * p.decay_width;
    if (p.decay_width > 0) exp_row(p.decay_width, p.log_decay.at(b, 0, h), decay);
    load_reads(p, c, decay, w);
    if (p.beta.data || p.erase_read.data)
      read_ring<true>(p, ring, length, state, w);
    else
      read_ring<false>(p, ring, length, state, w);
    append(p, c, ring, length, w);
    std::copy(w.y, w.y + p.value_width, p.y + task * p.value_width);
  }
}

void linear_attention_ring_fold(const RingProblem& p, float* scratch, int64_t begin, int64_t end) {
  const RingScratch w(p, scratch);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t length = p.length[task / p.heads];
    if (length > 0) fold(p, Ring(p, task), length, length, p.state + task * p.key_width * p.value_width, w);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace weft::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace weft::kernels {

int64_t ring_scratch(const RingProblem& p) { return N_SCALAR::RingScratch(p, nullptr).floats; }

WEFT_SIMD_DISPATCH(linear_attention_ring_step,
                   (const RingProblem& p, float* scratch, int64_t begin, int64_t end),
                   (p, scratch, begin, end))
WEFT_SIMD_DISPATCH(linear_attention_ring_fold,
                   (const RingProblem& p, float* scratch, int64_t begin, int64_t end),
                   (p, scratch, begin, end))

}  // namespace weft::kernels
#endif
