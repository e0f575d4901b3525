#include "optim/large_pages.h"

#include <ATen/ATen.h>
#include <sys/mman.h>

#include <cstdlib>
#include <new>

namespace exfusion {
namespace {

constexpr std::size_t kPage = std::size_t{2} << 20;  // of x86-64 and, by default, arm64

}  // namespace

at::Tensor zeros_in_large_pages(at::IntArrayRef shape, c10::Device device) {
  const auto bytes = static_cast<std::size_t>(c10::multiply_integers(shape)) * sizeof(float);
  if (bytes < kPage || !device.is_cpu()) return at::zeros(shape, at::TensorOptions(device));
  void* memory = std::aligned_alloc(kPage, (bytes + kPage - 1) / kPage * kPage);
  if (!memory) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  // Only the pages that are filled: the rest of the last one would be memory for nothing. A refusal is none
  // of ours.
  static_cast<void>(madvise(memory, bytes / kPage * kPage, MADV_HUGEPAGE));
#endif
  return at::from_blob(
             memory, shape, [](void* pointer) { std::free(pointer); }, at::kFloat)
      .zero_();
}

}  // namespace exfusion
