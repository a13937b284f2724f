#include "io/tokenizers/post_processor.h"

#include "base/error.h"

namespace weft {

namespace {

void read_template(const JsonPlace& place, SpecialIds& around) {
  place.only({"type", "single", "pair", "special_tokens"});
  std::vector<int64_t> before, after;
  bool seen = false;
  for (const auto& item : place.at("single").items()) {
    item.only({"SpecialToken", "Sequence"});
    if (item.has("Sequence")) {
      const std::string which = item.at("Sequence").at("id").text();
      require(which == "A" && !seen, "{}: expected the sequence A once, found {}", item.where(),
              item.shown());
      seen = true;
      continue;
    }
    const JsonPlace token = place.at("special_tokens").at(item.at("SpecialToken").at("id").text());
    for (const auto& id : token.at("ids").items()) (seen ? after : before).push_back(id.integer());
  }
  require(seen, "{}: the sequence A is missing", place.at("single").where());
  around.before.insert(around.before.begin(), before.begin(), before.end());
  around.after.insert(around.after.end(), after.begin(), after.end());
}

// The id in ["</s>", 2].
int64_t read_named_id(const JsonPlace& place) {
  const auto both = place.items();
  require(both.size() == 2, "{}: expected [token, id], found {}", place.where(), place.shown());
  return both[1].integer();
}

void read(const JsonPlace& place, SpecialIds& around, int depth) {
  require(depth < kMaxStepDepth, "{}: nested too deeply", place.where());
  const std::string type = place.at("type").text();
  if (type == "ByteLevel") {
    place.only({"type", "add_prefix_space", "trim_offsets", "use_regex"});
  } else if (type == "TemplateProcessing") {
    read_template(place, around);
  } else if (type == "RobertaProcessing" || type == "BertProcessing") {
    place.only({"type", "sep", "cls", "trim_offsets", "add_prefix_space"});
    around.before.insert(around.before.begin(), read_named_id(place.at("cls")));
    around.after.push_back(read_named_id(place.at("sep")));
  } else if (type == "Sequence") {
    place.only({"type", "processors"});
    for (const auto& item : place.at("processors").items()) read(item, around, depth + 1);
  } else {
    throw Unsupported(
        fmt::format("{}: the post-processor '{}' is not supported; supported are ByteLevel, "
                    "TemplateProcessing, RobertaProcessing, BertProcessing, Sequence",
                    place.where(), type));
  }
}

}  // namespace

SpecialIds read_post_processor(const JsonPlace& place) {
  SpecialIds around;
  if (!place.is_null()) read(place, around, 0);
  return around;
}

}  // namespace weft
