// The plain residual stream: x <- skip x + y.
#include <tuple>

#include "nn/residual.h"

namespace weft {
namespace {

class PlainConnection final : public Connection {
 public:
  explicit PlainConnection(double skip_scale) : skip_scale_(skip_scale) {}

  Reading read(Stream& stream, const std::vector<Norm>& norms) override {
    Reading reading;
    for (const auto& norm : norms) {
      if (!stream.pending.defined()) {
        reading.inputs.push_back(norm(stream.x));
        continue;
      }
      at::Tensor h;
      std::tie(stream.x, h) = norm.add(stream.x, stream.pending);
      stream.pending = at::Tensor();
      reading.inputs.push_back(h);
    }
    return reading;
  }

  void write(Stream& stream, const Reading&, const at::Tensor& y) override {
    stream.settle();
    if (skip_scale_ == 0.0) {
      stream.x = y.to(at::promote_types(stream.x.scalar_type(), y.scalar_type()));
      return;
    }
    if (skip_scale_ != 1.0) stream.x = stream.x * skip_scale_;
    stream.pending = y;
  }

 private:
  double skip_scale_;
};

class Plain final : public Residual {
 public:
  struct Options {
    void fields(Fields&) {}
  };
  Plain(const Options&, int64_t width) : width_(width) {}
  std::unique_ptr<Connection> connect(const BranchSite& site) const override {
    return plain_connection(site.skip_scale);
  }
  int64_t width() const override { return width_; }
  bool plain() const override { return true; }

 private:
  int64_t width_;
};
const RegisterResidual<Plain> register_plain{"plain", "x + f(norm(x))"};

}  // namespace

std::unique_ptr<Connection> plain_connection(double skip_scale) {
  return std::make_unique<PlainConnection>(skip_scale);
}

}  // namespace weft
