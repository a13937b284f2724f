// plstm and plstm_2d against plain recurrences that read the mixers' parameters by name.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include <map>

#include "nn/mixer.h"

namespace weft {
namespace {

const auto kWide = at::TensorOptions().dtype(at::kDouble);
constexpr int64_t kWidth = 12, kHeads = 2, kDim = 6;

at::Tensor normal(at::IntArrayRef shape, uint64_t seed) {
  auto random = at::make_generator<at::CPUGeneratorImpl>(seed);
  return at::randn(shape, random, kWide);
}

// A mixer in fp64 with gates that depend on the input, of both signs where they may be.
std::unique_ptr<SequenceMixer> make(const std::string& yaml, double noise = 1) {
  auto mixer = make_mixer(Node::parse(yaml, "test"), {.width = kWidth, .num_layers = 2});
  mixer->initialize(3);
  mixer->to(at::kDouble);
  const at::NoGradGuard no_grad;
  uint64_t seed = 50;
  for (const auto& [name, parameter] : mixer->parameters())
    parameter->value.add_(normal(parameter->value.sizes(), seed++), noise * (name == "direct" ? 4 : .3));
  return mixer;
}

std::map<std::string, at::Tensor> values(const SequenceMixer& mixer) {
  std::map<std::string, at::Tensor> all;
  for (const auto& [name, parameter] : mixer.parameters()) all[name] = parameter->value;
  return all;
}

at::Tensor run(SequenceMixer& mixer, const at::Tensor& x, const at::Tensor& starts = {}) {
  State state = mixer.initial_state(x.size(0), x.options());
  return mixer.run(x, state, Context::at_positions(at::zeros({x.size(0)}, at::kLong), x.size(1), starts));
}

void expect_near(const at::Tensor& found, const at::Tensor& expected, double bound = 1e-12) {
  ASSERT_EQ(found.sizes(), expected.sizes());
  EXPECT_LE((found - expected).abs().max().item<double>(), bound * expected.abs().max().item<double>());
}

at::Tensor squash(const at::Tensor& x) { return 1 / (1 + (-x).exp()); }
at::Tensor heads(const at::Tensor& x, const at::Tensor& weight) {  // [T, D] -> [T, H, K]
  return at::matmul(x, weight.t()).view({x.size(0), kHeads, kDim});
}
at::Tensor own_write(const at::Tensor& k, const at::Tensor& v) { return k.unsqueeze(-1) * v.unsqueeze(-2); }
at::Tensor read(const at::Tensor& state, const at::Tensor& q) { return (state * q.unsqueeze(-1)).sum(-2); }
at::Tensor finish(std::map<std::string, at::Tensor>& p, const at::Tensor& h) {  // [T, H, K] -> [T, D]
  const auto scaled = h / std::sqrt(static_cast<double>(kDim));
  const auto normed = scaled / (scaled.square().mean(-1, true) + 1e-5).sqrt() * p["norm.weight"];
  return at::matmul(normed.flatten(1), p["out.weight"].t());
}

TEST(Plstm, IsTheRecurrence) {
  const auto mixer = make("{mixer: plstm, heads: 2, gate_std: 0.3}");
  auto p = values(*mixer);
  const auto x = normal({1, 23, kWidth}, 4)[0];
  const auto q = heads(x, p["q.weight"]), k = heads(x, p["k.weight"]), v = heads(x, p["v.weight"]);
  const auto z = at::matmul(x, p["gates.weight"].t()).view({23, 3, kHeads}) + p["gates.bias"];
  const auto gate = [](const at::Tensor& g) { return g.unsqueeze(-1).unsqueeze(-1); };  // [T, H, 1, 1]
  const auto s = gate(squash(z.select(1, 0))), m = gate(squash(z.select(1, 1))),
             t = gate((5 * z.select(1, 2)).tanh()), d = squash(p["direct"]).view({kHeads, 1, 1});
  EXPECT_TRUE((t < 0).any().item<bool>() && (t > 0).any().item<bool>());
  auto c = at::zeros({kHeads, kDim, kDim}, kWide);
  std::vector<at::Tensor> h;
  for (int64_t i = 0; i < 23; ++i) {
    const auto own = own_write(k[i], v[i]);
    h.push_back(read(m[i] * c + d * own, q[i]));
    c = t[i] * c + s[i] * own;
  }
  expect_near(run(*mixer, x.unsqueeze(0))[0], finish(p, at::stack(h)));
  State state = mixer->initial_state(1, x.options());
  mixer->run(x.unsqueeze(0), state, Context::at_positions(at::zeros({1}, at::kLong), 23));
  expect_near(state.at("C")[0], c);
}

// The signs alone: with T = -1, nothing written after the first token and M = 1, the read-out alternates.
TEST(Plstm, NegativeTransitionsAlternate) {
  const auto mixer = make("{mixer: plstm, heads: 2}", 0);
  const at::NoGradGuard no_grad;
  auto p = values(*mixer);
  p["gates.bias"][2].fill_(-10);
  p["direct"].fill_(-1000);
  p["gates.bias"][0].fill_(0);
  const auto x = at::zeros({1, 8, kWidth}, kWide);
  x[0][0].copy_(normal({kWidth}, 6));
  State state = mixer->initial_state(1, x.options());
  const auto context = [](int64_t at) { return Context::at_positions(at::full({1}, at, at::kLong), 1); };
  mixer->step(x.slice(1, 0, 1), state, context(0));
  auto before = state.at("C").clone();
  EXPECT_GT(before.abs().max().item<double>(), 1e-3);
  for (int64_t i = 1; i < 8; ++i) {
    mixer->step(x.slice(1, i, i + 1), state, context(i));
    expect_near(state.at("C"), -before);
    before = state.at("C").clone();
  }
}

TEST(Plstm, StartsAsThePaper) {
  const auto mixer = make("{mixer: plstm, heads: 2}", 0);
  auto p = values(*mixer);
  EXPECT_EQ(p["gates.bias"][0][1].item<double>(), -4);
  EXPECT_EQ(p["gates.bias"][1][1].item<double>(), -4);
  EXPECT_EQ(p["gates.bias"][2][1].item<double>(), 1);
  EXPECT_EQ(p["direct"][0].item<double>(), -6);
  EXPECT_EQ(p["gates.weight"].abs().max().item<double>(), 0);
  EXPECT_NEAR(p["q.weight"].square().mean().item<double>(), 2 / (5.0 * kWidth), .3 * 2 / (5.0 * kWidth));
  auto grid = make("{mixer: plstm_2d, heads: 2}", 0);
  p = values(*grid);
  EXPECT_EQ(p["direction.bias"].sizes(), at::IntArrayRef({4, 2}));
  EXPECT_EQ(p["direction.bias"][3][0].item<double>(), -2);
  EXPECT_EQ(p["direction.bias"][3][1].item<double>(), 2);
}

// Cell by cell for each orientation: r and d edges, in the order of that orientation.
at::Tensor plain_grid(SequenceMixer& mixer, const at::Tensor& x, int64_t columns, const std::string& mode,
                      bool bounded) {
  auto p = values(mixer);
  const int64_t tokens = x.size(0), rows = (tokens + columns - 1) / columns, count = mode == "P" ? 3 : 7;
  const auto q = heads(x, p["q.weight"]), k = heads(x, p["k.weight"]), v = heads(x, p["v.weight"]);
  const auto z = at::matmul(x, p["gates.weight"].t()).view({tokens, count, 4, kHeads}) + p["gates.bias"];
  const auto zero = at::zeros({kHeads, kDim, kDim}, kWide);
  auto h = (squash(p["direct"]).unsqueeze(-1) * (q * k).sum(-1, true) * v).unbind(0);
  for (int64_t way = 0; way < 4; ++way) {
    const bool up = way == 1 || way == 3, left = way == 1 || way == 2;
    std::map<std::pair<int64_t, int64_t>, at::Tensor> right,
        down;  // what leaves a cell, by its place in the grid
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < columns; ++j) {
        const int64_t r = up ? rows - 1 - i : i, c = left ? columns - 1 - j : j, n = r * columns + c;
        const auto from_left = j > 0 ? right[{r, left ? c + 1 : c - 1}] : zero;
        const auto from_above = i > 0 ? down[{up ? r + 1 : r - 1, c}] : zero;
        if (n >= tokens) {
          right[{r, c}] = down[{r, c}] = zero;
          continue;
        }
        const auto gate = [&](int64_t g) { return z[n][g][way].view({kHeads, 1, 1}); };
        const auto t = [&](int64_t g) { return (5 * gate(g)).tanh(); };
        const auto own = own_write(k[n], v[n]);
        at::Tensor read_out;
        if (mode == "P") {
          const auto lean = at::matmul(x[n], p["direction.weight"].t()).view({4, kHeads})[way];
          const auto a = squash(p["direction.bias"][way] + lean * .5 / kWidth).view({kHeads, 1, 1});
          const auto s = squash(gate(0)) * a;
          const auto to_right = (bounded ? t(2).abs() : t(2)) * a;
          const auto to_down = bounded ? t(2).abs() * (1 - a) : 1 - to_right;
          read_out = squash(gate(1)) * (from_left + from_above);
          right[{r, c}] = to_right * (from_left + from_above) + s * own;
          down[{r, c}] =
              to_down * (from_left + from_above) + (bounded ? squash(gate(0)) * (1 - a) : 1 - s) * own;
        } else {
          read_out = squash(gate(2)) * from_left + squash(gate(3)) * from_above;
          right[{r, c}] = t(4) * from_left + t(6) * from_above + squash(gate(0)) * own;
          down[{r, c}] = t(5) * from_above + squash(gate(1)) * own;
        }
        h[static_cast<size_t>(n)] = h[static_cast<size_t>(n)] + read(read_out, q[n]);
      }
  }
  return finish(p, at::stack(h));
}

TEST(Plstm2d, IsTheRecurrenceOnTheGrid) {
  for (const auto& [mode, bounded] : {std::pair<std::string, bool>{"P", true}, {"P", false}, {"D", true}})
    for (const int64_t tokens : {1, 12, 18, 20}) {  // 20: the last row is not full
      const auto mixer = make(fmt::format(
          "{{mixer: plstm_2d, heads: 2, columns: 6, mode: {}, bounded: {}, gate_std: 0.2}}", mode, bounded));
      const auto x = normal({tokens, kWidth}, 5);
      SCOPED_TRACE(fmt::format("{} {} {}", mode, bounded, tokens));
      expect_near(run(*mixer, x.unsqueeze(0))[0], plain_grid(*mixer, x, 6, mode, bounded));
    }
}

// As many columns as a square has, whatever the number of tokens: the same weights on larger grids.
TEST(Plstm2d, SquareByDefault) {
  const auto mixer = make("{mixer: plstm_2d, heads: 2, mode: D}");
  for (const int64_t side : {2, 4, 7}) {
    const auto x = normal({side * side, kWidth}, 5);
    expect_near(run(*mixer, x.unsqueeze(0))[0], plain_grid(*mixer, x, side, "D", true));
  }
}

// Orientations start with equal gates, so a mirrored image gives the mirrored output; one orientation does not.
TEST(Plstm2d, MirroredImageMirroredOutput) {
  for (const char* mode : {"P", "D"})
    for (const char* combine : {"fused", "averaged"})
      for (const int64_t orientations : {1, 4}) {
        const auto mixer = make(
            fmt::format("{{mixer: plstm_2d, heads: 2, columns: 5, mode: {}, combine: {}, orientations: {}}}",
                        mode, combine, orientations),
            0);
        const auto x = normal({2, 4, 5, kWidth}, 7);
        const auto y = run(*mixer, x.flatten(1, 2)).view(x.sizes());
        for (const auto& dims : {std::vector<int64_t>{1}, {2}, {1, 2}}) {
          const auto mirrored = run(*mixer, x.flip(dims).flatten(1, 2)).view(x.sizes()).flip(dims);
          if (orientations == 4)
            expect_near(mirrored, y);
          else
            EXPECT_GT((mirrored - y).abs().max().item<double>(), .01 * y.abs().max().item<double>());
        }
      }
}

TEST(Plstm2d, OneRowIsPlstm) {
  const auto grid = make("{mixer: plstm_2d, heads: 2, columns: 17, mode: D, orientations: 1, gate_std: 0.3}");
  const auto line = make("{mixer: plstm, heads: 2}");
  const at::NoGradGuard no_grad;
  auto from = values(*grid), to = values(*line);
  for (const char* name : {"q.weight", "k.weight", "v.weight", "out.weight", "norm.weight", "direct"})
    to[name].copy_(from[name]);
  const std::vector<int64_t> same = {0, 2,
                                     4};  // source to the right, mark from the left, transition left to right
  for (int64_t i = 0; i < 3; ++i) {
    const int64_t gate = same[static_cast<size_t>(i)];
    to["gates.weight"].view({3, kHeads, kWidth})[i].copy_(
        from["gates.weight"].view({7, kHeads, kWidth})[gate]);
    to["gates.bias"][i].copy_(from["gates.bias"][gate][0]);
  }
  const auto x = normal({2, 17, kWidth}, 8);
  expect_near(run(*grid, x), run(*line, x));
}

// Documents of different lengths in one row are grids of their own.
TEST(Plstm2d, PackedImagesAreSeparate) {
  const auto mixer = make("{mixer: plstm_2d, heads: 2}");
  const auto x = normal({2, 29, kWidth}, 9);
  auto starts = at::zeros({2, 29}, at::kBool);
  starts[0][9] = true, starts[0][25] = true, starts[1][0] = true, starts[1][16] = true, starts[1][25] = true;
  const auto y = run(*mixer, x, starts);
  const std::vector<std::vector<int64_t>> cuts = {{0, 9, 25, 29}, {0, 16, 25, 29}};
  for (int64_t row = 0; row < 2; ++row)
    for (size_t i = 0; i < 3; ++i) {
      const auto part = [&](const at::Tensor& t) {
        return t.slice(0, row, row + 1)
            .slice(1, cuts[static_cast<size_t>(row)][i], cuts[static_cast<size_t>(row)][i + 1]);
      };
      expect_near(part(y), run(*mixer, part(x)));
    }
}

}  // namespace
}  // namespace weft
