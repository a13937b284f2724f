// Several residual streams with learned, token-dependent connections: hyper-connections (Zhu et al. 2024,
// arXiv:2409.19606) in the gated form of Qwen4-Exp. With n streams x_1 .. x_n of width D side by side and u_i =
// (1 + w_i) * rms(x_i), u all of them:
//   a branch reads   h = mean_i sigmoid(U silu(V u / n))_i * u_i         V [rank, nD], U [nD, rank], per channel
//   and writes       x_i <- x_i + 2 sigmoid(W u / n)_i y                 W [n, nD]
// The streams start as n copies; behind the last layer they are read once more.
#include "base/error.h"
#include "nn/residual.h"
#include "ops/norm/norm.h"

namespace weft {
namespace {

// The mix of streams that a branch, or the end of the stack, reads.
class Mix : public Module {
 public:
  Mix(int64_t streams, int64_t rank, int64_t width, double eps)
      : streams_(streams),
        width_(width),
        eps_(eps),
        weight_(vector_parameter("norm.weight", {streams * width}, init::constant(0))),
        down_(linear("down", streams * width, rank)),
        up_(linear("up", rank, streams * width)) {}

  // x [B, T, nD] -> u [B, T, nD], in the type of x
  at::Tensor normed(const at::Tensor& x) const {
    return ops::rms_norm(x.unflatten(-1, {streams_, width_}), {}, eps_).flatten(-2) *
           (weight_->value + 1).to(x.scalar_type());
  }
  at::Tensor mixed(const at::Tensor& u) const {  // -> [B, T, D]
    const auto weights = at::sigmoid(up_(at::silu(down_(u) / streams_)));
    return (weights * u).unflatten(-1, {streams_, width_}).mean(-2);
  }

 protected:
  int64_t streams_, width_;

 private:
  double eps_;
  std::shared_ptr<Parameter> weight_;
  Linear down_, up_;
};

class HyperConnection final : public Connection {
 public:
  HyperConnection(int64_t streams, int64_t rank, int64_t width, double eps)
      : streams_(streams),
        mix_(streams, rank, width, eps),
        inject_(
            linear("inject", streams * width, streams, {.rules = {.role = ParameterRules::Role::vector}})) {
    add_child("mix", mix_);
  }

  Reading read(Stream& stream, const std::vector<Norm>& norms) override {
    stream.settle();
    const auto u = mix_.normed(stream.x);
    const auto h = mix_.mixed(u);
    Reading reading{.inputs = {}, .gate = 2 * at::sigmoid(inject_(u) / streams_)};  // [B, T, n]
    for (const auto& norm : norms) reading.inputs.push_back(norm(h));
    return reading;
  }

  void write(Stream& stream, const Reading& reading, const at::Tensor& y) override {
    const auto part = reading.gate.unsqueeze(-1) * y.unsqueeze(-2);  // [B, T, n, D]
    stream.x = stream.x + part.flatten(-2).to(stream.x.scalar_type());
  }

 private:
  int64_t streams_;
  Mix mix_;
  Linear inject_;
};

class HyperConnections final : public Residual {
 public:
  struct Options {
    int64_t streams = 4, rank = 32;
    double eps = 1e-6;
    void fields(Fields& f) {
      f("streams", streams, "n, residual streams side by side", at_least(2));
      f("rank", rank, "of the learned mix of streams that a branch reads", at_least(1));
      f("eps", eps, "added to the mean square of each stream before the root", above(0));
    }
  };
  HyperConnections(const Options& options, int64_t width)
      : o_(options), width_(width), mix_(o_.streams, o_.rank, width, o_.eps) {
    add_child("mix", mix_);
  }

  std::unique_ptr<Connection> connect(const BranchSite& site) const override {
    return std::make_unique<HyperConnection>(o_.streams, o_.rank, site.width, o_.eps);
  }
  int64_t width() const override { return o_.streams * width_; }
  Stream begin(const at::Tensor& x) override { return Residual::begin(x.repeat({1, 1, o_.streams})); }
  at::Tensor end(Stream& stream) override { return mix_.mixed(mix_.normed(Residual::end(stream))); }

 private:
  Options o_;
  int64_t width_;
  Mix mix_;
};
const RegisterResidual<HyperConnections> register_hyper_connections{
    "hyper_connections", "several streams with learned connections, gated (Qwen4-Exp)"};

}  // namespace
}  // namespace weft
