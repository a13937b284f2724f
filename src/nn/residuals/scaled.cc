// A stream with learned scales and biases on both sides of every sum, as in ZAYA1 (Zyphra 2025, arXiv:2511.17127):
//   x <- (x + b_x) * s_x + (y + b_y) * s_y        each a vector of D, of its own for every branch
// and before the first layer x <- (x + b) * s.
#include "nn/residual.h"

namespace weft {
namespace {

// (x + bias) * scale
struct Scaling {
  std::shared_ptr<Parameter> scale, bias;
  at::Tensor operator()(const at::Tensor& x) const { return (x + bias->value) * scale->value; }
};

class ScaledConnection final : public Connection {
 public:
  explicit ScaledConnection(int64_t width) {
    const auto make = [&](const std::string& name) {
      return Scaling{vector_parameter(name + ".scale", {width}, init::constant(1)),
                     vector_parameter(name + ".bias", {width}, init::constant(0))};
    };
    skip_ = make("skip");
    branch_ = make("branch");
  }

  Reading read(Stream& stream, const std::vector<Norm>& norms) override {
    stream.settle();
    Reading reading;
    for (const auto& norm : norms) reading.inputs.push_back(norm(stream.x));
    return reading;
  }

  void write(Stream& stream, const Reading&, const at::Tensor& y) override {
    stream.x = (skip_(stream.x) + branch_(y)).to(stream.x.scalar_type());
  }

 private:
  Scaling skip_, branch_;
};

class Scaled final : public Residual {
 public:
  struct Options {
    void fields(Fields&) {}
  };
  Scaled(const Options&, int64_t width)
      : width_(width),
        input_{vector_parameter("input.scale", {width}, init::constant(1)),
               vector_parameter("input.bias", {width}, init::constant(0))} {}

  std::unique_ptr<Connection> connect(const BranchSite& site) const override {
    return std::make_unique<ScaledConnection>(site.width);
  }
  int64_t width() const override { return width_; }
  Stream begin(const at::Tensor& x) override { return Residual::begin(input_(x).to(x.scalar_type())); }

 private:
  int64_t width_;
  Scaling input_;
};
const RegisterResidual<Scaled> register_scaled{"scaled",
                                               "learned scale and bias on both sides of every sum (ZAYA1)"};

}  // namespace
}  // namespace weft
