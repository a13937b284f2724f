// The instruction sets that CPU kernels are compiled for, and how a kernel file gives one function for each.
// No torch.
#pragma once

namespace weft::simd {

enum class Isa { scalar, avx2, avx512 };

bool isa_runs_here(Isa isa);

}  // namespace weft::simd
