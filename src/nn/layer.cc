#include "nn/layer.h"

#include <algorithm>

#include "base/error.h"
#include "base/text.h"
#include "ops/shape.h"

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

const Strand& strand_of(const Strands& strands, const std::string& name) {
  const auto found = strands.find(name);
  require(found != strands.end(), "layer: nothing above exports '{}'", name);
  return found->second;
}

bool normalises_before(const std::string& placement) { return placement != "post" && placement != "branch"; }
bool normalises_branch(const std::string& placement) {
  return placement == "branch" || placement == "sandwich";
}

}  // namespace

void LayerOptions::fields(Fields& f) {
  f("norm", norm, "norm of the residual stream; rms_zero_centered scales by 1 + weight",
    one_of(norm_names()));
  f("norm_eps", norm_eps, "added to the mean square before the root", above(0));
  f("norm_placement", norm_placement,
    "pre: x + f(norm(x)); post: norm(x + f(x)); branch: x + norm(f(x)); sandwich: x + norm(f(norm(x))); "
    "parallel: "
    "x + mixer(norm(x)) + ffn(norm(x)); normed: h + f(h) with h = norm(x)",
    one_of({"pre", "post", "branch", "sandwich", "parallel", "normed"}));
  f("post_norm_offset", post_norm_offset,
    "norms of what a branch gives, of kind rms_zero_centered, scale by this + weight");
  f("residual_scale", residual_scale, "multiplies what each branch adds to the residual stream");
  f("skip_scale", skip_scale, "multiplies the residual stream that a branch is added to");
  f("separate_inputs", separate_inputs,
    "each input of a mixer that takes several has a norm of its own, and where the stream is read by queries "
    "a query");
  f("whole_stream", whole_stream,
    "the branches read and write all streams side by side as one plain stream; their width is then that of "
    "all");
  f("from", from, "strand that the layer works on instead of the stream");
  f("to", to, "strand that the layer's result becomes; the stream stays as it was");
  f("add", add, "strand added to the input of the first branch, before its norm, not to the stream");
  f("concat", concat, "strand joined to the input of the mixer, before its norm: it sees twice the width");
  f("share", share, "layers that give the same name have the same parameters");
  f("ffn", ffn, "channel mixer, {name: options}");
  f("export", export_, "what later layers may import, {port: name}");
  f("import", import, "what an earlier layer exports, {port: name}");
}

Layer::Layer(const Node& node, const LayerOptions& defaults, Site site, const Residual& residual, bool looped)
    : node_(Node::map()), where_(node.where()), options_(defaults) {
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
  if (!has_mixer) reader.finish();
  check_stream(residual);
  if (options_.whole_stream) site.width = residual.width();
  site.where = node.where();
  site.norm_eps = options_.norm_eps;
  site.residual_branches = (has_mixer ? 1 : 0) + (options_.ffn.is_null() ? 0 : 1);
  require(site.residual_branches > 0, "{}: a layer needs a mixer, a channel mixer (ffn), or both",
          node.where());

  BranchSite branch{.width = site.width,
                    .layer = site.layer,
                    .first_in_layer = true,
                    .looped = looped,
                    .inputs = 1,
                    .separate_inputs = options_.separate_inputs,
                    .norm_eps = options_.norm_eps,
                    .skip_scale = options_.skip_scale};
  if (has_mixer) make_mixer(node, site, branch, residual);
  if (!options_.ffn.is_null()) {
    ffn_ = make_channel_mixer(options_.ffn, site);
    add_child("ffn", *ffn_);
    branch.first_in_layer = !has_mixer;
    ffn_branch_ = make_branch("ffn", branch, site.width, residual);
    options_.ffn = resolve_channel_mixer(options_.ffn);
  }
  read_ports_of_layer();
  const Node layer_options = write_options(options_);
  for (const auto& [key, value] : layer_options.entries())
    if (!value.is_null() && !(value.is_scalar() && value.as_string().empty())) node_.set_child(key, value);
}

void Layer::make_mixer(const Node& node, Site site, BranchSite branch, const Residual& residual) {
  if (!options_.concat.empty()) site.input_width = 2 * site.width;
  mixer_ = weft::make_mixer(node, site, option_names());
  require(options_.concat.empty() || mixer_->takes_wide_input(),
          "{}: the mixer {} takes inputs of the model's width only; concat needs one that takes wider ones, "
          "such as "
          "attention",
          node.where(), node.at("mixer").as_string());
  add_child("mixer", *mixer_);
  branch.inputs = mixer_->inputs();
  mixer_branch_ = make_branch("mixer", branch, site.input(), residual);
  mixer_exports_ = read_ports(options_.export_, mixer_->export_ports(), "export");
  mixer_imports_ = read_ports(options_.import, mixer_->import_ports(), "import");
  for (const auto& port : mixer_->import_ports())
    require(mixer_imports_.count(port) > 0,
            "{}: the mixer {} needs import: {{{}: NAME}}, where NAME is what an earlier layer exports",
            node.where(), node.at("mixer").as_string(), port);
  auto ignore = option_names();
  ignore.push_back("mixer");
  const Node resolved = find_mixer(node.at("mixer")).resolve(node, ignore);
  node_.set_child("mixer", node.at("mixer"));
  for (const auto& [key, value] : resolved.entries()) node_.set_child(key, value);
}

void Layer::check_stream(const Residual& residual) const {
  require(options_.post_norm_offset == 1.0 ||
              (options_.norm == "rms_zero_centered" && normalises_branch(options_.norm_placement)),
          "{}: post_norm_offset {} needs norm: rms_zero_centered, with norm_placement branch or sandwich",
          where_, options_.post_norm_offset);
  const bool aside =
      !options_.from.empty() || !options_.to.empty() || !options_.add.empty() || !options_.concat.empty();
  require(!aside || residual.plain(), "{}: from, to, add and concat need the plain residual stream", where_);
  const bool plain = residual.plain() || options_.whole_stream;
  require(plain || options_.skip_scale == 1.0, "{}: skip_scale needs the plain residual stream", where_);
  require(plain || options_.norm_placement == "pre" || options_.norm_placement == "parallel" ||
              normalises_branch(options_.norm_placement),
          "{}: norm_placement {} needs the plain residual stream", where_, options_.norm_placement);
}

Layer::Branch Layer::make_branch(const std::string& name, const BranchSite& site, int64_t input,
                                 const Residual& residual) {
  const auto& placement = options_.norm_placement;
  const auto kind = norm_kind(options_.norm);
  Branch branch{
      .connection = options_.whole_stream ? plain_connection(site.skip_scale) : residual.connect(site),
      .before = {},
      .after = {},
      .inputs = site.inputs};
  for (int64_t i = 0; i < (site.separate_inputs ? site.inputs : 1); ++i)
    branch.before.push_back(normalises_before(placement)
                                ? norm(i == 0 ? name + "_norm" : fmt::format("{}_norm_{}", name, i + 1), kind,
                                       input, site.norm_eps)
                                : Norm());
  if (placement == "post" || normalises_branch(placement))
    branch.after = norm(name + "_norm_post", kind, site.width, site.norm_eps, options_.post_norm_offset);
  add_child(name + "_residual", *branch.connection);
  return branch;
}

void Layer::read_ports_of_layer() {
  require(options_.concat.empty() || (mixer_ && options_.norm_placement != "normed"),
          "{}: concat needs a mixer, and a residual stream that is not normed", where_);
  exports_ = mixer_exports_;
  imports_ = mixer_imports_;
  for (const auto& [port, name] :
       {std::pair{"from", options_.from}, {"add", options_.add}, {"concat", options_.concat}})
    if (!name.empty()) imports_[port] = name;
  if (!options_.to.empty()) exports_["to"] = options_.to;
}

at::Tensor Layer::with_strands(const at::Tensor& x, const Strands& strands) const {
  auto input = x;
  if (!options_.add.empty()) input = input + strand_of(strands, options_.add).only();
  if (options_.concat.empty()) return input;
  const auto& other = strand_of(strands, options_.concat).only();
  require(other.sizes() == x.sizes(), "{}: concat: the strand '{}' is {}, the stream {}", where_,
          options_.concat, shape_text(other), shape_text(x));
  return at::cat({input, other.to(input.scalar_type())}, -1);
}

Reading Layer::read(const Branch& branch, Stream& stream, const Strands& strands, bool first) const {
  if (!first || (options_.add.empty() && options_.concat.empty()))
    return branch.connection->read(stream, branch.before);
  stream.settle();
  Stream input = stream;
  input.x = with_strands(stream.x, strands);
  return branch.connection->read(input, branch.before);
}

Context Layer::mixer_context(const Context& context, const Strands& strands) const {
  Context inner = context;
  inner.imports.clear();
  for (const auto& [port, name] : mixer_imports_) inner.imports[port] = strand_of(strands, name);
  return inner;
}

MixerInput Layer::mixer_input(Stream stream, const Context& context, const Strands& strands) const {
  require(mixer_ != nullptr, "{}: the layer has no sequence mixer", where_);
  if (!options_.from.empty()) stream = Stream{.x = strand_of(strands, options_.from).only()};
  const auto reading = read(mixer_branch_, stream, strands, true);
  return {input_of(mixer_branch_, reading, stream, context), mixer_context(context, strands)};
}

at::Tensor Layer::input_of(const Branch& branch, const Reading& reading, const Stream& stream,
                           const Context& context) const {
  auto parts = reading.inputs;
  parts.resize(static_cast<size_t>(branch.inputs), parts.front());
  const auto h = parts.size() == 1 ? parts.front() : at::cat(parts, -1);
  return h.to(context.dtype != at::ScalarType::Undefined ? context.dtype : stream.x.scalar_type());
}

void Layer::write(const Branch& branch, Stream& stream, const Reading& reading, at::Tensor y) const {
  if (normalises_branch(options_.norm_placement)) y = branch.after(y);
  if (options_.residual_scale != 1.0) y = y * options_.residual_scale;
  if (options_.norm_placement == "normed") stream.x = reading.inputs.front();
  branch.connection->write(stream, reading, y);
  if (options_.norm_placement != "post") return;
  stream.settle();
  stream.x = branch.after(stream.x);
}

at::Tensor Layer::run_mixer(const at::Tensor& h, State& state, const Context& context, Strands& strands,
                            Form form, Draft* draft) {
  Context inner = mixer_context(context, strands);
  Strands wanted;
  for (const auto& [port, name] : mixer_exports_) wanted[port] = {};
  inner.exports = &wanted;
  const auto y = form == Form::step        ? mixer_->step(h, state, inner)
                 : form == Form::tentative ? mixer_->tentative(h, state, inner, *draft)
                                           : mixer_->run(h, state, inner);
  for (const auto& [port, name] : mixer_exports_) strands[name] = wanted[port];
  return y;
}

void Layer::run(Stream& stream, State& state, const Context& context, Strands& strands, Form form,
                Draft* draft) {
  if (options_.from.empty() && options_.to.empty())
    return run_branches(stream, state, context, strands, form, draft);
  stream.settle();
  Stream aside{.x = options_.from.empty() ? stream.x : strand_of(strands, options_.from).only(),
               .pending = {},
               .blocks = {},
               .messages = {}};
  run_branches(aside, state, context, strands, form, draft);
  aside.settle();
  if (options_.to.empty())
    stream.x = aside.x.to(at::promote_types(stream.x.scalar_type(), aside.x.scalar_type()));
  else
    strands[options_.to] = {.tensors = {{"x", aside.x}}};
}

void Layer::run_branches(Stream& stream, State& state, const Context& context, Strands& strands, Form form,
                         Draft* draft) {
  Reading ffn_reading;
  if (mixer_) {
    const auto reading = read(mixer_branch_, stream, strands, true);
    if (ffn_ && options_.norm_placement == "parallel")
      ffn_reading = read(ffn_branch_, stream, strands, false);
    const auto h = input_of(mixer_branch_, reading, stream, context);
    write(mixer_branch_, stream, reading, run_mixer(h, state, context, strands, form, draft));
  }
  if (ffn_) {
    if (ffn_reading.inputs.empty()) ffn_reading = read(ffn_branch_, stream, strands, !mixer_);
    const auto h = input_of(ffn_branch_, ffn_reading, stream, context);
    write(ffn_branch_, stream, ffn_reading, ffn_->run(h, context));
  }
}

}  // namespace weft
