// Tiny models of every architecture, written by transformers, with the logits that transformers computes in fp64.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include <cctype>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <map>

#include "base/error.h"
#include "base/files.h"
#include "base/scratch_folder.h"
#include "io/json_place.h"
#include "io/pretrained/architecture.h"
#include "io/pretrained/huggingface.h"
#include "io/safetensors.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

struct Fixture {
  std::string folder;
  std::vector<std::vector<int64_t>> ids;
  std::vector<int64_t> greedy;
  std::vector<at::Tensor> logits;  // [T, V] fp32
};

Fixture read_fixture(const std::string& folder) {
  Fixture fixture{.folder = folder, .ids = {}, .greedy = {}, .logits = {}};
  const auto reference = parse_json(read_text(folder + "/reference.json"), folder);
  fixture.ids = reference.at("input_ids").get<std::vector<std::vector<int64_t>>>();
  fixture.greedy = reference.at("greedy_ids").get<std::vector<int64_t>>();
  for (size_t i = 0; i < fixture.ids.size(); ++i) {
    const auto shape = reference.at("logits_shape")[i].get<std::vector<int64_t>>();
    const auto bytes = read_text(fmt::format("{}/logits_{}.f32", folder, i));
    auto values = at::empty(shape, at::kFloat);
    require(bytes.size() == values.nbytes(), "{}: logits of another size", folder);
    std::memcpy(values.mutable_data_ptr(), bytes.data(), bytes.size());
    fixture.logits.push_back(values);
  }
  return fixture;
}

at::Tensor row(const std::vector<int64_t>& ids) { return at::tensor(ids, at::kLong).unsqueeze(0); }

// The logits [T, V] of `ids` in pieces of `chunk` tokens; 0: all at once; -1: steps.
at::Tensor logits_by(Model& model, const std::vector<int64_t>& ids, int64_t chunk) {
  const at::NoGradGuard no_grad;
  auto state = model.initial_state(1);
  const auto all = row(ids);
  std::vector<at::Tensor> parts;
  const int64_t size = chunk == 0 ? all.size(1) : std::max<int64_t>(chunk, 1);
  for (int64_t begin = 0; begin < all.size(1); begin += size) {
    const auto piece = all.slice(1, begin, std::min(begin + size, all.size(1)));
    parts.push_back(model.logits(chunk < 0 ? model.step(piece, state) : model.run(piece, state)));
  }
  return at::cat(parts, 1)[0];
}

class HfTiny : public testing::TestWithParam<std::string> {
 protected:
  Fixture fixture() const { return read_fixture("tests/data/hf_tiny/" + GetParam()); }
};

void expect_agreement(const Fixture& fixture, LoadedModel& loaded, at::ScalarType dtype, double bound) {
  loaded.model->to(dtype);
  loaded.model->set_compute_dtype(dtype);
  for (size_t i = 0; i < fixture.ids.size(); ++i)
    for (const int64_t chunk : {0, -1, 1, 3, 16}) {
      const auto ours = logits_by(*loaded.model, fixture.ids[i], chunk).to(at::kDouble);
      const auto theirs = fixture.logits[i].to(at::kDouble);
      ASSERT_EQ(ours.sizes(), theirs.sizes());
      const auto error = ((ours - theirs).abs().max() / theirs.abs().max()).item<double>();
      EXPECT_LE(error, bound) << "sequence " << i << ", chunk " << chunk << " in " << c10::toString(dtype);
    }
}

TEST_P(HfTiny, LogitsAgreeInEveryForm) {
  const auto fixture = this->fixture();
  for (const char* config : {"config.json", "config_legacy.json"}) {
    if (!fs::exists(fixture.folder + "/" + config)) continue;
    auto loaded = load_huggingface(fixture.folder, config);
    EXPECT_TRUE(loaded.notes.empty()) << loaded.notes.front();
    expect_agreement(fixture, loaded, at::kFloat, 1e-4);
    expect_agreement(fixture, loaded, at::kDouble, 1e-5);
  }
}

TEST_P(HfTiny, GreedyIds) {
  const auto fixture = this->fixture();
  auto loaded = load_huggingface(fixture.folder);
  loaded.model->to(at::kDouble);
  loaded.model->set_compute_dtype(at::kDouble);
  const at::NoGradGuard no_grad;
  auto state = loaded.model->initial_state(1);
  auto hidden = loaded.model->run(row(fixture.ids[0]), state);
  std::vector<int64_t> drawn;
  while (drawn.size() < fixture.greedy.size()) {
    drawn.push_back(loaded.model->logits(hidden.slice(1, -1)).argmax(-1).item<int64_t>());
    hidden = loaded.model->step(row({drawn.back()}), state);
  }
  EXPECT_EQ(drawn, fixture.greedy);
}

TEST_P(HfTiny, TensorsAreWrittenBackBitForBit) {
  const auto fixture = this->fixture();
  const auto loaded = load_huggingface(fixture.folder);
  const ScratchFolder scratch;
  save_huggingface(scratch.path() + "/out", loaded);
  const SafeTensors before(fixture.folder), after(scratch.path() + "/out");
  EXPECT_EQ(before.names(), after.names());
  for (const auto& name : before.names())
    EXPECT_TRUE(after.contains(name) && before.view(name).equal(after.view(name))) << name;
}

// "stack.layers.3.mixer.q.weight" -> "stack.layers.#.mixer.q.weight": tensors that do the same in several layers.
std::string kind_of(const std::string& name) {
  std::string kind;
  for (const char c : name)
    if (!std::isdigit(static_cast<unsigned char>(c)))
      kind += c;
    else if (kind.empty() || kind.back() != '#')
      kind += '#';
  return kind;
}

// The loss has the gradients that finite differences give, along a random direction of each of two tensors of every
// kind, and a small step down the whole gradient (so small that no router changes its mind) lowers it: every architecture
// can be trained.
TEST_P(HfTiny, TrainsAStep) {
  const auto fixture = this->fixture();
  auto loaded = load_huggingface(fixture.folder);
  auto& model = *loaded.model;
  model.to(at::kDouble);
  model.set_compute_dtype(at::kDouble);
  const auto ids = row(fixture.ids[1]);
  const auto inputs = ids.slice(1, 0, -1), targets = ids.slice(1, 1);
  const auto loss = [&] { return model.losses(inputs, targets).sum(); };

  model.requires_grad(true);
  model.set_training(true);
  loss().backward();
  std::map<std::string, int> checked;
  auto random = at::make_generator<at::CPUGeneratorImpl>(uint64_t{5});
  const at::NoGradGuard no_grad;
  double squared = 0;
  for (const auto& [name, parameter] : model.parameters()) {
    const auto gradient = parameter->value.grad();
    if (gradient.defined()) squared += gradient.square().sum().item<double>();
    if (++checked[kind_of(name)] > 2) continue;
    auto& value = parameter->value;
    const auto direction = at::randn(value.sizes(), random, value.options());
    const double h = 1e-6;
    const auto before = value.clone();
    value.add_(direction, h);
    const double above = loss().item<double>();
    value.copy_(before).sub_(direction, h);
    const double below = loss().item<double>();
    value.copy_(before);
    const double numeric = (above - below) / (2 * h);
    const double analytic = gradient.defined() ? (gradient * direction).sum().item<double>() : 0;
    EXPECT_NEAR(analytic, numeric, 1e-5 * std::max(1.0, std::abs(numeric))) << name;
  }
  const double before = loss().item<double>();
  for (const auto& [name, parameter] : model.parameters())
    if (parameter->value.grad().defined())
      parameter->value.sub_(parameter->value.grad(), 1e-6 / std::sqrt(squared));
  EXPECT_LT(loss().item<double>(), before);
}

std::vector<std::string> fixtures() {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator("tests/data/hf_tiny"))
    if (fs::exists(entry.path() / "reference.json")) names.push_back(entry.path().filename());
  std::sort(names.begin(), names.end());
  return names;
}
INSTANTIATE_TEST_SUITE_P(, HfTiny, testing::ValuesIn(fixtures()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace weft
