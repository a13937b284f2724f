// A growing cache of keys and values, "k", "v" and "slots" of a state, for mixers around attention; also "index", one
// more vector for each column, where a mixer has one.
#pragma once

#include "nn/mixers/keys.h"

namespace weft {

// Empty caches for G heads of K and V channels.
void start_key_cache(State& state, int64_t batch, int64_t heads, int64_t k_dim, int64_t v_dim,
                     const at::TensorOptions& options);
// The cached keys and those of this call, k [B, T, G, K] and v [B, T, G, V]; keeps them in the state unless
// context.keep_state is off. Documents that ended are forgotten, and with a window w > 0 what no later token sees.
// `index` [B, T, ...], if defined, is kept beside them.
Keys extend_key_cache(const at::Tensor& k, const at::Tensor& v, int64_t window, State& state,
                      const Context& context, const at::Tensor& index = {});
// Bytes of the cache of one sequence after `tokens` tokens of one document.
int64_t key_cache_bytes(int64_t tokens, int64_t window, int64_t heads, int64_t k_dim, int64_t v_dim,
                        at::ScalarType dtype);

}  // namespace weft
