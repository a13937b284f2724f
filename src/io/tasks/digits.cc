// Images as sequences of pixels, one class for each: sequential and permuted digits (sMNIST, psMNIST; Le et al. 2015,
// arXiv:1504.00941), sequential Fashion. Files in the IDX format of MNIST, or lines "64 numbers, label" as the 8 x 8
// digits of scikit-learn; plain or gzip.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "base/error.h"
#include "io/datasets/compressed.h"
#include "io/tasks/finite.h"

namespace weft {
namespace {

struct Images {
  at::Tensor pixels;  // [N, P] fp32 in [0, 1]
  at::Tensor labels;  // [N] int64
};

uint32_t big_endian(const std::string& text, size_t at) {
  uint32_t value = 0;
  for (size_t i = 0; i < 4; ++i) value = value << 8 | static_cast<unsigned char>(text[at + i]);
  return value;
}

// Bytes after an IDX header of `dimensions` sizes; checks that they are all there.
at::Tensor read_idx(const std::string& path, uint32_t dimensions, const std::string& hint) {
  const auto text = read_data_file(path, hint);
  const size_t header = 4 + 4 * dimensions;
  require(text.size() >= header && big_endian(text, 0) == 0x800 + dimensions,
          "{}: not an IDX file of bytes with {} dimensions", path, dimensions);
  std::vector<int64_t> sizes;
  uint64_t count = 1;
  for (uint32_t i = 0; i < dimensions; ++i) {
    sizes.push_back(big_endian(text, 4 + 4 * i));
    count *= static_cast<uint64_t>(sizes.back());
    require(count <= text.size(), "{}: the header promises more bytes than the file has", path);
  }
  require(text.size() == header + count, "{}: {} bytes after the header, expected {}", path,
          text.size() - header, count);
  auto bytes = at::empty(sizes, at::kByte);
  std::memcpy(bytes.data_ptr(), text.data() + header, count);
  return bytes;
}

Images read_images(const std::string& images, const std::string& labels, const std::string& hint) {
  const auto pixels = read_idx(images, 3, hint), classes = read_idx(labels, 1, hint);
  require(pixels.size(0) == classes.size(0), "{}: {} images, but {} labels in {}", images, pixels.size(0),
          classes.size(0), labels);
  return {pixels.flatten(1).to(at::kFloat) / 255, classes.to(at::kLong)};
}

// Lines of numbers with the label last. `brightest` becomes 1.
Images read_csv(const std::string& path, const std::string& hint) {
  const auto text = read_data_file(path, hint);
  std::vector<float> numbers;
  size_t columns = 0, rows = 0;
  const char* at = text.c_str();
  const char* const end = at + text.size();
  while (at < end) {
    const size_t before = numbers.size();
    while (at < end && *at != '\n') {
      char* after = nullptr;
      numbers.push_back(std::strtof(at, &after));
      require(after != at, "{}:{}: expected a number", path, rows + 1);
      at = after;
      while (at < end && (*at == ',' || *at == ' ' || *at == '\r')) ++at;
    }
    ++at;
    if (numbers.size() == before) continue;
    ++rows;
    if (rows == 1) columns = numbers.size();
    require(columns >= 2 && numbers.size() - before == columns, "{}:{}: {} numbers, expected {}", path, rows,
            numbers.size() - before, columns);
  }
  require(rows > 0, "{}: no lines of numbers", path);
  const auto all =
      at::from_blob(numbers.data(), {static_cast<int64_t>(rows), static_cast<int64_t>(columns)}, at::kFloat)
          .clone();
  const auto pixels = all.slice(1, 0, -1);
  return {pixels / pixels.max().clamp_min(1e-6), all.select(1, -1).to(at::kLong)};
}

class Digits final : public Task {
 public:
  struct Options {
    std::string images = "/usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz";
    std::string labels = "/usr/share/datasets/fashion-mnist/train-labels-idx1-ubyte.gz";
    std::string test_images, test_labels;
    std::string hint =
        "apt-get install dataset-fashion-mnist, or give other IDX files in data.images and data.labels";
    double test_fraction = 0.2;
    bool permuted = false;
    int64_t pixels = 1, pool = 1;
    void fields(Fields& f) {
      f("images", images, "IDX file of the images, or lines of numbers with the label last (.csv, .csv.gz)");
      f("labels", labels, "IDX file of the labels");
      f("test_images", test_images, "the test images; empty: the end of `images`");
      f("test_labels", test_labels, "the test labels");
      f("hint", hint, "what to do when a file is absent");
      f("test_fraction", test_fraction, "share cut off the end for testing when there are no test images",
        above(0), below(1));
      f("permuted", permuted, "pixels in one random order, the same for all images");
      f("pixels", pixels, "F, pixels of one position; the row has all pixels / F positions", at_least(1));
      f("pool", pool, "side of squares of pixels that are averaged first; 1: none", at_least(1));
    }
  };

  explicit Digits(const Options& options) : o_(options) {
    const bool csv = o_.images.ends_with(".csv") || o_.images.ends_with(".csv.gz");
    auto all = csv ? read_csv(o_.images, o_.hint) : read_images(o_.images, o_.labels, o_.hint);
    if (!o_.test_images.empty()) {
      train_ = prepared(all);
      test_ = prepared(csv ? read_csv(o_.test_images, o_.hint)
                           : read_images(o_.test_images, o_.test_labels, o_.hint));
    } else {
      const int64_t n = all.pixels.size(0);
      const int64_t cut = n - static_cast<int64_t>(o_.test_fraction * static_cast<double>(n) + 0.5);
      require(cut >= 1 && cut < n, "{}: {} images cannot be cut into training and test", o_.images, n);
      all = prepared(all);
      train_ = {all.pixels.slice(0, 0, cut), all.labels.slice(0, 0, cut)};
      test_ = {all.pixels.slice(0, cut), all.labels.slice(0, cut)};
    }
  }

  TaskShape shape() const override {
    const int64_t classes = train_.labels.max().item<int64_t>() + 1;
    return {.kind = TaskShape::Kind::classes,
            .vocab = 0,
            .features = o_.pixels,
            .outputs = classes,
            .chance = 1.0 / static_cast<double>(classes)};
  }
  int64_t size(Split split) const override { return of(split).labels.size(0); }
  Examples examples(Split split, int64_t first, int64_t rows, uint64_t seed) const override {
    const auto& images = of(split);
    const auto numbers = finite_rows(split, first, rows, images.labels.size(0), seed);
    return {images.pixels.index_select(0, numbers).unflatten(1, {-1, o_.pixels}),
            images.labels.index_select(0, numbers)};
  }

 private:
  const Images& of(Split split) const { return split == Split::train ? train_ : test_; }

  Images prepared(Images images) const {
    auto pixels = images.pixels;
    if (o_.pool > 1) {
      const int64_t side = static_cast<int64_t>(std::sqrt(static_cast<double>(pixels.size(1))) + 0.5);
      require(side * side == pixels.size(1) && side % o_.pool == 0,
              "digits: pool {} does not divide images of {} pixels", o_.pool, pixels.size(1));
      pixels = at::avg_pool2d(pixels.unflatten(1, {1, side, side}), {o_.pool, o_.pool}).flatten(1);
    }
    if (o_.permuted) {
      const auto order = ExampleRandom(92916, Split::train, 0).permutation(pixels.size(1));
      pixels = pixels.index_select(1, at::tensor(order, at::kLong));
    }
    require(pixels.size(1) % o_.pixels == 0, "digits: {} pixels of a position do not divide images of {}",
            o_.pixels, pixels.size(1));
    return {pixels.contiguous(), images.labels};
  }

  Options o_;
  Images train_, test_;
};
const RegisterTask<Digits> register_digits{"digits", "images as sequences of pixels, one class for each"};

}  // namespace
}  // namespace weft
