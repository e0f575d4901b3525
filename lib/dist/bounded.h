// Calls into c10d that may never return: a client waits without end for a host that is stopped.
#pragma once
#include <chrono>
#include <future>
#include <optional>
#include <thread>
#include <utility>

namespace exfusion {

// What `body` returns, or nullopt if it has not for `bound`: it then goes on in a thread of its own, so it
// must own all that it uses. Throws what `body` throws.
template <class Body>
auto within(std::chrono::milliseconds bound, Body body) -> std::optional<decltype(body())> {
  std::packaged_task<decltype(body())()> task(std::move(body));
  auto result = task.get_future();
  std::thread(std::move(task)).detach();
  if (result.wait_for(bound) != std::future_status::ready) return std::nullopt;
  return result.get();
}

}  // namespace exfusion
