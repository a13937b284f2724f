// Conversations on disk: messages, the tokens read, and the state after them.
#include <c10/core/GradMode.h>

#include <filesystem>

#include "base/crc32c.h"
#include "base/error.h"
#include "base/files.h"
#include "infer/chat.h"
#include "io/json_place.h"
#include "io/safetensors.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kChatFormat = 1;
constexpr const char *kConversation = "conversation.json", *kChatState = "state.safetensors";

std::string conversation_file(const std::string& folder) { return folder + "/" + kConversation; }

void require_message(const JsonPlace& each) {
  const auto role = each.at("role").text();
  require(role == "user" || role == "assistant", "{}: expected user or assistant, got '{}'",
          each.at("role").where(), role);
  each.at("content").text();
}

}  // namespace

std::string chat_fingerprint(Model& model, const Tokenizer& tokenizer) {
  const at::NoGradGuard no_grad;
  std::string text = model.describe().dump() + tokenizer.fingerprint() + c10::toString(model.compute_dtype());
  for (const auto& [name, parameter] : model.parameters()) {
    const auto& value = parameter->value;
    text += fmt::format("{} [{}]", name, fmt::join(value.sizes(), ", "));
    const auto first = value.reshape(-1).slice(0, 0, 256).to(at::kCPU, at::kFloat).contiguous();
    text.append(reinterpret_cast<const char*>(first.const_data_ptr<float>()),
                static_cast<size_t>(first.numel()) * sizeof(float));
  }
  return fmt::format("{:08x}", crc32c(text));
}

void Chat::save(const std::string& folder) {
  require(!fs::exists(folder) || fs::exists(conversation_file(folder)),
          "{}: exists and is not a saved conversation; give another name", folder);
  NamedTensors tensors;
  const auto& state = decoder_.state();
  for (const auto& [name, tensor] : state.layers.tensors()) tensors.emplace_back("layers/" + name, tensor);
  tensors.emplace_back("position", state.position);
  const nlohmann::ordered_json about = {{"format", kChatFormat},
                                        {"model", model_.options().name},
                                        {"fingerprint", chat_fingerprint(model_, tokenizer_)},
                                        {"system", options_.system},
                                        {"turns", turns_},
                                        {"messages", messages_},
                                        {"tokens", seen_}};
  StagedDirectory staged(folder, StagedDirectory::Existing::replace);
  write_atomically(staged.file(kConversation), about.dump(1) + "\n");
  write_safetensors(staged.file(kChatState), std::move(tensors));
  staged.commit();
}

void Chat::load(const std::string& folder) {
  const auto path = conversation_file(folder);
  require(fs::exists(path), "{}: is no saved conversation (it has no {})", folder, kConversation);
  const auto text = read_text(path);
  const auto json = parse_json(text, path);
  const JsonPlace place(json, path);
  require(place.at("format").integer() == kChatFormat,
          "{}: format {} is unknown; this version of weft reads format {}", path,
          place.at("format").integer(), kChatFormat);
  const auto ours = chat_fingerprint(model_, tokenizer_), theirs = place.at("fingerprint").text();
  require(ours == theirs,
          "{}: this conversation was held with another model, tokenizer or --dtype (model '{}', fingerprint "
          "{}; this one "
          "is '{}', {})",
          path, place.at("model").text(), theirs, model_.options().name, ours);
  std::vector<int64_t> tokens;
  for (const auto& each : place.at("tokens").items()) tokens.push_back(each.integer());
  const auto messages = place.at("messages").items();
  for (const auto& each : messages) require_message(each);

  const SafeTensors file(folder + "/" + kChatState);
  std::map<std::string, at::Tensor> tensors;
  at::Tensor position;
  for (const auto& name : file.names()) {
    if (name == "position")
      position = file.load(name);
    else if (name.starts_with("layers/"))
      tensors[name.substr(7)] = file.load(name).to(model_.device());
  }
  const auto count = static_cast<int64_t>(tokens.size());
  require(position.defined() && position.dim() == 1 && position.numel() == 1 &&
              position.scalar_type() == at::kLong && position.item<int64_t>() == count,
          "{}: tensor 'position' should say {}, the number of tokens in {}", file.path(), count,
          kConversation);
  auto state = model_.initial_state(1);
  state.layers = state.layers.with(tensors);
  state.position = position;

  const auto system = place.at("system").text();
  const auto turns = place.at("turns").integer();

  decoder_.set_state(std::move(state));
  seen_ = std::move(tokens);
  snapshots_.clear();
  if (!seen_.empty()) keep_snapshot();
  options_.system = system;
  turns_ = turns;
  messages_ = nlohmann::ordered_json::parse(text).at("messages");  // keys in their order
}

}  // namespace weft
