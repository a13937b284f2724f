#include "ops/linear_attention/checks.h"

#include <utility>

#include "base/error.h"
#include "ops/shape.h"

namespace weft::ops {
namespace {

void check_decay(const char* op, const LinearAttention& in) {
  if (!in.log_decay.defined()) return;
  require_like(op, "log_decay", in.log_decay, in.v);
  const int64_t batch = in.v.size(0), tokens = in.v.size(1), heads = in.v.size(2), key_width = in.k.size(3);
  const auto sizes = in.log_decay.sizes();
  const bool constant = sizes.equals({heads}), scalar = sizes.equals({batch, tokens, heads});
  require(constant || scalar || sizes.equals({batch, tokens, heads, key_width}),
          "{}: log_decay is {}, expected {} (constant), {} (scalar) or {} (vector)", op,
          shape_text(in.log_decay), shape_text({heads}), shape_text({batch, tokens, heads}),
          shape_text({batch, tokens, heads, key_width}));
}

void check_optional(const char* op, const char* name, const at::Tensor& x, const at::Tensor& like,
                    at::IntArrayRef sizes) {
  if (!x.defined()) return;
  require_like(op, name, x, like);
  require_shape(op, name, x, sizes);
}

const char* type_text(const at::Tensor& x) {
  return x.defined() ? c10::toString(x.scalar_type()) : "undefined";
}

void check_low_rank_erase(const char* op, const LinearAttention& in) {
  require(in.erase_read.defined() == in.erase_write.defined(),
          "{}: erase_read is {} and erase_write is {}; they are given together", op,
          shape_text(in.erase_read), shape_text(in.erase_write));
  if (!in.erase_read.defined()) return;
  require(!in.beta.defined(), "{}: beta and erase_read are both given; there is one erase", op);
  require_like(op, "erase_read", in.erase_read, in.v);
  const int64_t batch = in.v.size(0), tokens = in.v.size(1), heads = in.v.size(2);
  const int64_t key_heads = in.k.size(2), key_width = in.k.size(3);
  require_shape(op, "erase_read", in.erase_read, {batch, tokens, -1, key_width});
  const int64_t erase_heads = in.erase_read.size(2);
  require(erase_heads == key_heads || erase_heads == heads,
          "{}: erase_read has {} heads, expected {} as k or {} as v", op, erase_heads, key_heads, heads);
  check_optional(op, "erase_write", in.erase_write, in.v, in.erase_read.sizes());
  for (const auto* x : {&in.erase_read, &in.erase_write})
    require(x->scalar_type() == in.v.scalar_type(),
            "{}: erase_read or erase_write has type {} but v has {}; they must agree", op, type_text(*x),
            type_text(in.v));
}

}  // namespace

void check_linear_attention(const char* op, const LinearAttention& in) {
  require(in.v.defined() && in.v.dim() == 4, "{}: v is {}, expected [batch, tokens, heads, width]", op,
          shape_text(in.v));
  require_like(op, "v", in.v, in.v);
  require_like(op, "k", in.k, in.v);
  const int64_t batch = in.v.size(0), tokens = in.v.size(1), heads = in.v.size(2), value_width = in.v.size(3);
  require_shape(op, "k", in.k, {batch, tokens, -1, -1});
  const int64_t key_heads = in.k.size(2), key_width = in.k.size(3);
  require(key_heads > 0 && heads > 0 && heads % key_heads == 0,
          "{}: v has {} heads and k has {}; the first must be a multiple of the second", op, heads,
          key_heads);
  require(key_width > 0 && value_width > 0, "{}: k is {} and v is {}; head widths must be at least 1", op,
          shape_text(in.k), shape_text(in.v));
  check_optional(op, "q", in.q, in.v, {batch, tokens, key_heads, key_width});
  for (const auto* x : {&in.q, &in.k})
    require(!x->defined() || x->scalar_type() == in.v.scalar_type(),
            "{}: q or k has type {} but v has {}; they must agree", op, type_text(*x), type_text(in.v));
  check_decay(op, in);
  check_optional(op, "beta", in.beta, in.v, {batch, tokens, heads});
  check_optional(op, "write", in.write, in.v, {batch, tokens, heads});
  check_low_rank_erase(op, in);
  check_optional(op, "bonus", in.bonus, in.v, {heads, key_width});
  for (const auto& [name, x] : {std::pair("beta", &in.beta), std::pair("erase_read", &in.erase_read)})
    require(!in.bonus.defined() || !x->defined(),
            "{}: bonus and {} are both given; there is no erase with a bonus", op, name);
  check_optional(op, "initial_state", in.initial_state, in.v, {batch, heads, key_width, value_width});
  if (in.starts.defined()) {
    require_shape(op, "starts", in.starts, {batch, tokens});
    require(in.starts.scalar_type() == at::kBool, "{}: starts has type {}, expected bool", op,
            type_text(in.starts));
    require(in.starts.device() == in.v.device(), "{}: starts is on {}, expected {}", op,
            in.starts.device().str(), in.v.device().str());
  }
}

}  // namespace weft::ops
