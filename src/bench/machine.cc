#include "bench/machine.h"

#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <fstream>

#include "base/error.h"
#include "base/text.h"
#include "ops/cuda_library.h"
#include "ops/devices.h"
#include "ops/parallel.h"

extern char** environ;

namespace weft::bench {
namespace {

double cpu_copy_rate() {
  constexpr int64_t bytes = int64_t{1} << 28;
  const auto from = at::ones({bytes}, at::kByte);
  auto to = at::zeros({bytes}, at::kByte);
  const auto* source = static_cast<const char*>(from.const_data_ptr());
  auto* target = static_cast<char*>(to.mutable_data_ptr());
  const int64_t share = bytes / std::max(1, at::get_num_threads());  // one piece a thread
  const auto copy = [&] {
    parallel_for(bytes, share, [&](int64_t begin, int64_t end) {
      std::memcpy(target + begin, source + begin, static_cast<size_t>(end - begin));
    });
  };
  const auto timing = time_in_turns({copy}, {.warm_up = 1, .samples = 9, .minimum_s = 0.5});
  return 2.0 * bytes / timing[0].best_s;
}

double product_rate(at::Device device, at::ScalarType dtype, int64_t size) {
  const auto options = at::TensorOptions(at::kFloat).device(device);
  const auto a = at::rand({size, size}, options).to(dtype), b = at::rand({size, size}, options).to(dtype);
  auto c = at::empty({size, size}, a.options());
  const auto timing = time_in_turns({[&] { at::mm_out(c, a, b); }},
                                    {.warm_up = 1, .samples = 7, .minimum_s = 0.5, .wait = waiter(device)});
  return 2.0 * static_cast<double>(size * size * size) / timing[0].best_s;
}

std::string load_average() {
  std::ifstream file("/proc/loadavg");
  std::string one, five, fifteen;
  return file >> one >> five >> fifteen ? one + " " + five + " " + fifteen : "";
}

std::string machine_name(at::Device device) {
  const auto kind = device.is_cpu() ? std::string("cpu") : device.str();
  for (const auto& found : devices())
    if (found.kind == kind)
      return fmt::format("{}, {}; {}", found.name, bytes_text(found.memory_bytes), found.details);
  return kind;
}

}  // namespace

double floor_s(const Work& work, const Rates& rates) {
  require(rates.copy > 0 && rates.flops > 0,
          "machine: rates are {} bytes/s and {} flops/s; both must be above 0", rates.copy, rates.flops);
  return std::max(work.bytes / rates.copy, work.flops / rates.flops);
}

Machine look_at_machine(at::Device device, at::ScalarType dtype) {
  const int64_t size = device.is_cpu() ? (dtype == at::kDouble ? 1024 : 2048) : 8192;
  return {.name = machine_name(device),
          .load = load_average(),
          .product = fmt::format("{} {}", dtype_name(dtype), size),
          .rates = {.copy = device.is_cpu() ? cpu_copy_rate()
                                            : cuda_copy_bandwidth(std::max<int>(0, device.index())),
                    .flops = product_rate(device, dtype, size)}};
}

std::string openmp_settings() {
  std::string text;
  for (char** setting = environ; *setting; ++setting)
    for (const char* prefix : {"OMP_", "GOMP_", "KMP_", "MKL_"})
      if (std::string_view(*setting).starts_with(prefix))
        text += (text.empty() ? "" : " ") + std::string(*setting);
  return text.empty() ? "defaults" : text;
}

std::function<void()> waiter(at::Device device) {
  if (device.is_cpu()) return {};
  return [device] {
    const c10::impl::VirtualGuardImpl guard(device.type());
    guard.synchronizeDevice(std::max<c10::DeviceIndex>(0, device.index()));
  };
}

Sampler device_sampler(std::function<void()> function, at::Device device) {
  if (device.is_cpu()) return sampler_of(std::move(function));
  // What one call takes to be queued, found at the first one; queues hold about a thousand launches.
  const auto queueing_s = std::make_shared<double>(0);
  return [=](int64_t calls) {
    constexpr double kLongestDelay = 0.02;
    const c10::impl::VirtualGuardImpl guard(device.type());
    const auto stream = guard.getStream(device);
    c10::Event start(device.type(), c10::EventFlag::BACKEND_DEFAULT),
        stop(device.type(), c10::EventFlag::BACKEND_DEFAULT);
    cuda_keep_busy(std::min(1.5 * *queueing_s * static_cast<double>(calls) + 1e-5, kLongestDelay),
                   device.index(), guard.getStreamNativeHandle(stream));
    start.record(stream);
    const double queued = sampler_of(function)(calls);
    stop.record(stream);
    stop.synchronize();
    *queueing_s = queued / static_cast<double>(calls);
    return 1e-3 * start.elapsedTime(stop);
  };
}

std::string dtype_name(at::ScalarType dtype) {
  switch (dtype) {
    case at::kFloat:
      return "fp32";
    case at::kBFloat16:
      return "bf16";
    case at::kHalf:
      return "fp16";
    case at::kDouble:
      return "fp64";
    default:
      return c10::toString(dtype);
  }
}

}  // namespace weft::bench
