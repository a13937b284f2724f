// What a config.json says about rotary positions, in all its spellings: rope_parameters, formerly rope_scaling beside
// rope_theta; the same for all layers, or one for each type of layer; partial_rotary_factor within or beside it.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "io/pretrained/blueprint.h"
#include "io/pretrained/config_reader.h"

namespace weft {

// What the configuration class of an architecture takes for keys that are absent, and how it reads them.
struct RopeDefaults {
  double theta = 10000;
  // The share of a head that is rotated. None: the architecture rotates whole heads, whatever partial_rotary_factor says.
  std::optional<double> partial = std::nullopt;
  int64_t positions = 2048;  // max_position_embeddings
  // original_max_position_embeddings beside rope_parameters, which counts more than that within. None: that within.
  std::optional<int64_t> original_positions = std::nullopt;
  bool yarn_is_longrope = false;       // the type "yarn" is read as longrope (Phi-3)
  ConfigKey theta_key = "rope_theta";  // beside rope_parameters
  ConfigKey partial_key = "partial_rotary_factor";
  // The names under which rope_parameters may hold one for each type of layer.
  std::vector<std::string> layer_types = {
      "full_attention", "sliding_attention", "chunked_attention", "linear_attention", "hybrid", "attention"};
};

struct RopeSettings {
  double theta = 0;  // 0: no rotary positions
  int64_t dim = 0;   // rotated channels; 0: all
  Node scaling;      // as the option rope_scaling of mixers; null: none
  double mscale =
      1;  // yarn's 0.1 mscale_all_dim ln factor + 1, whose square DeepSeek's attention scales scores by
  // Sets the options rope, rope_dim and rope_scaling of a mixer.
  void set(Node& mixer) const;
};

// Of layers of `layer_type` with heads of head_dim channels. Where rope_parameters holds settings for other types of
// layers only, there are none. Unsupported for a rope_type that weft does not know.
RopeSettings read_rope(const ConfigReader& config, int64_t head_dim, const RopeDefaults& defaults = {},
                       const std::string& layer_type = "full_attention");

}  // namespace weft
