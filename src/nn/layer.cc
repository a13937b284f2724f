#include "nn/layer.h"

#include <algorithm>
#include <tuple>

#include "base/error.h"
#include "base/text.h"

namespace weft {
namespace {

std::vector<std::string> option_names() {
  std::vector<std::string> names;
  for (const auto& field : list_options<LayerOptions>()) names.push_back(field.name);
  return names;
}

// {port: name} -> map; checks that the mixer has the port.
std::map<std::string, std::string> read_ports(const Node& node, const std::vector<std::string>& ports,
                                              const char* verb) {
  std::map<std::string, std::string> result;
  if (node.is_null()) return result;
  for (const auto& [port, name] : node.entries()) {
    require(std::find(ports.begin(), ports.end(), port) != ports.end(),
            "{}: this mixer does not {} '{}'; it {}s {}", name.where(), verb, port, verb,
            ports.empty() ? "nothing" : join(ports));
    result[port] = name.as_string();
  }
  return result;
}

bool normalises_before(const std::string& placement) { return placement == "pre" || placement == "sandwich"; }
bool normalises_branch(const std::string& placement) {
  return placement == "branch" || placement == "sandwich";
}

}  // namespace

void LayerOptions::fields(Fields& f) {
  f("norm", norm, "norm of the residual stream", one_of({"rms", "layer", "none"}));
  f("norm_eps", norm_eps, "added to the mean square before the root", above(0));
  f("norm_placement", norm_placement,
    "pre: x + f(norm(x)); post: norm(x + f(x)); branch: x + norm(f(x)); sandwich: x + norm(f(norm(x)))",
    one_of({"pre", "post", "branch", "sandwich"}));
  f("residual_scale", residual_scale, "multiplies what each branch adds to the residual stream");
  f("ffn", ffn, "channel mixer, {name: options}");
  f("export", export_, "what later layers may import, {port: name}");
  f("import", import, "what an earlier layer exports, {port: name}");
}

Layer::Layer(const Node& node, const LayerOptions& defaults, Site site)
    : node_(node), where_(node.where()), options_(defaults) {
  const bool has_mixer = node.find("mixer") != nullptr;
  auto mixer_keys = std::vector<std::string>{"mixer"};
  if (has_mixer)
    for (const auto& field : find_mixer(node.at("mixer")).fields) {
      const auto layer_keys = option_names();
      require(std::find(layer_keys.begin(), layer_keys.end(), field.name) == layer_keys.end(),
              "the mixer {} declares an option called '{}', which every layer has; rename it",
              node.at("mixer").as_string(), field.name);
      mixer_keys.push_back(field.name);
    }
  FieldReader reader(node, "a layer", mixer_keys);
  options_.fields(reader);
  site.where = node.where();
  site.norm_eps = options_.norm_eps;
  site.residual_branches = (has_mixer ? 1 : 0) + (options_.ffn.is_null() ? 0 : 1);
  require(site.residual_branches > 0, "{}: a layer needs a mixer, a channel mixer (ffn), or both",
          node.where());

  const auto kind = norm_kind(options_.norm);
  const auto norms = [&](const std::string& name, Norm& before, Norm& after) {
    if (normalises_before(options_.norm_placement)) before = norm(name, kind, site.width, options_.norm_eps);
    if (options_.norm_placement != "pre") after = norm(name + "_post", kind, site.width, options_.norm_eps);
  };
  if (has_mixer) {
    mixer_ = make_mixer(node, site, option_names());
    add_child("mixer", *mixer_);
    norms("mixer_norm", mixer_norm_, mixer_post_norm_);
    exports_ = read_ports(options_.export_, mixer_->export_ports(), "export");
    imports_ = read_ports(options_.import, mixer_->import_ports(), "import");
    for (const auto& port : mixer_->import_ports())
      require(imports_.count(port) > 0,
              "{}: the mixer {} needs import: {{{}: NAME}}, where NAME is what an earlier layer exports",
              node.where(), node.at("mixer").as_string(), port);
    Node resolved = find_mixer(node.at("mixer")).resolve(node, [&] {
      auto keys = option_names();
      keys.push_back("mixer");
      return keys;
    }());
    node_ = Node::map();
    node_.set_child("mixer", node.at("mixer"));
    for (const auto& [key, value] : resolved.entries()) node_.set_child(key, value);
  } else {
    reader.finish();
    node_ = Node::map();
  }
  if (!options_.ffn.is_null()) {
    ffn_ = make_channel_mixer(options_.ffn, site);
    add_child("ffn", *ffn_);
    norms("ffn_norm", ffn_norm_, ffn_post_norm_);
    options_.ffn = resolve_channel_mixer(options_.ffn);
  }
  const Node layer_options = write_options(options_);
  for (const auto& [key, value] : layer_options.entries())
    if (!value.is_null()) node_.set_child(key, value);
}

Context Layer::mixer_context(const Context& context, const Strands& strands) const {
  Context inner = context;
  inner.imports.clear();
  for (const auto& [port, name] : imports_) {
    const auto found = strands.find(name);
    require(found != strands.end(), "layer: nothing above exports '{}'", name);
    inner.imports[port] = found->second;
  }
  return inner;
}

MixerInput Layer::mixer_input(const at::Tensor& x, const Context& context, const Strands& strands) const {
  require(mixer_ != nullptr, "{}: the layer has no sequence mixer", where_);
  const auto h = mixer_norm_(x);
  return {context.dtype != at::ScalarType::Undefined ? h.to(context.dtype) : h,
          mixer_context(context, strands)};
}

at::Tensor Layer::branch(const at::Tensor& h, const Context& context, const Norm& after,
                         const std::function<at::Tensor(const at::Tensor&)>& f) const {
  auto y = f(context.dtype != at::ScalarType::Undefined ? h.to(context.dtype) : h);
  if (normalises_branch(options_.norm_placement)) y = after(y);
  return options_.residual_scale != 1.0 ? y * options_.residual_scale : y;
}

at::Tensor Layer::joined(const at::Tensor& x, const at::Tensor& branch, const Norm& after) const {
  const auto sum = x + branch;
  return options_.norm_placement == "post" ? after(sum) : sum;
}

at::Tensor Layer::run(const at::Tensor& x, State& state, const Context& context, Strands& strands, Form form,
                      Draft* draft) {
  auto stream = x;
  at::Tensor h;  // what the channel mixer sees
  if (mixer_) {
    Context inner = mixer_context(context, strands);
    Strands wanted;
    for (const auto& [port, name] : exports_) wanted[port] = {};
    inner.exports = &wanted;
    const auto y = branch(mixer_norm_(x), context, mixer_post_norm_, [&](const at::Tensor& u) {
      switch (form) {
        case Form::step:
          return mixer_->step(u, state, inner);
        case Form::tentative:
          return mixer_->tentative(u, state, inner, *draft);
        case Form::run:
          break;
      }
      return mixer_->run(u, state, inner);
    });
    for (const auto& [port, name] : exports_) strands[name] = wanted[port];
    if (ffn_ && options_.norm_placement != "post")
      std::tie(stream, h) = ffn_norm_.add(x, y);
    else
      stream = joined(x, y, mixer_post_norm_);
  }
  if (!ffn_) return stream;
  const auto y = branch(h.defined() ? h : ffn_norm_(stream), context, ffn_post_norm_,
                        [&](const at::Tensor& u) { return ffn_->run(u, context); });
  return joined(stream, y, ffn_post_norm_);
}

}  // namespace weft
