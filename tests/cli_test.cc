// Every command on a tiny trained model: what it prints, writes and returns.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>
#include <sstream>

#include "trained_model.h"

namespace weft {
namespace {

using ::testing::Test;

bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

#define EXPECT_HAS(text, part) EXPECT_TRUE(has(text, part)) << "expected '" << (part) << "' in:\n" << (text)

ProgramResult expect_success(const ProgramResult& result) {
  EXPECT_EQ(result.code, 0) << result.err;
  return result;
}

// "name value" lines as eval prints them.
double value_of(const std::string& text, const std::string& name) {
  std::istringstream words(text);
  for (std::string word; words >> word;)
    if (word == name) {
      double value = NAN;
      words >> value;
      return value;
    }
  return NAN;
}

TEST(Cli, SaysWhatItIs) {
  const auto version = expect_success(weft_program({"--version"}));
  EXPECT_HAS(version.out, "0.1.0");
  EXPECT_HAS(version.out, "torch");
  EXPECT_HAS(expect_success(weft_program({"devices"})).out, "cpu");
  const auto help = expect_success(weft_program({"--help"}));
  for (const char* command : {"train", "generate", "eval", "inspect", "mixers", "check", "devices", "logits"})
    EXPECT_HAS(help.out, command);
  EXPECT_HAS(expect_success(weft_program({"generate", "--help"})).out, "--repetition-penalty");
}

TEST(Cli, ListsMixersAndTheirOptions) {
  const auto all = expect_success(weft_program({"mixers"}));
  EXPECT_HAS(all.out, "gated_delta_net");
  EXPECT_HAS(all.out, "swiglu");
  const auto attention = expect_success(weft_program({"mixers", "attention"}));
  for (const char* part : {"kv_heads", "int", ">= 1", "rope", "10000", "query heads"})
    EXPECT_HAS(attention.out, part);
  EXPECT_HAS(expect_success(weft_program({"mixers", "swiglu"})).out, "hidden");
}

// A flag that may be given several times takes one value each time, and leaves the arguments after it alone.
TEST(Cli, RepeatableFlagsTakeOneValue) {
  const auto& model = trained_model();
  expect_success(weft_program({"generate", "--stop", "zzz", model.run, "The", "-n", "3"}));
}

TEST(Cli, InspectsARunARecipeAndAModelFile) {
  const auto& model = trained_model();
  for (const auto& what : {model.run, model.run + "/latest", model.recipe}) {
    const auto result = expect_success(weft_program({"inspect", what, "--context", "512"}));
    for (const char* part : {"tiny:", "width 32", "vocabulary 257", "gated_delta_net", "heads 2, head_dim 16",
                             "attention", "swiglu", "hidden 64", "512", "flops/token", "state/token"})
      EXPECT_HAS(result.out, part);
  }
}

TEST(Cli, InspectDrawsExportsAndImports) {
  const ScratchFolder folder;
  spill(folder.file("shared.yaml"),
        "name: shared\nvocab: 300\nwidth: 32\nlayers:\n"
        "  - {mixer: attention, heads: 2, export: {kv: cache}}\n"
        "  - {repeat: 2, pattern: [{mixer: cross_attention, heads: 2, import: {kv: cache}}]}\n");
  const auto result = expect_success(weft_program({"inspect", folder.file("shared.yaml")}));
  EXPECT_HAS(result.out, "──▶ kv");
  EXPECT_HAS(result.out, "'cache' for 1, 2");
  EXPECT_HAS(result.out, "◀── kv");
  EXPECT_HAS(result.out, "'cache' of layer 0");
  EXPECT_HAS(result.out, "1-2 (x2)");
  // The resolved description makes the same model.
  const auto yaml = expect_success(weft_program({"inspect", folder.file("shared.yaml"), "--yaml"}));
  spill(folder.file("again.yaml"), yaml.out);
  EXPECT_EQ(expect_success(weft_program({"inspect", folder.file("again.yaml")})).out, result.out);
}

TEST(Cli, GeneratesTheSameForTheSameSeed) {
  const auto& model = trained_model();
  const auto draw = [&](const char* seed) {
    return expect_success(
        weft_program({"generate", model.run, "The ", "-n", "40", "--seed", seed, "--device", "cpu"}));
  };
  const auto first = draw("5");
  EXPECT_EQ(first.out, draw("5").out);
  EXPECT_NE(first.out, draw("6").out);
  EXPECT_HAS(first.err, "tokens/s");
  EXPECT_HAS(first.err, "first token after");
  EXPECT_HAS(first.err, "4 prompt tokens");
}

TEST(Cli, GeneratesGreedilyQuietlyAndFromStandardInput) {
  const auto& model = trained_model();
  const auto argument =
      expect_success(weft_program({"generate", model.run, "The sh", "-n", "30", "-t", "0", "--quiet"}));
  EXPECT_EQ(argument.err, "");
  const auto chunked = expect_success(
      Program({"generate", model.run, "--prompt-file", "-", "-n", "30", "-t", "0", "--quiet", "--chunk", "2"})
          .input("The sh")
          .run());
  EXPECT_EQ(chunked.out, argument.out);
  // Stop strings end the text before them.
  ASSERT_GT(argument.out.size(), 10u);
  const auto stop = argument.out.substr(5, 2);
  const auto stopped =
      expect_success(weft_program({"generate", model.run, "The sh", "-n", "30", "-t", "0", "--stop", stop}));
  EXPECT_EQ(stopped.out, argument.out.substr(0, argument.out.find(stop)) + "\n");
  EXPECT_HAS(stopped.err, "stop string");
}

TEST(Cli, EvaluatesIndependentlyOfTheChunk) {
  const auto& model = trained_model();
  const ScratchFolder folder;
  spill(folder.file("text"), slurp(model.text).substr(0, 3000));
  const auto run = [&](const char* chunk) {
    return expect_success(
               weft_program({"eval", model.run, folder.file("text"), "--chunk", chunk, "--dtype", "fp64"}))
        .out;
  };
  const auto out = run("1000");
  EXPECT_EQ(out, run("77"));
  const double bits = value_of(out, "bits_per_byte");
  EXPECT_GT(bits, 0.1);
  EXPECT_LT(bits, 7.0);  // 30 steps are enough to know more than nothing
  EXPECT_NEAR(value_of(out, "perplexity"), std::exp2(bits),
              1e-4 * std::exp2(bits));  // a token is a byte here
  EXPECT_EQ(value_of(out, "bytes"), 2999);
}

TEST(Cli, EvaluatesDocumentsByThemselves) {
  const auto& model = trained_model();
  const auto out =
      expect_success(weft_program({"eval", model.run, model.text, "--separator", "\n", "--quiet"}));
  EXPECT_EQ(value_of(out.out, "documents"), 600);
  EXPECT_EQ(out.err, "");
}

// Ten times the text takes the same memory: nothing is kept but the recurrent state. Only the final hidden
// states of the longer text would be 38 MB.
TEST(Cli, EvaluatesAnyLengthInConstantMemory) {
  const auto& model = trained_model();
  const ScratchFolder folder;
  const auto run = folder.file("run"), text = slurp(model.text);
  expect_success(weft_program({"train", model.recipe, "--set", "run.dir=" + run, "--set", "run.steps=1",
                               "--set", "model.layers=[{mixer: gated_delta_net, heads: 2, head_dim: 16}]"}));
  std::string longer;
  for (int i = 0; i < 10; ++i) longer += text;
  spill(folder.file("short"), text);
  spill(folder.file("long"), longer);
  const auto peak = [&](const char* name) {
    return expect_success(weft_program({"eval", run, folder.file(name), "--chunk", "512"})).peak_bytes;
  };
  const auto before = peak("short");
  EXPECT_GT(before, 0);
#ifdef __SANITIZE_ADDRESS__
  constexpr int64_t kSpare = 300 << 20;  // AddressSanitizer keeps up to 256 MiB of freed memory
#else
  constexpr int64_t kSpare = 12 << 20;
#endif
  EXPECT_LT(peak("long"), before + kSpare);
}

std::vector<float> floats(const std::string& bytes) {
  std::vector<float> values(bytes.size() / sizeof(float));
  std::memcpy(values.data(), bytes.data(), values.size() * sizeof(float));
  return values;
}

TEST(Cli, LogitsOfTheThreeFormsAgree) {
  const auto& model = trained_model();
  const ScratchFolder folder;
  std::string ids = "84";
  for (int i = 1; i < 70; ++i) ids += "," + std::to_string((i * i * 13 + 5) % 257);
  const auto run = [&](const std::string& name, std::vector<std::string> more) {
    std::vector<std::string> arguments = {"logits",  model.run, "--ids", ids,
                                          "--dtype", "fp64",    "--out", folder.file(name)};
    arguments.insert(arguments.end(), more.begin(), more.end());
    expect_success(weft_program(arguments));
    return floats(slurp(folder.file(name)));
  };
  const auto whole = run("whole", {}), step = run("step", {"--step"}), chunk = run("chunk", {"--chunk", "9"});
  ASSERT_EQ(whole.size(), 70u * 257u);
  ASSERT_EQ(step.size(), whole.size());
  ASSERT_EQ(chunk.size(), whole.size());
  float largest = 0;
  for (const float value : whole) largest = std::max(largest, std::abs(value));
  for (size_t i = 0; i < whole.size();
       ++i) {  // equal to fp64 accuracy: the file's fp32 differs by a rounding at most
    ASSERT_NEAR(step[i], whole[i], 1.2e-7 * largest);
    ASSERT_NEAR(chunk[i], whole[i], 1.2e-7 * largest);
  }
}

TEST(Cli, LogitsInLowerPrecisionsAreNear) {
  const auto& model = trained_model();
  const ScratchFolder folder;
  const auto run = [&](const std::string& dtype) {
    expect_success(weft_program(
        {"logits", model.run, "--ids", "84,104,101", "--dtype", dtype, "--out", folder.file(dtype)}));
    return floats(slurp(folder.file(dtype)));
  };
  const auto exact = run("fp64"), single = run("fp32"), half = run("bf16");
  float largest = 0;
  for (const float value : exact) largest = std::max(largest, std::abs(value));
  for (size_t i = 0; i < exact.size(); ++i) {
    ASSERT_NEAR(single[i], exact[i], 1e-4 * largest);
    ASSERT_NEAR(half[i], exact[i], 1e-1 * largest);
  }
  EXPECT_NE(half, single);
}

// The recipe that people try first, cut to a few steps: a learned vocabulary, Muon, windows.
TEST(Cli, TheSmokeRecipeGoesThroughEverything) {
  const ScratchFolder folder;
  const std::string source = WEFT_SOURCE, run = folder.file("run");
  expect_success(weft_program(
      {"train", source + "/recipes/smoke/recipe.yaml", "--set", "run.dir=" + run, "--set", "run.steps=3"}));
  EXPECT_HAS(expect_success(weft_program({"inspect", run})).out, "0-2 (x3)");
  const auto text =
      expect_success(weft_program({"generate", run, "In the beginning", "-n", "20", "--ignore-end"}));
  EXPECT_HAS(text.err, "20 tokens, ");
  spill(folder.file("text"), slurp(source + "/tests/data/genesis.txt").substr(0, 20000));
  const auto whole = expect_success(weft_program({"eval", run, folder.file("text"), "--chunk", "64"}));
  EXPECT_LT(value_of(whole.out, "bits_per_byte"), 8.0);
}

// One op against a peer of its own process; a peer that ends; the first call of a new process.
TEST(Cli, BenchWritesAListOfRows) {
  const ScratchFolder folder;
  const std::string name = "lin.att. gdn 1x1, 32 heads, 128x128", filter = "gdn 1x1, 32 heads";
  spill(folder.file("peer.py"),
        "import sys\n"
        "print('peer fake 1\\ncase gdn_step_32x128\\nready', flush=True)\n"
        "for line in sys.stdin: print('time', 7 * int(line.split()[2]), flush=True)\n");
  const auto run = [&](std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), {"bench", "ops", "--threads", "1"});
    return weft_program(arguments);
  };
  const auto file = folder.file("rows.json");
  expect_success(
      run({"--filter", filter, "--quick", "--json", file, "--peer", "python3 " + folder.file("peer.py")}));
  const auto rows = nlohmann::json::parse(slurp(file));
  ASSERT_EQ(rows.size(), 1u);
  EXPECT_EQ(rows[0]["pass"], "step");
  EXPECT_EQ(rows[0]["peers"][1]["name"], "fake 1");
  EXPECT_EQ(rows[0]["peers"][1]["ms"], 7000);
  EXPECT_GT(rows[0]["ms"], 0);
  EXPECT_LT(rows[0]["ms"], 7000);
  EXPECT_GT(rows[0]["floor_ms"], 0);
  EXPECT_EQ(rows[0]["machine"]["threads"], 1);
  EXPECT_HAS(rows[0]["machine"]["command"].get<std::string>(), "--filter '" + filter + "'");
  const auto broken = run({"--filter", filter, "--quick", "--peer",
                           "sh -c 'echo peer broken; echo case gdn_step_32x128; echo ready'"});
  EXPECT_EQ(broken.code, 1);
  EXPECT_HAS(broken.out, "it has ended");

  expect_success(run({"--filter", filter, "--first-call", "--json", file}));
  const auto first = nlohmann::json::parse(slurp(file));
  ASSERT_EQ(first.size(), 1u);
  EXPECT_EQ(first[0]["kind"], "first call");
  EXPECT_GT(first[0]["ms"], first[0]["call_ms"]);
  EXPECT_HAS(expect_success(run({"--once", name})).out, "result step ");
  EXPECT_EQ(run({"--once", "gdn"}).code, 1);
  EXPECT_EQ(run({"--once", name, "--busy"}).code, 1);
  EXPECT_EQ(run({"--filter", "("}).code, 1);
}

TEST(Cli, ChecksMixers) {
  const auto result = expect_success(weft_program({"check", "short_conv"}));
  EXPECT_HAS(result.out, "short_conv: ");
  EXPECT_HAS(result.out, "step");
  EXPECT_HAS(result.out, " 0 failed");
  const auto own = weft_program({"check", "--case", "{mixer: short_conv, conv: 2}", "--quiet"});
  EXPECT_EQ(own.code, 0) << own.out << own.err;
}

// The suite passes a plug-in that keeps the contract and fails one that does not.
TEST(Cli, ChecksPlugins) {
  const std::string folder = WEFT_PLUGINS;
  const auto good = weft_program({"check", "running_mean", "--plugin", folder + "/running_mean.so"});
  EXPECT_EQ(good.code, 0) << good.out << good.err;
  EXPECT_HAS(good.out, " 0 failed");
  const auto bad = weft_program({"check", "forgetful", "--plugin", folder + "/forgetful.so"});
  EXPECT_EQ(bad.code, 1) << bad.out << bad.err;
  EXPECT_HAS(bad.out, "FAIL");
}

TEST(Cli, PluginsBringMixers) {
  const std::string plugin = std::string(WEFT_PLUGINS) + "/running_mean.so";
  EXPECT_HAS(expect_success(weft_program({"mixers", "--plugin", plugin})).out, "running_mean");
  const auto& model = trained_model();
  const auto result = expect_success(weft_program(
      {"inspect", model.recipe, "--plugin", plugin, "--set", "model.layers[0]={mixer: running_mean}"}));
  EXPECT_HAS(result.out, "running_mean");
  EXPECT_EQ(weft_program({"mixers", "running_mean"}).code, 1);
}

}  // namespace
}  // namespace weft
