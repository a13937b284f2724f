// Channel mixers: functions of one token, the second half of a layer.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/fields.h"
#include "nn/mixer.h"
#include "nn/module.h"

namespace weft {

class ChannelMixer : public Module {
 public:
  // x [..., D] -> [..., D]
  virtual at::Tensor run(const at::Tensor& x, const Context& context) = 0;
};

struct ChannelEntry {
  std::string name, summary;
  std::vector<FieldInfo> fields;
  std::function<std::unique_ptr<ChannelMixer>(const Node& options, const Site& site)> make;
  std::function<Node(const Node& options)> resolve;
};

void register_channel_mixer(ChannelEntry entry);
std::vector<std::string> channel_mixer_names();
const ChannelEntry& find_channel_mixer(const Node& node);

// `node` is {NAME: {option: value, ...}}, or {NAME: value} for the first option: {swiglu: 1408}.
std::unique_ptr<ChannelMixer> make_channel_mixer(const Node& node, const Site& site);
Node resolve_channel_mixer(const Node& node);

template <class M>
struct RegisterChannel {
  RegisterChannel(const char* name, const char* summary) {
    register_channel_mixer(
        {.name = name,
         .summary = summary,
         .fields = list_options<typename M::Options>(),
         .make = [name = std::string(name)](const Node& options,
                                            const Site& site) -> std::unique_ptr<ChannelMixer> {
           return std::make_unique<M>(read_options<typename M::Options>(options, name), site);
         },
         .resolve =
             [name = std::string(name)](const Node& options) {
               return write_options(read_options<typename M::Options>(options, name));
             }});
  }
};

}  // namespace weft
