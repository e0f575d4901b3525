#include "optim/device.h"

#include <ATen/ATen.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <algorithm>

#include "optim/adamw_kernel.h"
#include "optim/cuda_kernels.h"
#include "optim/reduction.h"

namespace exfusion {
namespace {

// On a CUDA device; n >= 1.
void products_cuda(c10::Device device, const float* g, std::span<const float* const> w, std::int64_t n,
                   bool in_double, std::span<double> result) {
  const c10::DeviceGuard guard(device);
  const auto vectors = static_cast<std::int64_t>(w.size()),
             blocks = (n + kReductionBlock - 1) / kReductionBlock;
  const at::Tensor memory =
      at::empty({vectors * blocks + vectors}, at::TensorOptions(device).dtype(at::kDouble));
  auto* sums = memory.mutable_data_ptr<double>();
  inner_products_cuda(g, w, n, in_double, sums, sums + vectors * blocks, current_stream(device));
  const at::Tensor found = memory.narrow(0, vectors * blocks, vectors).cpu();
  std::copy_n(found.const_data_ptr<double>(), vectors, result.begin());
}

}  // namespace

// Through the interface that libtorch has for every kind of device: no CUDA header is needed.
void* current_stream(c10::Device device) {
  const c10::impl::DeviceGuardImplInterface* guard = c10::impl::getDeviceGuardImpl(device.type());
  return guard->getStreamNativeHandle(guard->getStream(device));
}

void adamw_update_on(c10::Device device, std::int64_t n, float* w, float* m, float* v, const float* g,
                     float scale, const AdamWScalars<float>& scalars, std::uint16_t* bf16) {
  if (!device.is_cuda()) return adamw_update(n, w, m, v, g, scale, scalars, bf16);
  const c10::DeviceGuard guard(device);
  adamw_update_cuda(n, w, m, v, g, scale, scalars, current_stream(device));
}

void inner_products_on(c10::Device device, const float* g, std::span<const float* const> w, std::int64_t n,
                       std::span<double> result) {
  if (!device.is_cuda() || n == 0) return inner_products(g, w, n, result);
  products_cuda(device, g, w, n, false, result);
}

double sum_of_squares_on(c10::Device device, const float* x, std::int64_t n) {
  if (!device.is_cuda() || n == 0) return sum_of_squares(x, n);
  double result = 0.0;
  products_cuda(device, x, std::span(&x, 1), n, true, std::span(&result, 1));
  return result;
}

}  // namespace exfusion
