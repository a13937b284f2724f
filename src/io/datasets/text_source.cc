#include "io/datasets/text_source.h"

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/files.h"

namespace weft {

namespace {

class PlainText final : public TextSource {
 public:
  PlainText(const std::string& path, const std::string& separator) : file_(path), separator_(separator) {}

  bool next(std::string& document) override {
    const std::string_view text = file_.text();
    while (at_ < text.size()) {
      const size_t cut = separator_.empty() ? std::string_view::npos : text.find(separator_, at_);
      const size_t end = std::min(cut, text.size());
      document.assign(text.substr(at_, end - at_));
      at_ = cut == std::string_view::npos ? text.size() : cut + separator_.size();
      if (cut != std::string_view::npos && text.substr(at_, 1) == "\n") ++at_;
      if (!document.empty()) return true;
    }
    return false;
  }
  uint64_t bytes_done() const override { return at_; }
  uint64_t bytes_total() const override { return file_.size(); }

 private:
  MappedFile file_;
  std::string separator_;
  size_t at_ = 0;
};

class JsonLines final : public TextSource {
 public:
  JsonLines(const std::string& path, const std::string& field) : file_(path), field_(field) {}

  bool next(std::string& document) override {
    const std::string_view text = file_.text();
    while (at_ < text.size()) {
      const size_t end = std::min(text.find('\n', at_), text.size());
      const std::string_view line = text.substr(at_, end - at_);
      at_ = std::min(end + 1, text.size());
      ++line_;
      if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
      read_line(line, document);
      if (!document.empty()) return true;
    }
    return false;
  }
  uint64_t bytes_done() const override { return at_; }
  uint64_t bytes_total() const override { return file_.size(); }

 private:
  void read_line(std::string_view line, std::string& document) const {
    nlohmann::json json;
    try {
      json = nlohmann::json::parse(line.begin(), line.end());
    } catch (const nlohmann::json::exception& error) {
      throw InputError(fmt::format("{}:{}: not valid JSON: {}", file_.path(), line_, error.what()));
    }
    require(json.is_object(), "{}:{}: expected an object with the member '{}', found {}", file_.path(), line_,
            field_, json.type_name());
    const auto found = json.find(field_);
    require(found != json.end(), "{}:{}: the member '{}' is missing; set the field that holds the text",
            file_.path(), line_, field_);
    require(found->is_string(), "{}:{}: '{}': expected text, found {}", file_.path(), line_, field_,
            found->type_name());
    document = std::move(found->get_ref<std::string&>());
  }

  MappedFile file_;
  std::string field_;
  size_t at_ = 0;
  int64_t line_ = 0;
};

// Opens one file at a time, so that thousands of files need no thousands of mappings.
class Several final : public TextSource {
 public:
  Several(const std::vector<std::string>& paths, const TextOptions& options)
      : paths_(paths), options_(options) {
    require(!paths.empty(), "no text file is given");
    for (const auto& path : paths) total_ += MappedFile(path).size();
  }

  bool next(std::string& document) override {
    for (;;) {
      if (!now_) {
        if (at_ == paths_.size()) return false;
        now_ = open_text(paths_[at_++], options_);
      }
      if (now_->next(document)) return true;
      done_ += now_->bytes_total();
      now_.reset();
    }
  }
  uint64_t bytes_done() const override { return done_ + (now_ ? now_->bytes_done() : 0); }
  uint64_t bytes_total() const override { return total_; }

 private:
  std::vector<std::string> paths_;
  TextOptions options_;
  std::unique_ptr<TextSource> now_;
  size_t at_ = 0;
  uint64_t done_ = 0, total_ = 0;
};

}  // namespace

std::unique_ptr<TextSource> open_text(const std::string& path, const TextOptions& options) {
  if (path.ends_with(".jsonl") || path.ends_with(".ndjson"))
    return std::make_unique<JsonLines>(path, options.field);
  return std::make_unique<PlainText>(path, options.separator);
}

std::unique_ptr<TextSource> open_texts(const std::vector<std::string>& paths, const TextOptions& options) {
  return std::make_unique<Several>(paths, options);
}

}  // namespace weft
