// Softmax attention with grouped queries and a mask program that is never materialised.
// Vaswani et al. 2017, arXiv:1706.03762; online softmax and log-sum-exp: Dao et al. 2022, arXiv:2205.14135;
// attention sinks: Xiao et al. 2023, arXiv:2309.17453.
//
// B batch, T queries, S keys, H query heads, G key heads (H is a multiple of G; query head h reads key head h
// / (H/G)), K and V the widths of a key and a value head.
#pragma once

#include <ATen/core/Tensor.h>

#include <utility>

namespace weft::ops {

// Which keys a query sees, as a program over integers: a key stands at a position of a segment, and
//   seen = slot and segment and (range or sinks or prefix or stripe or tree)
//   slot      k_position >= 0 (-1 marks an empty cache slot)
//   segment   q_segment == k_segment
//   range     k_position <= q_position if causal; k_position > q_position - window if there is a window;
//             or as q_range says
//   sinks     k_position < sinks, and not after the end of the range
//   prefix    k_position < q_prefix
//   stripe    see Stripes
//   tree      bit k_position - tree_begin of q_tree
// Positions are those inside the document, so packed documents have positions that start again at 0, and serve
// the mask only: rotary positions may be others. Keys may stand in any order (a ring of slots is fine). Cost
// follows the tiles of 64 rows and 64 slots in which something is seen. Functions below build the less usual ones.
struct Mask {
  bool causal = true;
  int64_t window = 0;           // 0: no window; w: the w most recent positions, the query's own included
  int64_t sinks = 0;            // the first positions of a document that stay visible outside the window
  at::Tensor q_positions = {};  // [B, T] int64; undefined: S - T .. S - 1
  at::Tensor k_positions = {};  // [B, S] int64; undefined: 0 .. S - 1
  at::Tensor q_segments = {};   // [B, T] int64; undefined, like k_segments: one segment
  at::Tensor k_segments = {};   // [B, S] int64
  at::Tensor q_range = {};     // [B, T, 2] int64, first and last position seen; in place of causal and window
  at::Tensor q_prefix = {};    // [B, T] int64; undefined: 0
  at::Tensor q_tree = {};      // [B, T, W] int64: bit i of word w stands for position tree_begin + 64 w + i
  at::Tensor tree_begin = {};  // [B] int64; given with q_tree

  // Vertical stripes of key blocks: with J = k_position div block, those with (J + offset) mod stride ==
  // stride - 1 that are not after the end of the range. The offset may differ from head to head. Together with
  // a range of recent blocks the block-sparse pattern of LongGen (Ge et al. 2024) and Phi-3-small.
  struct Stripes {
    int64_t block = 0, stride = 0;  // block 0: no stripes
    at::Tensor offsets = {};        // [H] int64 >= 0; undefined: 0
  } stripes = {};
};

// The same mask with its tensors on `device`; the functions below make some of them on the CPU.
Mask on_device(Mask mask, at::Device device);

// Prefix language model: the first prefix[b] tokens of sequence b see each other, the rest is causal. T queries
// at the end of S keys.
Mask prefix_mask(const at::Tensor& prefix, int64_t queries);

// Block I sees block J <= I when J is one of its `local` last blocks (its own included), one of the first `sinks`
// blocks, or on a stripe; causal inside its own. T queries at the end of S keys, one document.
Mask block_stride_mask(int64_t batch, int64_t queries, int64_t keys, int64_t block, int64_t local,
                       int64_t stride, int64_t sinks = 0, const at::Tensor& offsets = {});

// TiDAR's training sequence [clean tokens 0 .. S-1 | masks 0 .. S-1], both queries and keys, 2 S tokens (Liu et
// al. 2025, arXiv:2511.08923): clean tokens are causal and see no mask; a mask of block b sees the clean tokens
// before the block and the masks of its own block. With `starts` [B, S] bool (true where a document begins)
// documents are apart, with blocks counted from their starts.
Mask tidar_training_mask(int64_t batch, int64_t tokens, int64_t block, const at::Tensor& starts = {});

// TiDAR's decoding step: `prefix` [B] int64 committed tokens, and after `slots` key slots for them block (block +
// 1) tokens, queries and keys: row 0 is the drafts d_0 .., causal; row j >= 1 sees the drafts before d_j and its own
// `block` masks. All see the prefix.
Mask tidar_decode_mask(const at::Tensor& prefix, int64_t slots, int64_t block);

// A tree of drafts behind a prefix: `parents` [B, N] int64, the parent of each of the last N keys, which are the
// queries too, -1 for a child of the prefix; parents stand before their children. A query sees the `prefix` [B]
// int64 first ones of the other `slots` keys, its ancestors and itself.
Mask tree_mask(const at::Tensor& parents, const at::Tensor& prefix, int64_t slots);

struct AttentionOptions {
  double scale = 0;        // of q k'; 0 means 1 / sqrt(K)
  double softcap = 0;      // c > 0: scores become c tanh(scale q k' / c) (Gemma 2, arXiv:2408.00118)
  at::Tensor slopes = {};  // [H]: scores get slope (k_position - q_position) (ALiBi, arXiv:2108.12409)
  at::Tensor k_scale = {},
             v_scale = {};  // with int8 keys and values: their scales, as quantize_rows makes them
};

struct AttentionResult {
  at::Tensor out;  // [B, T, H, V] in the wider type of q and v (int8: of q); 0 where a query sees no key
  at::Tensor
      lse;  // [B, T, H] fp32 (fp64 for fp64), log of the sum of exp(scale q.k); -inf where no key is seen
};

// out = softmax(scores + mask) v, scores = scale q k', capped and biased as the options say.
//   q [B, T, H, K], k [B, S, G, K], v [B, S, G, V], any float type, k and v also int8 with scales; strides are free,
//   the last dimension contiguous or made so. 16- and 8-bit keys and values are widened block by block.
// S may be 0. Differentiable in q, k, v (unless int8) and slopes through both results (second derivatives:
// WEFT_KERNEL=reference). Keys and values in hidden slots must be finite: they are multiplied by 0.
// Error against fp64 on the same (dequantised) inputs relative to max|out|: fp32 1e-5, bf16 and fp16 2e-2; for an
// fp32 q also with 16- and 8-bit keys 1e-5. Work: 2 B H (K + V) flops a visible pair. Results do not depend on the
// number of threads.
AttentionResult attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const Mask& mask,
                          const AttentionOptions& options = {});

// Two partial results over disjoint sets of keys become the result over their union (ring attention, prefix +
// tail).
AttentionResult merge_attention(const AttentionResult& a, const AttentionResult& b);

struct QuantizedRows {
  at::Tensor values;  // int8, shape of x
  at::Tensor scale;   // [..., D / group] fp32: x is about values * scale
};

// Symmetric 8-bit rows for key and value caches: for each run of `group` numbers of the last dimension D scale =
// max|x| / 127, values = x / scale rounded to the nearest, ties to even. group 0: the whole row; it must divide D.
// Error of an entry at most scale / 2. x any float type.
QuantizedRows quantize_rows(const at::Tensor& x, int64_t group = 0);
at::Tensor dequantize_rows(const QuantizedRows& x, at::ScalarType type);

namespace reference {
AttentionResult attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const Mask& mask,
                          const AttentionOptions& options = {});
// [B, T, S], or [B, T, S, H] with offsets of stripes, bool: what the mask says, for T queries and S keys.
at::Tensor visible_keys(const Mask& mask, int64_t batch, int64_t queries, int64_t keys, at::Device device);
}  // namespace reference

namespace internal {
// Tiles of 64 rows and 64 slots that the kernels would visit, of all that there are: for tests of what is skipped.
std::pair<int64_t, int64_t> visited_tiles(const Mask& mask, int64_t batch, int64_t queries, int64_t keys,
                                          int64_t heads, int64_t key_heads);
}  // namespace internal

}  // namespace weft::ops
