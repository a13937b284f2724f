// Delta rule with any decay on tensor cores: what the form takes, its memory, the order of its kernels.
#include "ops/linear_attention/delta.cuh"

namespace weft::kernels {
namespace {

using delta::kChunk;
using delta::kPairs;
using delta::Work;

bool aligned(const CudaRows& rows) {
  return reinterpret_cast<uintptr_t>(rows.data) % 16 == 0 && rows.batch % 8 == 0 && rows.token % 8 == 0 &&
         rows.head % 8 == 0;
}

bool takes(const CudaLinearAttention& p) {
  const bool key_width = p.key_width == 64 || p.key_width == 128 || p.key_width == 256;
  const bool value_width = p.value_width == 64 || p.value_width == 128 || p.value_width == 256;
  return p.capability >= 80 && p.v.type != CudaType::fp32 && p.beta.data && !p.erase_read.data && !p.bonus &&
         (p.decay != Decay::vector || aligned(p.log_decay)) && key_width && value_width && p.tokens > 0 &&
         delta::shared_needed(p) <= delta::shared_limit(p.capability) && p.heads < 65536 && p.batch < 65536 &&
         aligned(p.q) && aligned(p.k) && aligned(p.v);
}

int64_t chunks_of(const CudaLinearAttention& p) { return (p.tokens + kChunk - 1) / kChunk; }
int64_t all_chunks(const CudaLinearAttention& p) { return p.batch * p.heads * chunks_of(p); }

// Hands out parts of a buffer; with a null buffer it only counts.
class Buffer {
 public:
  explicit Buffer(void* data) : data_(static_cast<char*>(data)) {}
  void* take(int64_t bytes) {
    void* part = data_ ? data_ + used_ : nullptr;
    used_ += (bytes + 255) / 256 * 256;
    return part;
  }
  int64_t used() const { return used_; }

 private:
  char* data_;
  int64_t used_ = 0;
};

void cut(const CudaLinearAttention& p, Work& work, int segments) {
  work.chunks = static_cast<int>(chunks_of(p));
  work.segment_chunks = (work.chunks + segments - 1) / segments;
  work.segments = (work.chunks + work.segment_chunks - 1) / work.segment_chunks;
}
int64_t states_at_edges(const CudaLinearAttention& p, const Work& work) {
  return p.batch * p.heads * work.segments * p.key_width * p.value_width;
}
void take_maps(const CudaLinearAttention& p, Buffer& buffer, Work& work) {
  if (work.segments == 1) return;
  work.maps =
      static_cast<float*>(buffer.take(4 * p.batch * p.heads * work.segments * p.key_width * p.key_width));
  work.edges = static_cast<float*>(buffer.take(4 * states_at_edges(p, work)));
}
// What the forward pass needs in any case, what a backward needs of it, and what is not for a backward that decays rows
// itself.
void take_triangles(const CudaLinearAttention& p, Buffer& buffer, Work& work) {
  const int64_t chunks = all_chunks(p);
  cut(p, work, delta::pass_segments(p));
  take_maps(p, buffer, work);
  work.solve = buffer.take(2 * chunks * 2 * kPairs);
  work.reads = buffer.take(2 * chunks * kPairs);
  work.facts = buffer.take(chunks * delta::facts_bytes(p));
}
void take_rows(const CudaLinearAttention& p, Buffer& buffer, Work& work) {
  if (p.decay != Decay::vector) return;
  const int64_t bytes = 2 * all_chunks(p) * kChunk * p.key_width;
  work.queries = buffer.take(bytes), work.keys_in = buffer.take(bytes), work.keys_out = buffer.take(bytes);
}
bool keeps_rows(const CudaLinearAttention& p, const Work& work) {
  return !delta::has_backward_sm90(p) || work.segments > 1;
}
void take_forward(const CudaLinearAttention& p, Buffer& buffer, Work& work) {
  cut(p, work, delta::forward_segments(p));
  if (delta::has_forward_sm90(p, work) || delta::has_forward_vector_sm90(p, work, false))
    return take_maps(p, buffer, work);  // the rest is in shared memory
  take_triangles(p, buffer, work);
  take_rows(p, buffer, work);
}
void take_saved(const CudaLinearAttention& p, Buffer& buffer, Work& work) {
  take_triangles(p, buffer, work);
  if (keeps_rows(p, work)) take_rows(p, buffer, work);
  const int64_t chunks = all_chunks(p);
  work.values = buffer.take(2 * chunks * kChunk * p.value_width);
  work.states = buffer.take(2 * chunks * p.key_width * p.value_width);
}
void take_backward(const CudaLinearAttention& p, Buffer& buffer, Work& work) {
  const int64_t chunks = all_chunks(p);
  cut(p, work, delta::pass_segments(p));
  if (work.segments > 1) work.dedges = static_cast<float*>(buffer.take(4 * states_at_edges(p, work)));
  if (delta::has_backward_sm90(p)) return;
  work.sources = buffer.take(2 * chunks * kChunk * p.value_width);
  work.dstates = buffer.take(2 * chunks * p.key_width * p.value_width);
  if (p.key_width > 64)
    work.partial =
        static_cast<float*>(buffer.take(4 * 2 * (p.key_width / 64) * p.batch * p.tokens * p.heads));
}

template <class Take>
int64_t bytes_of(const CudaLinearAttention& p, const Take& take) {
  Buffer buffer(nullptr);
  Work work;
  take(p, buffer, work);
  return buffer.used();
}
int64_t saved_bytes(const CudaLinearAttention& p) { return bytes_of(p, take_saved); }
int64_t forward_scratch(const CudaLinearAttention& p) { return bytes_of(p, take_forward); }
int64_t backward_scratch(const CudaLinearAttention& p) { return bytes_of(p, take_backward); }

CudaStatus forward(const CudaLinearAttention& p, void* saved, void* scratch, void* stream) {
  Work work;
  Buffer kept(saved), buffer(scratch);
  if (!saved)
    take_forward(p, buffer, work);
  else
    take_saved(p, kept, work);
  if (delta::has_forward_sm90(p, work)) return delta::forward_sm90(p, work, stream);
  if (delta::has_forward_vector_sm90(p, work, saved)) return delta::forward_vector_sm90(p, work, stream);
  if (saved && !keeps_rows(p, work)) take_rows(p, buffer, work);
  const auto prepare = p.decay == Decay::vector ? delta::prepare_vector : delta::prepare;
  if (const CudaStatus failed = prepare(p, work, stream)) return failed;
  return delta::has_passes_sm90(p) ? delta::forward_pass_sm90(p, work, stream)
                                   : delta::forward_pass(p, work, stream);
}

CudaStatus backward(const CudaLinearAttention& p, const CudaLinearAttentionGradients& g, const void* saved,
                    void* scratch, void* stream) {
  Work work;
  Buffer kept(const_cast<void*>(saved)), buffer(scratch);
  take_saved(p, kept, work);
  take_backward(p, buffer, work);
  const auto pass = delta::has_passes_sm90(p) ? delta::backward_pass_sm90 : delta::backward_pass;
  if (const CudaStatus failed = pass(p, g, work, stream)) return failed;
  if (delta::has_backward_sm90(p)) return nullptr;
  return p.decay == Decay::vector ? delta::gradients_vector(p, g, work, stream)
                                  : delta::gradients(p, g, work, stream);
}

}  // namespace

const CudaLinearAttentionForm kCudaDeltaForm = {"delta",          takes,   saved_bytes, forward_scratch,
                                                backward_scratch, forward, backward};

}  // namespace weft::kernels
