// How the threads of a CUDA grid share flat arrays. Plain functions of (thread, number of threads), so that a
// test can play every thread of a grid on the CPU.
#pragma once
#include <algorithm>
#include <cstdint>

#include "core/host_device.h"

namespace exfusion {

inline constexpr int kVectorWidth = 4;     // fp32 elements in one load or store of 16 bytes
inline constexpr int kBlockThreads = 256;  // threads of a block
inline constexpr std::int64_t kMaxBlocks =
    4096;  // of a grid; with more work than that its threads go round again

// `width` neighbours in memory that one instruction moves.
template <class T, int width>
struct alignas(sizeof(T) * width) Pack {
  T at[width];
};

// `from` and `to` are aligned to the pack.
template <int width, class T>
EXFUSION_HOST_DEVICE inline Pack<T, width> load(const T* from) {
  return *reinterpret_cast<const Pack<T, width>*>(from);
}
template <int width, class T>
EXFUSION_HOST_DEVICE inline void store(T* to, const Pack<T, width>& pack) {
  *reinterpret_cast<Pack<T, width>*>(to) = pack;
}

// Whether packs of kVectorWidth fp32 elements may start here. An expert's slice of an odd size may not allow
// it.
inline bool fits_vectors(const void* pointer) {
  return reinterpret_cast<std::uintptr_t>(pointer) % (sizeof(float) * kVectorWidth) == 0;
}

// Blocks for `items` pieces of work, one a thread: 1 .. kMaxBlocks.
inline std::int64_t grid_blocks(std::int64_t items) {
  return std::clamp<std::int64_t>((items + kBlockThreads - 1) / kBlockThreads, 1, kMaxBlocks);
}

// Blocks for a walk over n elements in packs of `width`.
inline std::int64_t walk_blocks(std::int64_t n, int width) {
  return grid_blocks(n / width);
}

// What one of `threads` threads does of n elements: body.at<width>(i) for the elements i .. i+width-1 of
// whole packs, then body.at<1>(i) for the tail. All threads together visit every element once.
template <int width, class Body>
EXFUSION_HOST_DEVICE inline void walk(std::int64_t n, std::int64_t thread, std::int64_t threads,
                                      const Body& body) {
  const std::int64_t packs = n / width;
  for (std::int64_t i = thread; i < packs; i += threads) body.template at<width>(i * width);
  for (std::int64_t i = packs * width + thread; i < n; i += threads) body.template at<1>(i);
}

}  // namespace exfusion
