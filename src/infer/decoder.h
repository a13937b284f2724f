// One sequence on its way through a model, and the text that its tokens become: what generating and chatting share.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "infer/step_graph.h"
#include "infer/stop_strings.h"
#include "io/tokenizers/tokenizer.h"
#include "nn/model.h"

namespace weft {

// Ids in, logits of the next one out. Call without gradients. On a GPU steps are replayed as a CUDA graph where the model's
// can be.
class Decoder {
 public:
  Decoder(Model& model, const Tokenizer* tokenizer);

  // ids [T] -> the logits after the last of them, valid until the next call; ids that the tokenizer (if there is one) has no text
  // for are -inf.
  std::span<float> prefill(std::span<const int64_t> ids);
  std::span<float> step(int64_t id);
  int64_t state_bytes() { return state().layers.bytes(); }
  // A copy is cheap: see State. The reference holds until the next call.
  const ModelState& state();
  void set_state(ModelState state);
  // Why steps are not replayed as a graph; empty while they are or may be.
  const std::string& no_graph() const { return no_graph_; }

 private:
  at::Tensor tensor(std::span<const int64_t> ids) const;
  std::span<float> read(const at::Tensor& logits);
  bool has_graph();  // one with room for another token, made now if there is none

  Model& model_;
  ModelState state_;                  // behind the last token, unless there is a graph: then it has that
  std::unique_ptr<StepGraph> graph_;  // null on the CPU, and before the first step behind a prompt
  std::string no_graph_;
  std::vector<float> logits_;
  std::vector<size_t> no_tokens_;
};

// Ids to text that may be shown: whole characters, without special tokens, up to a stop string. Appends to `text` and
// gives `on_text` each piece.
class TextStream {
 public:
  TextStream(const Tokenizer& tokenizer, const std::vector<std::string>& stop,
             const std::function<void(std::string_view)>& on_text, std::string& text)
      : decoder_(tokenizer, true), stop_(stop), on_text_(on_text), text_(text) {}
  // Whether a stop string has come.
  bool push(int64_t id) { return give(stop_.push(decoder_.push(id))); }
  void finish();

 private:
  bool give(const std::string& text);
  StreamDecoder decoder_;
  StopStrings stop_;
  const std::function<void(std::string_view)>& on_text_;
  std::string& text_;
};

}  // namespace weft
