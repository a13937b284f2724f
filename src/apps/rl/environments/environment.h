// Environments of reinforcement learning, many at once: n games of one kind advance together, each field of their
// states stands in one array over the games, and a game that ends begins anew in the same call. An
// environment is one file in this folder with a class, its Options and one line that registers it; recipes
// name it: environment: {name: repeat_previous, difficulty: easy}.
//
// n games, O features of an observation, A numbers of a continuous action.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/fields.h"
#include "base/version.h"
#include "io/tasks/task.h"

namespace weft::rl {

struct EnvironmentShape {
  int64_t observation = 0;  // O
  int64_t actions = 0;      // how many there are to choose from; 0: an action is A numbers
  int64_t action_size = 0;  // A of continuous actions
  int64_t longest = 0;      // steps of the longest possible episode
  bool discrete() const { return actions > 0; }
};

// n games that are stepped together. All tensors are on the CPU and contiguous.
class Environments {
 public:
  virtual ~Environments() = default;
  virtual EnvironmentShape shape() const = 0;
  virtual int64_t count() const = 0;
  // Begins a new episode in every game; writes what is seen first, [n, O] fp32.
  virtual void reset(const at::Tensor& observations) = 0;
  // `actions` are [n] int64 or [n, A] fp32. Writes what each game shows next [n, O] fp32, what the action
  // earned [n] fp32, and whether the episode ended with it [n] bool: then the observation is the first of
  // the next episode.
  virtual void step(const at::Tensor& actions, const at::Tensor& observations, const at::Tensor& rewards,
                    const at::Tensor& ended) = 0;
};

struct EnvironmentEntry {
  std::string name, summary;
  std::vector<FieldInfo> fields;
  std::function<std::unique_ptr<Environments>(const Node& node, int64_t count, uint64_t seed, int64_t first)>
      make;
};

void register_environment(EnvironmentEntry entry);
std::vector<std::string> environment_names();  // sorted
const EnvironmentEntry& find_environment(
    const Node& name);  // InputError at the node, with the nearest known name

// `count` games of what `node` describes: {name: NAME, option: value, ...}. Episode e of game i draws its
// random numbers from a stream of its own that depends on (seed, first + i, e) only, so games are the same
// whether they are stepped alone or together, on every machine.
std::unique_ptr<Environments> make_environments(const Node& node, int64_t count, uint64_t seed,
                                                int64_t first = 0);

struct Reward {
  double value = 0;
  bool ended = false;
};

// The levels of POPGym: 0 easy, 1 medium, 2 hard.
struct Difficulty {
  std::string name = "easy";
  void fields(Fields& f) { f("difficulty", name, "size of the game", one_of({"easy", "medium", "hard"})); }
  template <class T>
  T pick(T easy, T medium, T hard) const {
    return name == "easy" ? easy : name == "medium" ? medium : hard;
  }
};

// Environments from a class E that knows one kind of game, with arrays over n of them:
//   struct E::Options { ...; void fields(Fields&); };   E(const E::Options&, int64_t n);
//   EnvironmentShape shape() const;
//   void begin(int64_t i, ExampleRandom& random);                      game i starts
//   Reward act(int64_t i, Action action, ExampleRandom& random);       Action: int64_t, or const float* [A]
//   void observe(int64_t i, float* out) const;                         fills [O], zeros on entry
template <class E>
class Batched final : public Environments {
 public:
  Batched(const typename E::Options& options, int64_t count, uint64_t seed, int64_t first)
      : games_(options, count),
        shape_(games_.shape()),
        seed_(seed),
        first_(first),
        episodes_(static_cast<size_t>(count), 0),
        random_(static_cast<size_t>(count), ExampleRandom(0, Split::train, 0)) {}

  EnvironmentShape shape() const override { return shape_; }
  int64_t count() const override { return static_cast<int64_t>(episodes_.size()); }

  void reset(const at::Tensor& observations) override {
    float* seen = checked_observations(observations);
    for (int64_t i = 0; i < count(); ++i) {
      begin(i);
      games_.observe(i, seen + i * shape_.observation);
    }
  }

  void step(const at::Tensor& actions, const at::Tensor& observations, const at::Tensor& rewards,
            const at::Tensor& ended) override {
    invariant(actions.is_contiguous() && actions.size(0) == count(), "actions of {} games are {}", count(),
              actions.sizes());
    float* seen = checked_observations(observations);
    float* earned = rewards.mutable_data_ptr<float>();
    bool* over = ended.mutable_data_ptr<bool>();
    for (int64_t i = 0; i < count(); ++i) {
      const Reward reward = act(i, actions);
      earned[i] = static_cast<float>(reward.value);
      over[i] = reward.ended;
      if (reward.ended) begin(i);
      games_.observe(i, seen + i * shape_.observation);
    }
  }

 private:
  float* checked_observations(const at::Tensor& observations) const {
    invariant(observations.is_contiguous() && observations.size(0) == count() &&
                  observations.size(1) == shape_.observation,
              "observations of {} games with {} features are {}", count(), shape_.observation,
              observations.sizes());
    float* data = observations.mutable_data_ptr<float>();
    std::fill(data, data + observations.numel(), 0.0f);
    return data;
  }

  void begin(int64_t i) {
    const auto episode = episodes_[static_cast<size_t>(i)]++;
    // Games and episodes stay below 2^31 and 2^32.
    auto& random = random_[static_cast<size_t>(i)] =
        ExampleRandom(seed_, Split::train, ((first_ + i) << 32) + episode);
    games_.begin(i, random);
  }

  Reward act(int64_t i, const at::Tensor& actions) {
    auto& random = random_[static_cast<size_t>(i)];
    if constexpr (requires(const float* numbers) { games_.act(i, numbers, random); }) {
      return games_.act(i, actions.const_data_ptr<float>() + i * shape_.action_size, random);
    } else {
      const int64_t action = actions.const_data_ptr<int64_t>()[i];
      require(action >= 0 && action < shape_.actions, "action {} of game {} is not one of 0 .. {}", action, i,
              shape_.actions - 1);
      return games_.act(i, action, random);
    }
  }

  E games_;
  EnvironmentShape shape_;
  uint64_t seed_;
  int64_t first_;
  std::vector<int64_t> episodes_;  // begun
  std::vector<ExampleRandom> random_;
};

template <class E>
struct RegisterEnvironment {
  RegisterEnvironment(const char* name, const char* summary) {
    register_environment({.name = name,
                          .summary = summary,
                          .fields = list_options<typename E::Options>(),
                          .make = [name = std::string(name)](const Node& node, int64_t count, uint64_t seed,
                                                             int64_t first) -> std::unique_ptr<Environments> {
                            return std::make_unique<Batched<E>>(
                                read_options<typename E::Options>(node, name, {"name"}), count, seed, first);
                          }});
  }
};

}  // namespace weft::rl
