#include "train/recipe.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <set>

#include "base/error.h"
#include "base/text.h"
#include "io/model_directory.h"
#include "train/optimizers/optimizer.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

struct Sections {
  Node model, from, tokenizer, data, optimizer, schedule, run, claims;
  void fields(Fields& f) {
    f("model", model, "the network");
    f("from", from, "in place of model: path of a model, weft's or pretrained, whose training goes on");
    f("tokenizer", tokenizer,
      "bytes, {bpe: {vocab: N}}, or the path of a tokenizer.json; bytes, or that of the model in `from`, "
      "unless given");
    f("data", data, "training and validation text");
    f("optimizer", optimizer, "one optimizer and its options");
    f("schedule", schedule, "learning rate over the run");
    f("run", run, "length, batch, seed, precision, logging, checkpoints");
    f("claims", claims, "what the recipe is said to reach");
  }
};

bool from_command_line(const Node& node) { return node.source().starts_with("--set"); }

std::string resolve_path(const Node& node, const fs::path& folder) {
  const auto& text = node.as_string();
  require(!text.empty(), "{}: expected a path", node.where());
  const fs::path base = from_command_line(node) ? fs::current_path() : folder;
  return (base / text).lexically_normal().string();
}

std::vector<std::string> resolve_paths(const Node& data, const char* name, const fs::path& folder) {
  std::vector<std::string> paths;
  const Node* node = data.find(name);
  if (!node || node->is_null()) return paths;
  if (node->is_scalar()) return {resolve_path(*node, folder)};
  for (const auto& item : node->items()) paths.push_back(resolve_path(item, folder));
  return paths;
}

DataOptions read_data(const Node& node, const fs::path& folder) {
  auto data = read_options<DataOptions>(node, "data");
  data.train = resolve_paths(node, "train", folder);
  data.valid = resolve_paths(node, "valid", folder);
  require(!data.train.empty(), "{}: 'train' is missing; give the files to train on", node.where());
  require(data.valid.empty() || data.valid_fraction == 0,
          "{}: either give validation files (valid) or cut them from the training text (valid_fraction), not "
          "both",
          node.where());
  return data;
}

// The tokenizer with a path made absolute and BPE options written out.
Node read_tokenizer(const Node& node, const fs::path& folder) {
  if (node.is_scalar()) {
    const auto& name = node.as_string();
    if (name == "bytes" || name == "characters" || name == "dna" || name.starts_with("dna-"))
      return Node::scalar(name);
    return Node::scalar(resolve_path(node, folder));
  }
  require(node.is_map() && node.entries().size() == 1 && node.find("bpe"),
          "{}: expected bytes, {{bpe: {{vocab: 4096}}}} or the path of a tokenizer.json", node.where());
  Node result = Node::map();
  result.set_child("bpe", write_options(read_options<BpeOptions>(node.at("bpe"), "bpe")));
  return result;
}

// Fills model and tokenizer from the model that the recipe goes on from.
void read_origin(const Node& from, const Node& model, const Node& tokenizer, const fs::path& folder,
                 Recipe& recipe) {
  recipe.from = resolve_path(from, folder);
  const auto loaded = load_model(recipe.from);
  recipe.model = loaded.model->options();
  if (!model.is_null()) {  // a run's resolved recipe holds both
    auto given = read_options<ModelOptions>(model, "model");
    if (given.vocab == 0) given.vocab = recipe.model.vocab;
    require(Model(given).describe().dump() == loaded.model->describe().dump(),
            "{}: is another model than that in {}, whose training is to go on; leave out one of the two",
            model.where(), recipe.from);
  }
  if (!tokenizer.is_null()) return;
  require(
      !loaded.tokenizer_folder.empty(),
      "{}: the model came without a tokenizer; give one (tokenizer: bytes, or the path of a tokenizer.json)",
      from.where());
  recipe.tokenizer =
      Node::scalar(fs::absolute(loaded.tokenizer_folder).lexically_normal().string() + "/tokenizer.json");
}

// recipes/demo/recipe.yaml -> runs/demo, other.yaml -> runs/other
std::string default_run_dir(const std::string& path) {
  const auto full = fs::absolute(path).lexically_normal();
  const auto stem = full.stem().string();
  return "runs/" + (stem == "recipe" ? full.parent_path().filename().string() : stem);
}

std::string text_of(const Node* node) {
  if (!node) return "nothing";
  std::string text = node->dump();
  while (!text.empty() && text.back() == '\n') text.pop_back();
  std::replace(text.begin(), text.end(), '\n', ' ');
  return text.size() > 60 ? text.substr(0, 57) + "..." : text;
}

bool same(const Node& a, const Node& b) { return a.dump() == b.dump(); }

void compare(const Node* before, const Node* now, const std::string& path, const std::set<std::string>& free,
             std::vector<std::string>& out) {
  if (free.count(path)) return;
  if (before && now && before->is_map() && now->is_map()) {
    std::set<std::string> keys;
    for (const auto* node : {before, now})
      for (const auto& key : node->keys()) keys.insert(key);
    for (const auto& key : keys)
      compare(before->find(key), now->find(key), path.empty() ? key : path + "." + key, free, out);
  } else if (!before || !now || !same(*before, *now)) {
    out.push_back(fmt::format("{}: {} in the checkpoint, {} now", path, text_of(before), text_of(now)));
  }
}

}  // namespace

void DataOptions::fields(Fields& f) {
  f("train", train, "files to train on");
  f("valid", valid, "files to validate on");
  f("valid_fraction", valid_fraction, "share of the training text that is held out, from its end",
    at_least(0), below(1));
  f("separator", separator, "text: what stands between documents; empty: each file is one");
  f("field", field, "JSON lines: the member that holds the text");
  f("length", length, "T, tokens of a row", at_least(2));
  f("hint", hint, "what to do when a file is absent");
}

void BpeOptions::fields(Fields& f) {
  f("vocab", vocab, "tokens in all: 256 bytes, merges, end of text", at_least(257));
  f("pattern", pattern, "regular expression of the pieces that merges stay inside; empty: GPT-2's");
  f("min_count", min_count, "a pair must occur this often to be merged", at_least(1));
}

void RunOptions::fields(Fields& f) {
  f("dir", dir, "folder of the run, relative to the current one; default runs/<recipe>");
  f("steps", steps, "updates of the parameters", at_least(1));
  f("batch", batch, "rows of one forward pass", at_least(1));
  f("accumulate", accumulate, "forward passes of one step", at_least(1));
  f("seed", seed, "of parameters and the order of the data", at_least(0));
  f("dtype", dtype, "of activations; parameters are fp32", one_of({"fp32", "bf16"}));
  f("clip", clip, "bound of the gradient's norm; 0: none", at_least(0));
  f("recompute", recompute,
    "keep each layer's input only and compute the rest again: less memory, more time");
  f("checkpoint_every", checkpoint_every, "steps; 0: at the end only", at_least(0));
  f("keep", keep, "checkpoints kept, beside the best one", at_least(1));
  f("log_every", log_every, "steps", at_least(1));
  f("eval_every", eval_every, "steps; 0: at the end only", at_least(0));
  f("eval_batches", eval_batches, "batches of an evaluation during the run; 0: all", at_least(0));
  f("tensorboard", tensorboard, "write TensorBoard event files");
}

Node Recipe::resolved() const {
  Node node = Node::map();
  if (!from.empty()) node.set_child("from", Node::scalar(from));
  node.set_child("model", write_options(model));
  node.set_child("tokenizer", tokenizer);
  node.set_child("data", write_options(data));
  node.set_child("optimizer", optimizer);
  node.set_child("schedule", write_options(schedule));
  node.set_child("run", write_options(run));
  if (!claims.is_null()) node.set_child("claims", claims);
  return node;
}

Recipe load_recipe(const std::string& path, const std::vector<std::string>& sets) {
  Node root = Node::load(path);
  for (const auto& set : sets) {
    const auto equals = set.find('=');
    require(equals != std::string::npos && equals > 0,
            "--set {}: expected field=value, such as run.steps=200", set);
    root.set(set.substr(0, equals), set.substr(equals + 1));
  }
  return read_recipe(root, fs::absolute(path).parent_path().string(), path);
}

Recipe read_recipe(const Node& root, const std::string& folder, const std::string& path) {
  require(!root.find("arms") && !root.find("sizes"),
          "{}: this recipe compares several arms; run it with weft reproduce {}", root.where(), path);
  const auto sections = read_options<Sections>(root, "a recipe");
  Recipe recipe;
  recipe.path = path;
  if (!sections.tokenizer.is_null()) recipe.tokenizer = read_tokenizer(sections.tokenizer, folder);
  if (sections.from.is_null())
    recipe.model = read_options<ModelOptions>(root.at("model"), "model");
  else
    read_origin(sections.from, sections.model, sections.tokenizer, folder, recipe);
  recipe.data = read_data(root.at("data"), folder);
  recipe.optimizer = resolve_optimizer(root.at("optimizer"));
  recipe.schedule = read_options<ScheduleOptions>(sections.schedule, "schedule");
  recipe.run = read_options<RunOptions>(sections.run, "run");
  if (recipe.run.dir.empty()) recipe.run.dir = default_run_dir(path);
  require(sections.claims.is_null() || sections.claims.is_list(),
          "{}: expected a list of claims, such as [{{metric: loss, at_most: 2}}]", sections.claims.where());
  recipe.claims = sections.claims;
  return recipe;
}

std::vector<std::string> recipe_conflicts(const Node& before, const Node& now) {
  // Data is compared by content, in the run's folder; paths may move.
  static const std::set<std::string> free = {
      "claims",   "data.train",     "data.valid",       "data.hint",       "model.name",
      "from",     "run.dir",        "run.steps",        "run.log_every",   "run.checkpoint_every",
      "run.keep", "run.eval_every", "run.eval_batches", "run.tensorboard", "run.recompute"};
  std::vector<std::string> conflicts;
  compare(&before, &now, "", free, conflicts);
  return conflicts;
}

}  // namespace weft
