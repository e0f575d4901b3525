#include "dist/store.h"

#include <c10/util/Exception.h>
#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <future>
#include <mutex>
#include <thread>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <utility>

#include "core/error.h"

namespace exfusion {
namespace {

using Native = c10::intrusive_ptr<c10d::Store>;

constexpr std::chrono::milliseconds kLongestPause(64);  // between two questions of wait()

std::string text(std::chrono::milliseconds span) {
  return fmt::format("{:g} s", static_cast<double>(span.count()) / 1000.0);
}

}  // namespace

// What the copies of a store, and those within a prefix, share besides `store`.
struct Connection {
  std::mutex mutex;  // c10d's clients are not all safe to use from two threads
  std::atomic<bool> broken = false;
};

struct Store::State {
  Native store;
  std::chrono::milliseconds patience;
  std::shared_ptr<Connection> connection = std::make_shared<Connection>();

  // Runs `body(store)` in a thread of its own: a client of c10d waits without end for a host that is stopped.
  template <class Body>
  auto bounded(const char* what, const std::string& key, Body body) const {
    using Result = decltype(body(std::declval<c10d::Store&>()));
    const auto silent = [&] {
      return DistributedError(
          fmt::format("store: {} '{}': the store's host has not answered for {}", what, key, text(patience)));
    };
    if (connection->broken) throw silent();
    std::packaged_task<Result()> task([held = store, link = connection, call = std::move(body)] {
      const std::lock_guard<std::mutex> lock(link->mutex);
      return call(*held);
    });
    std::future<Result> result = task.get_future();
    std::thread(std::move(task)).detach();
    if (result.wait_for(patience) != std::future_status::ready) {
      connection->broken = true;
      throw silent();
    }
    try {
      return result.get();
    } catch (const c10::Error& error) {
      throw DistributedError(fmt::format("store: {} '{}': {}", what, key, error.what_without_backtrace()));
    } catch (const std::exception& error) {
      throw DistributedError(fmt::format("store: {} '{}': {}", what, key, error.what()));
    }
  }
};

Store::Store(c10d::Store* store, std::chrono::milliseconds patience)
    : state_(std::make_shared<State>(State{Native::reclaim(store), patience})) {}

void Store::set(const std::string& key, const std::string& value) const {
  state_->bounded("set", key, [key, value](c10d::Store& store) { store.set(key, value); });
}

std::optional<std::string> Store::get(const std::string& key) const {
  return state_->bounded("get", key, [key](c10d::Store& store) -> std::optional<std::string> {
    if (!store.check({key})) return std::nullopt;
    return store.get_to_str(key);
  });
}

// Asks again and again: the connection stays free for others, and a host that stops is noticed.
std::string Store::wait(const std::string& key, std::chrono::milliseconds timeout) const {
  const auto until = std::chrono::steady_clock::now() + timeout;
  for (std::chrono::milliseconds pause(1);; pause = std::min(2 * pause, kLongestPause)) {
    if (const std::optional<std::string> value = get(key)) return *value;
    if (std::chrono::steady_clock::now() >= until)
      throw DistributedError(fmt::format("store: nobody has set '{}' for {}", key, text(timeout)));
    std::this_thread::sleep_for(pause);
  }
}

std::int64_t Store::add(const std::string& key, std::int64_t number) const {
  return state_->bounded("add", key, [key, number](c10d::Store& store) { return store.add(key, number); });
}

bool Store::compare_set(const std::string& key, const std::string& expected,
                        const std::string& desired) const {
  return state_->bounded("compare_set", key, [key, expected, desired](c10d::Store& store) {
    return store.compareSet(key, expected, desired) == desired;
  });
}

Store Store::clone() const {
  Native copy = state_->bounded("clone", "", [](c10d::Store& store) { return store.clone(); });
  return Store(copy.release(), state_->patience);
}

Store Store::within(const std::string& prefix) const {
  auto store = c10::make_intrusive<c10d::PrefixStore>(prefix, state_->store);
  return Store(std::make_shared<State>(State{std::move(store), state_->patience, state_->connection}));
}

c10d::Store& Store::native() const {
  return *state_->store;
}

}  // namespace exfusion
