#include "train/corpus.h"

#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/files.h"
#include "io/tokenizers/bpe_trainer.h"
#include "train/interrupted.h"
#include "train/text_split.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

bool is_token_file(const std::string& path) { return path.ends_with(".tokens"); }
bool is_json_lines(const std::string& path) { return path.ends_with(".jsonl") || path.ends_with(".ndjson"); }

// Size and time of change: enough to see that a file is another one.
Node stamp(const std::string& path, const std::string& hint) {
  std::error_code error;
  const auto size = fs::file_size(path, error);
  require(!error, "{}: cannot read this file: {}{}{}", path, error.message(), hint.empty() ? "" : "; ", hint);
  const auto time = fs::last_write_time(path).time_since_epoch().count();
  return Node::scalar(fmt::format("{} bytes at {}", size, time));
}

void require_readable(const std::string& path, const std::string& hint) {
  std::error_code error;
  const auto status = fs::status(path, error);
  require(fs::exists(status), "{}: cannot read this file: {}{}{}", path, error.message(),
          hint.empty() ? "" : "; ", hint);
  require(!fs::is_directory(status), "{}: is a folder, expected a file", path);
  require(fs::is_regular_file(status), "{}: is not a regular file", path);  // opening a pipe would wait
  const MappedFile opened(path);
}

// Another source, given up between documents when `stop` says so.
class StoppableText final : public TextSource {
 public:
  StoppableText(std::unique_ptr<TextSource> source, const std::function<bool()>& stop)
      : source_(std::move(source)), stop_(stop) {}
  bool next(std::string& document) override {
    if (stop_ && stop_()) throw Interrupted();
    return source_->next(document);
  }
  uint64_t bytes_done() const override { return source_->bytes_done(); }
  uint64_t bytes_total() const override { return source_->bytes_total(); }

 private:
  std::unique_ptr<TextSource> source_;
  const std::function<bool()>& stop_;
};

BpeTraining bpe_training(const Node& wanted) {
  const auto options = read_options<BpeOptions>(wanted.at("bpe"), "bpe");
  BpeTraining training;
  training.vocab_size = options.vocab;
  training.pattern = options.pattern;
  training.min_count = options.min_count;
  return training;
}

class Preparation {
 public:
  Preparation(const Recipe& recipe, const std::string& folder, LineOutput& out,
              const std::function<bool()>& stop)
      : data_(recipe.data), wanted_(recipe.tokenizer), folder_(folder), out_(out), stop_(stop) {}

  void check(int64_t model_vocab) const {
    for (const auto& paths : {data_.train, data_.valid})
      for (const auto& path : paths) {
        require_readable(path, data_.hint);
        require(is_token_file(path) == token_files(), "data: token files and text cannot be mixed: {}", path);
      }
    if (token_files()) check_token_files();
    if (!wanted_.is_scalar()) {
      auto training = bpe_training(wanted_);
      training.vocab_size = 257;  // bytes and the end of text: only the pattern is tried
      train_bpe(std::vector<std::string>{"a"}, training);
      return;
    }
    const auto tokenizer = load_tokenizer(wanted_.as_string());
    require(model_vocab == 0 || model_vocab >= tokenizer->vocab_size(),
            "model.vocab: {} but the tokenizer has {} tokens", model_vocab, tokenizer->vocab_size());
    if (!token_files()) return;
    for (const auto& paths : {data_.train, data_.valid})
      for (const auto& path : paths) TokenFile(path).require_tokenizer(*tokenizer);
  }

  Corpus run() {
    const Node made_from = sources();
    const std::string mark = file("prepared.yaml");
    fs::create_directories(folder_ + "/data");
    remove_stale_staging(folder_ + "/data");
    const bool ready = fs::exists(mark) && Node::load(mark).dump() == made_from.dump();
    if (!ready) {
      fs::remove(mark);
      build();
      write_atomically(mark, made_from.dump());
    }
    return open();
  }

 private:
  std::string file(const std::string& name) const { return folder_ + "/data/" + name; }
  bool token_files() const { return is_token_file(data_.train.front()); }
  bool has_valid() const { return !data_.valid.empty() || data_.valid_fraction > 0; }
  std::string held_out_path() const {
    return folder_ + (is_json_lines(data_.train.front()) ? "/valid.jsonl" : "/valid.txt");
  }

  Node sources() const {
    Node node = Node::map();
    for (const auto& [name, paths] : {std::pair{"train", &data_.train}, std::pair{"valid", &data_.valid}}) {
      Node list = Node::list();
      for (const auto& path : *paths) list.push_back(stamp(path, data_.hint));
      node.set_child(name, std::move(list));
    }
    node.set_child("valid_fraction", Node::scalar(fmt::format("{}", data_.valid_fraction)));
    node.set_child("separator", Node::scalar(data_.separator));
    node.set_child("field", Node::scalar(data_.field));
    node.set_child("tokenizer", wanted_);
    if (wanted_.is_scalar() && fs::is_regular_file(wanted_.as_string()))
      node.set_child("tokenizer_file", stamp(wanted_.as_string(), ""));
    return node;
  }

  std::unique_ptr<TextSource> open_files(const std::vector<std::string>& paths) const {
    return std::make_unique<StoppableText>(
        open_texts(paths, {.separator = data_.separator, .field = data_.field}), stop_);
  }
  std::unique_ptr<TextSource> train_text() const {
    auto source = open_files(data_.train);
    return data_.valid_fraction > 0 ? before_split(std::move(source), split_) : std::move(source);
  }
  std::unique_ptr<TextSource> valid_text() const {
    return data_.valid.empty() ? after_split(open_files(data_.train), split_) : open_files(data_.valid);
  }

  void check_token_files() const {
    require(data_.train.size() == 1 && data_.valid.size() <= 1,
            "data: give one .tokens file to train on and at most one to validate on, found {} and {}",
            data_.train.size(), data_.valid.size());
    require(data_.valid_fraction == 0,
            "data.valid_fraction cuts text; with a token file give a second one for validation (data.valid)");
    require(wanted_.is_scalar(), "tokenizer: {} holds ids already; give the tokenizer.json that made it",
            data_.train.front());
    for (const auto& path : data_.valid)
      require(is_token_file(path), "{}: expected a .tokens file, as {} is one", path, data_.train.front());
  }

  void build() {
    if (data_.valid_fraction > 0) split_ = split_text(*open_files(data_.train), data_.valid_fraction);
    const auto tokenizer = make_tokenizer();
    tokenizer->save(file("tokenizer.json"));
    if (token_files()) return;
    tokenize(*train_text(), *tokenizer, "train");
    if (has_valid()) tokenize(*valid_text(), *tokenizer, "valid");
    if (data_.valid_fraction > 0) write_held_out();
  }

  std::shared_ptr<const Tokenizer> make_tokenizer() const {
    if (wanted_.is_scalar()) return load_tokenizer(wanted_.as_string());
    auto training = bpe_training(wanted_);
    Progress progress(out_, "learn the vocabulary", static_cast<double>(training.vocab_size), "tokens");
    training.progress = [&](int64_t done, int64_t) {
      if (stop_ && stop_()) throw Interrupted();
      progress.at(static_cast<double>(done));
    };
    auto source = train_text();
    const auto json = train_bpe([&](std::string& text) { return source->next(text); }, training);
    progress.finish();
    write_atomically(file("tokenizer.json"), json);
    return load_tokenizer(file("tokenizer.json"));
  }

  void tokenize(TextSource& source, const Tokenizer& tokenizer, const std::string& name) const {
    Progress progress(out_, "tokenize " + name, static_cast<double>(source.bytes_total()), "bytes");
    build_token_file(source, tokenizer, file(name + ".tokens"),
                     [&](const TokenFileProgress& at) { progress.at(static_cast<double>(at.bytes_done)); });
    progress.finish();
  }

  void write_held_out() const {
    auto source = valid_text();
    const bool json = is_json_lines(data_.train.front());
    write_atomically(held_out_path(), [&](OutputFile& out) {
      std::string document;
      for (bool first = true; source->next(document); first = false) {
        if (json) {
          out.write(nlohmann::json{{data_.field, document}}.dump() + "\n");
        } else {
          if (!first && !data_.separator.empty()) out.write(data_.separator + "\n");
          out.write(document);
        }
      }
    });
  }

  Corpus open() const {
    Corpus corpus;
    corpus.tokenizer = load_tokenizer(file("tokenizer.json"));
    const auto open_tokens = [&](const std::string& path) {
      auto tokens = std::make_shared<const TokenFile>(path);
      tokens->require_tokenizer(*corpus.tokenizer);
      return tokens;
    };
    corpus.train = open_tokens(token_files() ? data_.train.front() : file("train.tokens"));
    if (has_valid()) corpus.valid = open_tokens(token_files() ? data_.valid.front() : file("valid.tokens"));
    if (data_.valid_fraction > 0) corpus.held_out = held_out_path();
    return corpus;
  }

  const DataOptions& data_;
  const Node& wanted_;
  std::string folder_;  // of the run
  LineOutput& out_;
  const std::function<bool()>& stop_;
  TextSplit split_;
};

}  // namespace

std::string Corpus::fingerprint() const {
  const auto sum = [](const std::shared_ptr<const TokenFile>& file) {
    return file ? fmt::format("{} tokens in {} documents with checksum {:08x}", file->size(),
                              file->documents(), file->checksum())
                : std::string("none");
  };
  return fmt::format("{}, validation {}, tokenizer {}", sum(train), sum(valid), tokenizer->fingerprint());
}

void check_corpus(const Recipe& recipe) {
  LineOutput silent;
  const std::function<bool()> never;
  Preparation(recipe, "", silent, never).check(recipe.model.vocab);
}

Corpus prepare_corpus(const Recipe& recipe, const std::string& run_folder, LineOutput& out,
                      const std::function<bool()>& stop) {
  return Preparation(recipe, run_folder, out, stop).run();
}

}  // namespace weft
