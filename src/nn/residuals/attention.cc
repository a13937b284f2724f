// Attention residuals: instead of the sum of everything before, a branch reads a softmax mixture over what earlier
// blocks of layers wrote, with a learned query (Kimi Team 2026, "Attention Residuals", arXiv:2603.15031); as in
// Inkling-2, also with queries for each of several inputs and with messages between the passes of a loop.
//
// A block is so many layers. x holds what the current block wrote so far; the first branch of a block puts x away and
// starts x anew with its own output, all others add to it. With s_i the stored blocks and x, each divided by its root
// mean square, and q a parameter of D:
//   h = sum_i softmax_i(q s_i / sqrt(D)) s_i
// The very first branch reads x as it is. In the second pass of a loop and later, messages m of the same form, over
// what the previous pass wrote, are mixed in before the norm of the branch:
//   g = V [rms(h), rms(m)];   h <- (1 - tanh(F g)) h + tanh(M g) m
// Every pass starts from the stream as it was before the loop. All of this is computed in fp32 (or fp64).
#include <cmath>

#include "base/error.h"
#include "nn/residual.h"
#include "ops/norm/norm.h"

namespace weft {
namespace {

constexpr double kSourceEps = 1e-6;  // of the division by the root mean square

at::Tensor wide(const at::Tensor& x) { return x.scalar_type() == at::kDouble ? x : x.to(at::kFloat); }
at::Tensor source(const at::Tensor& x) { return ops::rms_norm(wide(x), {}, kSourceEps); }

at::Tensor joined(const at::Tensor& blocks, const at::Tensor& one) {
  const auto last = one.unsqueeze(-2);
  return blocks.defined() ? at::cat({blocks, last}, -2) : last;
}

// queries [Q, D] over sources [B, T, N, D] -> Q tensors [B, T, D]
std::vector<at::Tensor> attend(const at::Tensor& queries, const at::Tensor& sources) {
  const auto q = queries.to(sources.scalar_type());
  const auto scores =
      at::matmul(sources, q.t()) / std::sqrt(static_cast<double>(q.size(-1)));  // [B, T, N, Q]
  return at::matmul(at::softmax(scores, -2).transpose(-1, -2), sources).unbind(-2);
}

// Mixes a message into what a branch reads.
class MessageGate final : public Module {
 public:
  MessageGate(int64_t width, int64_t rank, double eps)
      : eps_(eps),
        down_(linear("down", 2 * width, rank)),
        forget_(linear("forget", rank, width)),
        gain_(linear("gain", rank, width)) {}
  at::Tensor operator()(const at::Tensor& h, const at::Tensor& message) const {
    const auto g = down_(at::cat({ops::rms_norm(h, {}, eps_), ops::rms_norm(message, {}, eps_)}, -1));
    return (1 - at::tanh(forget_(g))) * h + at::tanh(gain_(g)) * message;
  }

 private:
  double eps_;
  Linear down_, forget_, gain_;
};

class AttentionConnection final : public Connection {
 public:
  AttentionConnection(const BranchSite& site, int64_t block, int64_t message_rank, bool reads)
      : begins_block_(site.first_in_layer && site.layer % block == 0) {
    const auto queries = [&](const std::string& name, int64_t count) {
      return vector_parameter(name, {count, site.width}, init::constant(0));
    };
    if (reads) query_ = queries("query", site.separate_inputs ? site.inputs : 1);
    if (message_rank == 0 || !site.looped) return;
    message_query_ = queries("message_query", site.inputs);
    for (int64_t i = 0; i < site.inputs; ++i) {
      gates_.push_back(std::make_unique<MessageGate>(site.width, message_rank, site.norm_eps));
      add_child("gate" + std::to_string(i), *gates_.back());
    }
  }

  Reading read(Stream& stream, const std::vector<Norm>& norms) override {
    stream.settle();
    Reading reading;
    auto h = query_ ? attend(query_->value, joined(stream.blocks, source(stream.x))) : std::vector{stream.x};
    if (stream.messages.defined() && !gates_.empty()) {
      const auto messages = attend(message_query_->value, stream.messages);
      h.resize(messages.size(), h.front());
      for (size_t i = 0; i < h.size(); ++i) h[i] = (*gates_[i])(wide(h[i]), messages[i]);
    }
    h.resize(std::max(h.size(), norms.size()), h.front());
    for (size_t i = 0; i < h.size(); ++i)
      reading.inputs.push_back(norms[std::min(i, norms.size() - 1)](h[i]));
    return reading;
  }

  void write(Stream& stream, const Reading&, const at::Tensor& y) override {
    if (begins_block_) {
      stream.blocks = joined(stream.blocks, source(stream.x));
      stream.x = y.to(stream.x.scalar_type());
    } else {
      stream.x = (wide(stream.x) + wide(y)).to(stream.x.scalar_type());
    }
  }

 private:
  bool begins_block_;
  std::shared_ptr<Parameter> query_, message_query_;
  std::vector<std::unique_ptr<MessageGate>> gates_;
};

class AttentionResidual final : public Residual {
 public:
  struct Options {
    int64_t block = 1, message_rank = 0;
    void fields(Fields& f) {
      f("block", block, "layers whose outputs are summed into one block", at_least(1));
      f("message_rank", message_rank,
        "rank of the gates that mix messages of a loop's previous pass into what a branch reads, every pass "
        "starting "
        "anew; 0: no messages, passes follow one another",
        at_least(0));
    }
  };
  AttentionResidual(const Options& options, int64_t width)
      : o_(options), width_(width), query_(vector_parameter("query", {1, width}, init::constant(0))) {}

  std::unique_ptr<Connection> connect(const BranchSite& site) const override {
    const bool reads = site.layer > 0 || !site.first_in_layer;
    return std::make_unique<AttentionConnection>(site, o_.block, o_.message_rank, reads);
  }
  int64_t width() const override { return width_; }
  at::Tensor end(Stream& stream) override {
    stream.settle();
    return attend(query_->value, joined(stream.blocks, source(stream.x))).front();
  }
  Stream next_pass(const Stream& before, Stream after) const override {
    if (o_.message_rank == 0) return after;
    after.settle();
    // The first block that the pass put away is what came before the loop: no news.
    const int64_t old = before.blocks.defined() ? before.blocks.size(-2) : 0;
    const auto news = after.blocks.defined() ? after.blocks.slice(-2, old + 1) : at::Tensor();
    Stream next = before;
    next.messages = joined(news, source(after.x));
    return next;
  }

 private:
  Options o_;
  int64_t width_;
  std::shared_ptr<Parameter> query_;
};
const RegisterResidual<AttentionResidual> register_attention_residual{
    "attention", "branches attend to what earlier blocks of layers wrote (attention residuals)"};

}  // namespace
}  // namespace weft
