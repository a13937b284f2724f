// The diagonal recurrences on CUDA kernels. Internal to the family.
#pragma once

#include "ops/scan/scan.h"
#include "ops/scan/wkv.h"

namespace weft::ops {

// Whether libweft_cuda.so is loaded.
bool has_cuda_scan();

// Of checked inputs.
ScanResult cuda_scan(const at::Tensor& a, const at::Tensor& b, const at::Tensor& initial,
                     const at::Tensor& starts);
// Moves `state` on by one token; returns h.
at::Tensor cuda_scan_step(const at::Tensor& a, const at::Tensor& b, const at::Tensor& state);

// Whether libweft_cuda.so is loaded and its kernel takes so many states on the device of `in`.
bool has_cuda_selective_scan(const SelectiveScan& in);

// As selective_scan and selective_scan_step, of checked inputs.
SelectiveScanResult cuda_selective_scan(const SelectiveScan& in);
SelectiveScanResult cuda_selective_scan_step(const SelectiveScan& in);

bool has_cuda_wkv();
WkvResult cuda_wkv(const Wkv& in);

}  // namespace weft::ops
