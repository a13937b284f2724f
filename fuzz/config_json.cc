// The config of a pretrained model, up to the model that it describes: whatever the text, there is a model without
// weights or an error of the user's, in bounded time and memory.
#include <cstddef>
#include <cstdint>

#include "base/error.h"
#include "io/pretrained/huggingface.h"

namespace {

class NoTensors final : public weft::TensorSource {
 public:
  std::vector<std::string> names() const override { return {}; }
  bool contains(const std::string&) const override { return false; }
  std::vector<int64_t> shape(const std::string&) const override { return {}; }
  at::ScalarType dtype(const std::string&) const override { return at::kFloat; }
  at::Tensor view(const std::string&) const override { return {}; }
  const std::string& path() const override { return path_; }

 private:
  std::string path_ = "fuzz.safetensors";
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const std::string text(reinterpret_cast<const char*>(data), size);
    weft::make_pretrained(weft::config_as_json(text), "fuzz.json", NoTensors());
  } catch (const weft::InputError&) {
  } catch (const weft::Unsupported&) {
  }
  return 0;
}
