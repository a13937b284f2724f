#include "study/study.h"

#include <algorithm>
#include <filesystem>

#include "base/error.h"
#include "base/text.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

const std::vector<std::string> kOwnKeys = {"title", "system", "paper", "note",   "experiment",
                                           "arms",  "seeds",  "sizes", "report", "claims"};

bool contains(const std::vector<std::string>& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

std::string text_or(const Node& root, const char* key, const std::string& otherwise) {
  const auto* node = root.find(key);
  return node && !node->is_null() ? node->as_string() : otherwise;
}

std::vector<int64_t> read_seeds(const Node* node, const std::vector<int64_t>& otherwise) {
  if (!node) return otherwise;
  std::vector<int64_t> seeds;
  for (const auto& item : node->items()) {
    seeds.push_back(item.as_int());
    require(seeds.back() >= 0, "{}: a seed is at least 0", item.where());
    require(std::count(seeds.begin(), seeds.end(), seeds.back()) == 1, "{}: seed {} is given twice",
            item.where(), seeds.back());
  }
  require(!seeds.empty(), "{}: expected at least one seed", node->where());
  return seeds;
}

void apply(Node& configuration, const Node& changes, const std::vector<std::string>& leave_out = {}) {
  require(changes.is_map() || changes.is_null(), "{}: expected fields and their values", changes.where());
  if (changes.is_null()) return;
  for (const auto& [field, value] : changes.entries()) {
    if (contains(leave_out, field)) continue;
    if (value.is_null())
      configuration.erase(field);
    else
      configuration.set(field, value.dump());
  }
}

struct ClaimFields {
  Claim claim;
  Node at_least, at_most, published;
  void fields(Fields& f) {
    f("name", claim.name, "what is claimed, in a few words");
    f("metric", claim.metric, "number that the arm reports");
    f("arm", claim.arm, "arm; left out: the first");
    f("minus", claim.minus, "arm whose number is taken away");
    f("over", claim.over, "arm by whose number it is divided");
    f("other", claim.other,
      "metric of that other arm, or of the same arm when none is named; left out: the same");
    f("at_least", at_least, "bound from below");
    f("at_most", at_most, "bound from above");
    f("threshold", claim.threshold, "where the bound is from", one_of({"ours", "published"}));
    f("published", published, "the published figure and where it stands");
    f("judge", claim.judge, "over seeds", one_of({"mean", "best", "worst"}));
    f("sizes", claim.sizes, "judged at these sizes only; left out: at all but smoke");
  }
};

std::string published_text(const Node& node) {
  if (!node.is_map()) return node.is_null() ? "" : node.as_string();
  std::string text = text_or(node, "value", "");
  if (const auto* source = node.find("source")) text += (text.empty() ? "" : ", ") + source->as_string();
  return text;
}

Claim read_claim(const Node& node, const Study& study) {
  auto read = read_options<ClaimFields>(node, "a claim");
  auto claim = read.claim;
  if (!read.at_least.is_null()) claim.at_least = read.at_least.as_double();
  if (!read.at_most.is_null()) claim.at_most = read.at_most.as_double();
  require(claim.at_least || claim.at_most, "{}: expected at_least or at_most", node.where());
  require(claim.minus.empty() || claim.over.empty(), "{}: either minus or over", node.where());
  claim.published = published_text(read.published);
  if (claim.arm.empty()) claim.arm = study.arms.front().name;
  if (claim.name.empty()) claim.name = claim.arm + " " + claim.metric;
  return claim;
}

void check_arm(const std::string& name, const std::vector<std::string>& known, const Node& node) {
  if (name.empty() || contains(known, name)) return;
  const auto guess = nearest_word(name, known);
  throw InputError(fmt::format("{}: no arm is called '{}'{}; known: {}", node.where(), name,
                               guess.empty() ? "" : ", did you mean '" + guess + "'?", join(known)));
}

std::string recipe_file(const std::string& path) {
  for (const auto& candidate : {path, path + "/recipe.yaml", "recipes/" + path + "/recipe.yaml"})
    if (fs::is_regular_file(candidate)) return candidate;
  std::vector<std::string> names;
  for (const auto& file : find_studies("recipes"))
    names.push_back(fs::path(file).parent_path().filename().string());
  throw InputError(fmt::format("{}: no such recipe; expected a file, a folder with a recipe.yaml{}", path,
                               names.empty() ? "" : ", or one of " + join(names)));
}

Node experiment_of(const Node& root, const Node& changes, const Node& configuration) {
  if (const auto* given = changes.is_map() ? changes.find("experiment") : nullptr) return *given;
  if (const auto* given = root.find("experiment")) return *given;
  const auto* data = configuration.find("data");
  return Node::scalar(data && data->is_map() && data->find("task") ? "supervised" : "language");
}

const Node* size_of(const Node& root, const std::string& size) {
  const auto* sizes = root.find("sizes");
  const auto* found = sizes ? sizes->find(size) : nullptr;
  if (!found && size != "cpu") {
    throw InputError(fmt::format("{}: it has no size '{}'; known: {}", root.where(), size,
                                 sizes ? join(sizes->keys()) : "cpu"));
  }
  return found;
}

}  // namespace

Study load_study(const std::string& path, const std::string& size, const std::vector<std::string>& sets) {
  Study study;
  study.path = recipe_file(path);
  study.folder = fs::absolute(study.path).parent_path().lexically_normal().string();
  study.size = size;
  const Node root = Node::load(study.path);
  require(root.is_map(), "{}: expected a recipe", root.where());
  study.system = text_or(root, "system", fs::path(study.folder).filename().string());
  study.title = text_or(root, "title", study.system);
  study.paper = text_or(root, "paper", "");
  study.note = text_or(root, "note", "");
  if (const auto* report = root.find("report"))
    for (const auto& item : report->items()) study.report.push_back(item.as_string());

  Node base = Node::map();
  for (const auto& [key, value] : root.entries())
    if (!contains(kOwnKeys, key)) base.set_child(key, value);
  const Node* at_size = size_of(root, size);
  study.seeds = read_seeds(at_size ? at_size->find("seeds") : nullptr, read_seeds(root.find("seeds"), {1}));

  std::vector<std::string> all;
  Node only_main = Node::map();
  only_main.set_child("main", Node::map());
  const Node& arms = root.find("arms") ? root.at("arms") : only_main;
  require(arms.is_map() && !arms.entries().empty(), "{}: expected names of arms and their changes",
          arms.where());
  for (const auto& entry : arms.entries()) all.push_back(entry.first);
  std::vector<std::string> chosen = all;
  if (const auto* list = at_size ? at_size->find("arms") : nullptr) {
    chosen.clear();
    for (const auto& item : list->items()) {
      check_arm(item.as_string(), all, item);
      chosen.push_back(item.as_string());
    }
  }
  for (const auto& [name, changes] : arms.entries()) {
    if (!contains(chosen, name)) continue;
    Arm arm{name, {}, base};
    apply(arm.configuration, changes, {"experiment"});
    if (at_size) apply(arm.configuration, *at_size, {"seeds", "arms"});
    for (const auto& set : sets) {
      const auto equals = set.find('=');
      require(equals != std::string::npos && equals > 0,
              "--set {}: expected field=value, such as run.steps=200", set);
      arm.configuration.set(set.substr(0, equals), set.substr(equals + 1));
    }
    arm.experiment = experiment_of(root, changes, arm.configuration);
    study.arms.push_back(std::move(arm));
  }
  for (const auto& name : all)
    require(!name.empty() &&
                name.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-") ==
                    std::string::npos,
            "{}: the arm '{}' needs a name of letters, digits, _ . and -", arms.where(), name);
  require(!study.arms.empty(), "{}: size {} has no arms", root.where(), size);

  if (const auto* claims = root.find("claims")) {
    require(claims->is_list(), "{}: expected a list of claims, such as [{{metric: loss, at_most: 2}}]",
            claims->where());
    for (const auto& node : claims->items()) {
      const auto claim = read_claim(node, study);
      for (const auto& arm : {claim.arm, claim.minus, claim.over}) check_arm(arm, all, node);
      study.claims.push_back(claim);
    }
  }
  return study;
}

std::vector<std::string> study_sizes(const std::string& path) {
  const Node root = Node::load(path);
  const auto* sizes = root.find("sizes");
  auto names = sizes ? sizes->keys() : std::vector<std::string>();
  if (!contains(names, "cpu")) names.push_back("cpu");
  return names;
}

std::vector<std::string> find_studies(const std::string& folder) {
  std::vector<std::string> files;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    const auto file = entry.path() / "recipe.yaml";
    if (fs::is_regular_file(file, error)) files.push_back(file.string());
  }
  std::sort(files.begin(), files.end());
  return files;
}

}  // namespace weft
