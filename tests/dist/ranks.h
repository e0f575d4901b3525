// Ranks as threads of this process, each with a Gloo group of its own over one store in memory.
#pragma once
#include <ATen/Parallel.h>

#include <chrono>
#include <exception>
#include <functional>
#include <thread>
#include <torch/csrc/distributed/c10d/HashStore.hpp>
#include <vector>

#include "dist/gloo.h"
#include "dist/process_group.h"

namespace exfusion {

// Runs `body` once per rank, side by side; rethrows the first rank's exception.
inline void with_ranks(int world, const std::function<void(const ProcessGroup&)>& body) {
  const auto store = c10::make_intrusive<c10d::HashStore>();
  std::vector<std::exception_ptr> errors(static_cast<std::size_t>(world));
  std::vector<std::thread> ranks;
  for (int rank = 0; rank < world; ++rank) {
    ranks.emplace_back([&, rank] {
      at::set_num_threads(1);
      try {
        const ProcessGroup group =
            world == 1
                ? ProcessGroup()
                : ProcessGroup(make_gloo(*store, rank, world, std::chrono::seconds(30), "", "127.0.0.1"));
        body(group);
      } catch (...) {
        errors[static_cast<std::size_t>(rank)] = std::current_exception();
      }
    });
  }
  for (std::thread& thread : ranks) thread.join();
  for (const std::exception_ptr& error : errors) {
    if (error) std::rethrow_exception(error);
  }
}

}  // namespace exfusion
