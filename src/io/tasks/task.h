// Learning tasks: seeded sources of examples, generated or read from files. A task is one file in this folder
// with a class, its Options and one line that registers it; recipes name it: data: {task: mqar, length: 64}.
//
// B examples (rows) of a batch, T positions of each, F features, O outputs.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/fields.h"
#include "base/version.h"

namespace weft {

// What a task asks of a model.
struct TaskShape {
  enum class Kind {
    tokens,   // a token at some positions: targets [B, T] int64, kNoTarget where nothing is asked
    classes,  // one class for the whole row: targets [B] int64
    values,   // numbers at every position: targets [B, T, O] fp32, NaN where nothing is asked
    vector,   // numbers for the whole row: targets [B, O] fp32
  };
  Kind kind = Kind::tokens;
  int64_t vocab = 0;     // inputs are tokens 0 .. vocab - 1, [B, T] int64; 0: inputs are features
  int64_t features = 0;  // F of inputs [B, T, F] fp32
  int64_t outputs = 0;   // tokens: vocabulary of the targets; classes: how many; values, vector: O
  double chance = 0;  // accuracy of a guess that has learned nothing but frequencies; kinds tokens, classes
};

inline constexpr int64_t kNoTarget = -100;

struct Examples {
  at::Tensor inputs, targets;
};

enum class Split { train, test };

class Task {
 public:
  virtual ~Task() = default;
  virtual TaskShape shape() const = 0;
  // Number of examples of a split; 0: as many as one likes, all drawn anew.
  virtual int64_t size(Split) const { return 0; }
  // `rows` examples, on the CPU: numbers `first` .. first + rows - 1 of the split. Equal (seed, split, number) give equal
  // examples on every machine; the two splits of generated tasks are drawn independently. Of a split with a size,
  // training examples come in an order that depends on the seed and on the epoch (number / size), test examples in
  // their own order, and `first + rows` stays within the size.
  virtual Examples examples(Split split, int64_t first, int64_t rows, uint64_t seed) const = 0;
};

// Random numbers of one example: a stream that depends on (seed, split, number) only.
class ExampleRandom {
 public:
  ExampleRandom(uint64_t seed, Split split, int64_t number);
  uint64_t bits();                              // 64 random bits
  int64_t below(int64_t n);                     // uniform in 0 .. n - 1
  double uniform();                             // in [0, 1)
  double normal();                              // mean 0, variance 1
  std::vector<int64_t> permutation(int64_t n);  // of 0 .. n - 1
  std::vector<int64_t> choose(int64_t n,
                              int64_t count);  // `count` different ones of 0 .. n - 1, in random order

 private:
  uint64_t state_;
};

struct TaskEntry {
  std::string name, summary;
  std::vector<FieldInfo> fields;
  std::function<std::unique_ptr<Task>(const Node& node)> make;
  std::function<Node(const Node& node)> resolve;  // all options written out
};

void register_task(TaskEntry entry);
std::vector<std::string> task_names();         // sorted
const TaskEntry& find_task(const Node& name);  // InputError at the node, with the nearest known name

// Makes the task that `node` describes: {task: NAME, option: value, ...}.
std::unique_ptr<Task> make_task(const Node& node);
Node resolve_task(const Node& node);

// A task K has struct K::Options { ...; void fields(Fields&); } and K(const K::Options&).
template <class K>
struct RegisterTask {
  RegisterTask(const char* name, const char* summary) {
    register_task({.name = name,
                   .summary = summary,
                   .fields = list_options<typename K::Options>(),
                   .make = [name = std::string(name)](const Node& node) -> std::unique_ptr<Task> {
                     return std::make_unique<K>(read_options<typename K::Options>(node, name, {"task"}));
                   },
                   .resolve =
                       [name = std::string(name)](const Node& node) {
                         auto options =
                             write_options(read_options<typename K::Options>(node, name, {"task"}));
                         options.set_child("task", Node::scalar(name));
                         return options;
                       }});
  }
};

}  // namespace weft
