// One layer of a stack: x + s * mixer(norm(x)), then x + s * ffn(norm(x)).
#pragma once

#include <map>
#include <memory>
#include <string>

#include "nn/channel.h"
#include "nn/mixer.h"

namespace weft {

// Options of a layer beside its mixer's own; a model's `defaults:` set them for all layers.
struct LayerOptions {
  std::string norm = "rms";
  double norm_eps = 1e-5;
  std::string norm_placement = "pre";
  double residual_scale = 1.0;
  Node ffn;      // {swiglu: 1408}
  Node export_;  // {port: name}
  Node import;   // {port: name}
  void fields(Fields& f);
};

// What a layer hands to its mixer.
struct MixerInput {
  at::Tensor h;     // [B, T, D], normed where the layer norms before
  Context context;  // with the strands that the mixer imports
};

class Layer final : public Module {
 public:
  // `node` is one resolved layer of a pattern: {mixer: ..., <its options>, ffn: ..., <layer options>}.
  Layer(const Node& node, const LayerOptions& defaults, Site site);

  enum class Form { run, step, tentative };
  // x [B, T, D] -> [B, T, D]. Reads and fills `strands`, which all layers of a stack share.
  at::Tensor run(const at::Tensor& x, State& state, const Context& context, Strands& strands,
                 Form form = Form::run, Draft* draft = nullptr);

  // What `run` would give to the mixer; InputError when the layer has none.
  MixerInput mixer_input(const at::Tensor& x, const Context& context, const Strands& strands) const;

  SequenceMixer* mixer() const { return mixer_.get(); }  // null for a layer of a channel mixer only
  const std::string& where() const { return where_; }    // "tiny.yaml:14: layers[2]"
  const Node& node() const { return node_; }             // with every option written out
  const std::map<std::string, std::string>& exports() const { return exports_; }  // port -> strand name
  const std::map<std::string, std::string>& imports() const { return imports_; }

 private:
  Context mixer_context(const Context& context, const Strands& strands) const;
  // What a branch adds to the residual stream: s * f(h), normalised behind f where the options say so; f sees
  // the type of activations.
  at::Tensor branch(const at::Tensor& h, const Context& context, const Norm& after,
                    const std::function<at::Tensor(const at::Tensor&)>& f) const;
  // The stream with a branch's part, in the type of x when that is wider: an fp32 stream stays fp32.
  at::Tensor joined(const at::Tensor& x, const at::Tensor& branch, const Norm& after) const;

  Node node_;
  std::string where_;
  LayerOptions options_;
  std::map<std::string, std::string> exports_, imports_;
  std::unique_ptr<SequenceMixer> mixer_;
  std::unique_ptr<ChannelMixer> ffn_;
  Norm mixer_norm_, mixer_post_norm_, ffn_norm_, ffn_post_norm_;
};

}  // namespace weft
