#include "train/checkpoint.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>

#include <algorithm>
#include <filesystem>
#include <utility>

#include "base/crc32c.h"
#include "base/error.h"
#include "base/files.h"
#include "base/text.h"
#include "io/model_directory.h"
#include "train/recipe.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

constexpr const char* kRandomCpu = "random.cpu";
constexpr const char* kRandomDevice = "random.device";
constexpr const char* kTrainer = "trainer.yaml";

Node number(double value) { return Node::scalar(fmt::format("{}", value)); }
Node whole(int64_t value) { return Node::scalar(fmt::format("{}", value)); }

at::Generator device_generator(at::Device device) { return at::globalContext().defaultGenerator(device); }

NamedTensors optimizer_tensors(const Training& training) {
  auto tensors = training.optimizer.state();
  tensors.emplace_back(kRandomCpu, at::detail::getDefaultCPUGenerator().get_state());
  const auto device = training.model.device();
  if (!device.is_cpu()) tensors.emplace_back(kRandomDevice, device_generator(device).get_state());
  return tensors;
}

void restore_random(const SafeTensors& file, at::Device device) {
  auto cpu = at::detail::getDefaultCPUGenerator();
  cpu.set_state(file.load(kRandomCpu));
  if (device.is_cpu() || !file.contains(kRandomDevice)) return;
  auto generator = device_generator(device);
  generator.set_state(file.load(kRandomDevice));
}

uint32_t sum_of(const std::string& path) { return crc32c(MappedFile(path).text()); }

Node sums(const std::string& folder) {
  Node node = Node::map();
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  for (const auto& name : names) node.set_child(name, whole(sum_of(folder + "/" + name)));
  return node;
}

void check_sums(const std::string& folder, const Node& sums) {
  for (const auto& [name, sum] : sums.entries()) {
    const std::string path = folder + "/" + name;
    require(sum_of(path) == sum.as_int(),
            "{}: this file is damaged (its checksum is not the one noted in {})", path, kTrainer);
  }
}

// Calls read(); an error says also what to do about a checkpoint that is not whole.
template <class Read>
auto read_or_advise(const std::string& folder, Read read) {
  try {
    return read();
  } catch (const InputError& error) {
    throw InputError(
        fmt::format("{}; remove the folder {} to go on from the checkpoint before", error.what(), folder));
  }
}

Node to_node(const TrainerState& state) {
  Node node = Node::map();
  node.set_child("step", whole(state.step));
  node.set_child("tokens", whole(state.tokens));
  node.set_child("seconds", number(state.seconds));
  node.set_child("epoch", whole(state.data.epoch));
  node.set_child("row", whole(state.data.index));
  node.set_child("corpus", Node::scalar(state.corpus));
  if (state.best_loss) {
    node.set_child("best_loss", number(*state.best_loss));
    node.set_child("best_step", whole(state.best_step));
  }
  return node;
}

TrainerState to_state(const Node& node) {
  TrainerState state;
  state.step = node.at("step").as_int();
  state.tokens = node.at("tokens").as_int();
  state.seconds = node.at("seconds").as_double();
  state.data = {node.at("epoch").as_int(), node.at("row").as_int()};
  state.corpus = node.at("corpus").as_string();
  if (const Node* best = node.find("best_loss")) {
    state.best_loss = best->as_double();
    state.best_step = node.at("best_step").as_int();
  }
  return state;
}

}  // namespace

void save_checkpoint(const std::string& run_folder, const Training& training, const TrainerState& state) {
  const auto path = checkpoint_path(run_folder, state.step);
  if (fs::exists(path)) return;
  StagedDirectory staged(path);
  write_model_files(staged, training.model, &training.tokenizer, training.config_text);
  write_safetensors(staged.file("optimizer.safetensors"), optimizer_tensors(training));
  write_atomically(staged.file("recipe.yaml"), training.recipe.dump());
  Node trainer = to_node(state);
  trainer.set_child("sums", sums(staged.staging_path()));
  write_atomically(staged.file(kTrainer), trainer.dump());
  staged.commit();
}

TrainerState load_checkpoint(const std::string& path, const Training& training,
                             const std::string& corpus_fingerprint) {
  const auto [state, recipe] = read_or_advise(path, [&] {
    const Node trainer = Node::load(path + "/" + kTrainer);
    check_sums(path, trainer.at("sums"));
    return std::pair{to_state(trainer), Node::load(path + "/recipe.yaml")};
  });
  auto conflicts = recipe_conflicts(recipe, training.recipe);
  if (state.corpus != corpus_fingerprint)
    conflicts.push_back(
        fmt::format("training text: {} in the checkpoint, {} now", state.corpus, corpus_fingerprint));
  require(conflicts.empty(),
          "{}: this checkpoint does not fit the recipe, so the run cannot be resumed; use another run.dir, "
          "or change back:"
          "\n  {}",
          path, join(conflicts, "\n  "));
  read_or_advise(path, [&] {
    load_weights(path + "/weights.safetensors", training.model);
    const SafeTensors file(path + "/optimizer.safetensors");
    training.optimizer.load(file);
    restore_random(file, training.model.device());
  });
  return state;
}

void prune_checkpoints(const std::string& run_folder, int64_t keep, int64_t best_step) {
  auto checkpoints = list_checkpoints(run_folder);
  const auto surplus = static_cast<int64_t>(checkpoints.size()) - keep;
  for (int64_t i = 0; i < surplus; ++i) {
    const auto& checkpoint = checkpoints[static_cast<size_t>(i)];
    if (best_step > 0 && checkpoint.step == best_step) continue;
    // Moved away first, so that a kill in the middle leaves no checkpoint that is half there.
    StagedDirectory trash(checkpoint.path + ".old");
    fs::rename(checkpoint.path, trash.file("checkpoint"));
  }
}

}  // namespace weft
