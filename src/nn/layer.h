// One layer of a stack: a sequence mixer, a channel mixer, or both one after the other, each a branch of the residual
// stream: x + s * mixer(norm(x)), then x + s * ffn(norm(x)). A layer's
// input may also be a strand instead of the stream, or the stream with a strand added or joined; its result may become a
// strand and leave the stream as it was. So shared blocks and side branches are made of ordinary layers.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "nn/channel.h"
#include "nn/mixer.h"
#include "nn/residual.h"

namespace weft {

// Options of a layer beside its mixer's own; a model's `defaults:` set them for all layers.
struct LayerOptions {
  std::string norm = "rms";
  double norm_eps = 1e-5;
  std::string norm_placement = "pre";
  double post_norm_offset = 1.0;
  double residual_scale = 1.0, skip_scale = 1.0;
  bool separate_inputs = false;  // of a mixer that takes several
  bool whole_stream = false;
  std::string from, to, add, concat;  // names of strands, "": none
  std::string share;                  // name of the parameters that several layers have in common, "": none
  Node ffn;                           // {swiglu: 1408}
  Node export_;                       // {port: name}
  Node import;                        // {port: name}
  void fields(Fields& f);
};

// What a layer hands to its mixer.
struct MixerInput {
  at::Tensor h;     // [B, T, D], normed where the layer norms before; [B, T, n D] for a mixer of n inputs
  Context context;  // with the strands that the mixer imports
};

class Layer final : public Module {
 public:
  // `node` is one resolved layer of a pattern: {mixer: ..., <its options>, ffn: ..., <layer options>}. `looped`: it is
  // one of those in the stack's loop.
  Layer(const Node& node, const LayerOptions& defaults, Site site, const Residual& residual, bool looped);

  enum class Form { run, step, tentative };
  // Moves the stream on. Reads and fills `strands`, which all layers of a stack share.
  void run(Stream& stream, State& state, const Context& context, Strands& strands, Form form = Form::run,
           Draft* draft = nullptr);

  // What `run` would give to the mixer; InputError when the layer has none.
  MixerInput mixer_input(Stream stream, const Context& context, const Strands& strands) const;

  SequenceMixer* mixer() const { return mixer_.get(); }  // null for a layer of a channel mixer only
  const std::string& where() const { return where_; }    // "tiny.yaml:14: layers[2]"
  const Node& node() const { return node_; }             // with every option written out
  const std::map<std::string, std::string>& exports() const { return exports_; }  // port -> strand name
  const std::map<std::string, std::string>& imports() const {
    return imports_;
  }  // also from, add and concat; to

 private:
  struct Branch {
    std::unique_ptr<Connection> connection;
    std::vector<Norm> before;  // of its inputs; one for all of them, or one for each
    Norm after;
    int64_t inputs = 1;
  };
  // `input`: width of what its function is given, each of them.
  Branch make_branch(const std::string& name, const BranchSite& site, int64_t input,
                     const Residual& residual);
  void make_mixer(const Node& node, Site site, BranchSite branch, const Residual& residual);
  void read_ports_of_layer();
  void check_stream(const Residual& residual) const;

  Context mixer_context(const Context& context, const Strands& strands) const;
  at::Tensor run_mixer(const at::Tensor& h, State& state, const Context& context, Strands& strands, Form form,
                       Draft* draft);
  void run_branches(Stream& stream, State& state, const Context& context, Strands& strands, Form form,
                    Draft* draft);
  // What a branch reads; `first` of the layer: with the strands of `add` and `concat`.
  Reading read(const Branch& branch, Stream& stream, const Strands& strands, bool first) const;
  at::Tensor with_strands(const at::Tensor& x, const Strands& strands) const;
  // What the branch's function is given: the inputs side by side, in the type of activations.
  at::Tensor input_of(const Branch& branch, const Reading& reading, const Stream& stream,
                      const Context& context) const;
  // Joins what the branch's function gave to the stream, normalised and scaled as the options say.
  void write(const Branch& branch, Stream& stream, const Reading& reading, at::Tensor y) const;

  Node node_;
  std::string where_;
  LayerOptions options_;
  std::map<std::string, std::string> exports_, imports_;              // of mixer and layer
  std::map<std::string, std::string> mixer_exports_, mixer_imports_;  // of the mixer
  std::unique_ptr<SequenceMixer> mixer_;
  std::unique_ptr<ChannelMixer> ffn_;
  Branch mixer_branch_, ffn_branch_;
};

}  // namespace weft
