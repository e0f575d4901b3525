// Plays every thread of the grid that a launch would start, one after another: index arithmetic and kernel
// bodies are the ones that CUDA compiles.
#pragma once
#include <cstdint>

#include "core/grid_walk.h"

namespace exfusion {

template <int width, class Body>
void play_grid(std::int64_t n, const Body& body) {
  const std::int64_t threads = walk_blocks(n, width) * kBlockThreads;
  for (std::int64_t thread = 0; thread < threads; ++thread) walk<width>(n, thread, threads, body);
}

template <class Body>
void play_walk(std::int64_t n, const Body& body) {
  if (body.fits())
    play_grid<kVectorWidth>(n, body);
  else
    play_grid<1>(n, body);
}

}  // namespace exfusion
