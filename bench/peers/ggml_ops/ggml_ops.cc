// ggml's operators as a peer of `weft bench ops`: the protocol is in ../README.md. Random inputs, in enough copies to
// fill 64 MiB, so that successive runs read other memory, as weft's do. At the start the gated delta rule and
// attention are compared with plain loops: that shows that the tensors are laid out as ggml means them.
//
//   ggml_ops THREADS
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <iostream>
#include <map>
#include <memory>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "ggml-cpu.h"
#include "ggml.h"

namespace {

using Tensor = ggml_tensor*;

std::mt19937 generator(7);

// Owns the tensors of one run of an operator.
class Graph {
 public:
  explicit Graph(size_t bytes) {
    context_ = ggml_init({bytes, nullptr, false});
    if (!context_) throw std::runtime_error("ggml_init failed");
  }
  ~Graph() { ggml_free(context_); }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  ggml_context* context() { return context_; }

  // Uniform numbers in [low, high), in any type that ggml can write.
  Tensor random(ggml_type type, std::vector<int64_t> shape, float low = -1, float high = 1) {
    Tensor x = ggml_new_tensor(context_, type, static_cast<int>(shape.size()), shape.data());
    const int64_t count = ggml_nelements(x);
    std::uniform_real_distribution<float> uniform(low, high);
    std::vector<float> values(static_cast<size_t>(count));
    for (float& v : values) v = uniform(generator);
    if (type == GGML_TYPE_F32)
      std::memcpy(x->data, values.data(), values.size() * sizeof(float));
    else
      ggml_quantize_chunk(type, values.data(), x->data, 0, count / x->ne[0], x->ne[0], nullptr);
    return x;
  }
  Tensor ids() {
    Tensor x = ggml_new_tensor_1d(context_, GGML_TYPE_I32, 1);
    *static_cast<int32_t*>(x->data) = 0;
    return x;
  }
  // Rows of length one, as the keys of the delta rule.
  void normalise(Tensor x) {
    auto* p = static_cast<float*>(x->data);
    for (int64_t row = 0; row < ggml_nrows(x); ++row, p += x->ne[0]) {
      double sum = 0;
      for (int64_t i = 0; i < x->ne[0]; ++i) sum += static_cast<double>(p[i]) * p[i];
      for (int64_t i = 0; i < x->ne[0]; ++i) p[i] /= static_cast<float>(std::sqrt(sum));
    }
  }
  void finish(Tensor out) {
    out_ = out;
    graph_ = ggml_new_graph(context_);
    ggml_build_forward_expand(graph_, out);
  }
  void run(ggml_threadpool* pool, int threads) {
    ggml_cplan plan = ggml_graph_plan(graph_, threads, pool);
    if (work_.size() < plan.work_size) work_.resize(plan.work_size);
    plan.work_data = work_.data();
    if (ggml_graph_compute(graph_, &plan) != GGML_STATUS_SUCCESS)
      throw std::runtime_error("ggml_graph_compute failed");
  }
  Tensor out() const { return out_; }

 private:
  ggml_context* context_;
  ggml_cgraph* graph_ = nullptr;
  Tensor out_ = nullptr;
  std::vector<uint8_t> work_;
};

using Build = std::function<void(Graph&)>;

struct DeltaRule {
  Tensor q, k, v, g, beta, state;
};

DeltaRule delta_rule(Graph& graph, int64_t width, int64_t heads, int64_t tokens, bool vector_decay) {
  DeltaRule x{graph.random(GGML_TYPE_F32, {width, heads, tokens, 1}),
              graph.random(GGML_TYPE_F32, {width, heads, tokens, 1}),
              graph.random(GGML_TYPE_F32, {width, heads, tokens, 1}),
              graph.random(GGML_TYPE_F32, {vector_decay ? width : 1, heads, tokens, 1}, -0.3f, 0),
              graph.random(GGML_TYPE_F32, {1, heads, tokens, 1}, 0, 1),
              graph.random(GGML_TYPE_F32, {width, width, heads, 1})};
  graph.normalise(x.k);
  graph.finish(ggml_gated_delta_net(graph.context(), x.q, x.k, x.v, x.g, x.beta, x.state, 1));
  return x;
}

Build gated_delta(int64_t width, int64_t heads, int64_t tokens, bool vector_decay) {
  return [=](Graph& graph) { delta_rule(graph, width, heads, tokens, vector_decay); };
}

Build ssm_scan(int64_t states, int64_t width, int64_t heads, int64_t tokens, bool decay_of_each_state) {
  return [=](Graph& graph) {
    const Tensor s = graph.random(GGML_TYPE_F32, {states, width, heads, 1}),
                 x = graph.random(GGML_TYPE_F32, {width, heads, tokens, 1}),
                 dt = graph.random(GGML_TYPE_F32, {heads, tokens, 1}, -3, 1),
                 a = graph.random(GGML_TYPE_F32, {decay_of_each_state ? states : 1, heads}, -2, -0.1f),
                 b = graph.random(GGML_TYPE_F32, {states, 1, tokens, 1}),
                 c = graph.random(GGML_TYPE_F32, {states, 1, tokens, 1});
    graph.finish(ggml_ssm_scan(graph.context(), s, x, dt, a, b, c, graph.ids(), 1));
  };
}

Build rwkv7(int64_t width, int64_t heads, int64_t tokens) {
  return [=](Graph& graph) {
    const auto rows = [&](float low, float high) {
      return graph.random(GGML_TYPE_F32, {width, heads, tokens}, low, high);
    };
    const Tensor r = rows(-1, 1), w = rows(0.7f, 1), k = rows(-1, 1), v = rows(-1, 1), a = rows(-0.1f, 0.1f),
                 b = rows(-0.1f, 0.1f), state = graph.random(GGML_TYPE_F32, {width * width * heads, 1});
    graph.finish(ggml_rwkv_wkv7(graph.context(), r, w, k, v, a, b, state));
  };
}

Build convolution(int64_t channels, int64_t width, int64_t tokens) {
  return [=](Graph& graph) {
    const Tensor x = graph.random(GGML_TYPE_F32, {tokens + width - 1, channels, 1}),
                 taps = graph.random(GGML_TYPE_F32, {width, channels});
    graph.finish(ggml_silu(graph.context(), ggml_ssm_conv(graph.context(), x, taps)));
  };
}

struct Attention {
  Tensor q, k, v, mask;
};

Attention attention_of(Graph& graph, ggml_type type, int64_t width, int64_t heads, int64_t key_heads,
                       int64_t queries, int64_t keys) {
  Attention x{graph.random(GGML_TYPE_F32, {width, queries, heads, 1}),
              graph.random(type, {width, keys, key_heads, 1}),
              graph.random(type, {width, keys, key_heads, 1}), nullptr};
  if (queries > 1) {
    x.mask = graph.random(GGML_TYPE_F16, {keys, queries, 1, 1});
    auto* p = static_cast<ggml_fp16_t*>(x.mask->data);
    for (int64_t t = 0; t < queries; ++t)
      for (int64_t s = 0; s < keys; ++s)
        p[t * keys + s] = ggml_fp32_to_fp16(s <= keys - queries + t ? 0.0f : -INFINITY);
  }
  graph.finish(ggml_flash_attn_ext(graph.context(), x.q, x.k, x.v, x.mask,
                                   1 / std::sqrt(static_cast<float>(width)), 0, 0));
  return x;
}

Build attention(ggml_type type, int64_t queries, int64_t keys) {
  return [=](Graph& graph) { attention_of(graph, type, 128, 32, 8, queries, keys); };
}

Build norm(int64_t rows, int64_t width) {
  return [=](Graph& graph) {
    graph.finish(ggml_rms_norm(graph.context(), graph.random(GGML_TYPE_F32, {width, rows}), 1e-6f));
  };
}

struct Case {
  Build build;
  double bytes;  // of its tensors, about
};

std::map<std::string, Case> all_cases() {
  const double mega = 1 << 20;
  return {{"gdn_prefill_32x128_512", {gated_delta(128, 32, 512, false), 36 * mega}},
          {"kda_prefill_32x128_512", {gated_delta(128, 32, 512, true), 44 * mega}},
          {"gdn_step_32x128", {gated_delta(128, 32, 1, false), 5 * mega}},
          {"kda_step_32x128", {gated_delta(128, 32, 1, true), 5 * mega}},
          {"mamba1_scan_4096x16_512", {ssm_scan(16, 1, 4096, 512, true), 26 * mega}},
          {"mamba1_step_4096x16", {ssm_scan(16, 1, 4096, 1, true), 1 * mega}},
          {"mamba2_scan_64x64x128_512", {ssm_scan(128, 64, 64, 512, false), 21 * mega}},
          {"rwkv7_32x64_512", {rwkv7(64, 32, 512), 30 * mega}},
          {"conv_8192x4_512", {convolution(8192, 4, 512), 50 * mega}},
          {"attention_prefill_512x4096_fp16", {attention(GGML_TYPE_F16, 512, 4096), 37 * mega}},
          {"attention_prefill_512x4096_bf16", {attention(GGML_TYPE_BF16, 512, 4096), 37 * mega}},
          {"attention_prefill_512x4096_int8", {attention(GGML_TYPE_Q8_0, 512, 4096), 30 * mega}},
          {"attention_decode_4096_fp16", {attention(GGML_TYPE_F16, 1, 4096), 17 * mega}},
          {"attention_decode_4096_bf16", {attention(GGML_TYPE_BF16, 1, 4096), 17 * mega}},
          {"attention_decode_4096_int8", {attention(GGML_TYPE_Q8_0, 1, 4096), 9 * mega}},
          {"attention_decode_32768_fp16", {attention(GGML_TYPE_F16, 1, 32768), 135 * mega}},
          {"attention_decode_32768_bf16", {attention(GGML_TYPE_BF16, 1, 32768), 135 * mega}},
          {"attention_decode_32768_int8", {attention(GGML_TYPE_Q8_0, 1, 32768), 72 * mega}},
          {"rms_norm_2048x2048", {norm(2048, 2048), 33 * mega}}};
}

class Runner {
 public:
  explicit Runner(int threads) : threads_(threads) {
    auto parameters = ggml_threadpool_params_default(threads);
    pool_ = ggml_threadpool_new(&parameters);
  }
  ~Runner() { ggml_threadpool_free(pool_); }

  void compute(Graph& graph) { graph.run(pool_, threads_); }

  double seconds(const std::string& key, const Case& subject, int64_t calls) {
    if (key != loaded_) {
      copies_.clear();
      const auto count = std::min<int64_t>(64, static_cast<int64_t>(67e6 / subject.bytes) + 1);
      for (int64_t i = 0; i < std::max<int64_t>(2, count); ++i) {
        copies_.push_back(std::make_unique<Graph>(static_cast<size_t>(2.2 * subject.bytes) + (8u << 20)));
        subject.build(*copies_.back());
      }
      loaded_ = key;
    }
    // Between turns its threads sleep: they would look for work for some 100 ms and take the cores from whoever is next.
    ggml_threadpool_resume(pool_);
    const auto begin = std::chrono::steady_clock::now();
    for (int64_t i = 0; i < calls; ++i) compute(*copies_[static_cast<size_t>(used_++) % copies_.size()]);
    const auto end = std::chrono::steady_clock::now();
    ggml_threadpool_pause(pool_);
    return std::chrono::duration<double>(end - begin).count();
  }

 private:
  int threads_;
  ggml_threadpool* pool_;
  std::string loaded_;
  std::vector<std::unique_ptr<Graph>> copies_;
  int64_t used_ = 0;
};

void expect(const char* what, double error) {
  if (error < 1e-2) return;
  std::printf("error %s differs from plain loops by %g of the largest value\n", what, error);
  std::exit(1);
}

void check_delta_rule(Runner& runner) {
  constexpr int64_t kWidth = 32, kHeads = 3, kTokens = 5;
  Graph graph(64u << 20);
  const DeltaRule x = delta_rule(graph, kWidth, kHeads, kTokens, false);
  runner.compute(graph);
  const auto at = [](Tensor t, int64_t i) {
    return static_cast<double>(static_cast<const float*>(t->data)[i]);
  };
  double worst = 0, largest = 0;
  for (int64_t h = 0; h < kHeads; ++h) {
    std::vector<double> s(kWidth * kWidth);  // [value, key]
    for (int64_t i = 0; i < kWidth * kWidth; ++i)
      s[static_cast<size_t>(i)] = at(x.state, h * kWidth * kWidth + i);
    for (int64_t t = 0; t < kTokens; ++t) {
      const int64_t row = t * kHeads + h;
      for (int64_t j = 0; j < kWidth; ++j) {
        double* column = &s[static_cast<size_t>(j * kWidth)];
        double recalled = 0, y = 0;
        for (int64_t i = 0; i < kWidth; ++i)
          recalled += (column[i] *= std::exp(at(x.g, row))) * at(x.k, row * kWidth + i);
        const double write = at(x.beta, row) * (at(x.v, row * kWidth + j) - recalled);
        for (int64_t i = 0; i < kWidth; ++i)
          y += (column[i] += write * at(x.k, row * kWidth + i)) * at(x.q, row * kWidth + i);
        y /= std::sqrt(static_cast<double>(kWidth));
        worst = std::max(worst, std::abs(y - at(graph.out(), row * kWidth + j)));
        largest = std::max(largest, std::abs(y));
      }
    }
  }
  expect("gated_delta_net", worst / largest);
}

void check_attention(Runner& runner) {
  constexpr int64_t kWidth = 64, kHeads = 4, kKeyHeads = 2, kQueries = 3, kKeys = 64;
  Graph graph(64u << 20);
  const Attention x = attention_of(graph, GGML_TYPE_F16, kWidth, kHeads, kKeyHeads, kQueries, kKeys);
  runner.compute(graph);
  const auto half = [](Tensor t, int64_t i) {
    return static_cast<double>(ggml_fp16_to_fp32(static_cast<const ggml_fp16_t*>(t->data)[i]));
  };
  double worst = 0, largest = 0;
  for (int64_t h = 0; h < kHeads; ++h)
    for (int64_t t = 0; t < kQueries; ++t) {
      const int64_t g = h / (kHeads / kKeyHeads), last = kKeys - kQueries + t;
      std::vector<double> y(kWidth, 0);
      double total = 0;
      for (int64_t s = 0; s <= last; ++s) {
        double score = 0;
        for (int64_t c = 0; c < kWidth; ++c)
          score += static_cast<const float*>(x.q->data)[(h * kQueries + t) * kWidth + c] *
                   half(x.k, (g * kKeys + s) * kWidth + c);
        const double weight = std::exp(score / std::sqrt(static_cast<double>(kWidth)));
        total += weight;
        for (int64_t c = 0; c < kWidth; ++c)
          y[static_cast<size_t>(c)] += weight * half(x.v, (g * kKeys + s) * kWidth + c);
      }
      for (int64_t c = 0; c < kWidth; ++c) {
        const double expected = y[static_cast<size_t>(c)] / total;
        const double found = static_cast<const float*>(graph.out()->data)[(t * kHeads + h) * kWidth + c];
        worst = std::max(worst, std::abs(found - expected));
        largest = std::max(largest, std::abs(expected));
      }
    }
  expect("flash_attn_ext", worst / largest);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2 || std::atoi(argv[1]) < 1) {
    std::fprintf(stderr, "usage: ggml_ops THREADS\n");
    return 2;
  }
  try {
    ggml_cpu_init();
    Runner runner(std::atoi(argv[1]));
    check_delta_rule(runner);
    check_attention(runner);
    const auto cases = all_cases();
    std::printf("peer ggml %s\n", ggml_version());
    for (const auto& [key, subject] : cases) std::printf("case %s\n", key.c_str());
    std::printf("ready\n");
    std::fflush(stdout);
    std::string line, verb, key;
    int64_t calls = 0;
    while (std::getline(std::cin, line)) {
      std::istringstream words(line);
      if (!(words >> verb >> key >> calls) || verb != "run" || !cases.count(key) || calls < 1)
        std::printf("error cannot understand '%s'\n", line.c_str());
      else
        std::printf("time %.9g\n", runner.seconds(key, cases.at(key), calls));
      std::fflush(stdout);
    }
  } catch (const std::exception& error) {
    std::printf("error %s\n", error.what());
    return 1;
  }
}
