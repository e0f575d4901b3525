#include "dist/store.h"

#include <c10/util/Exception.h>
#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <thread>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <utility>

#include "core/duration.h"
#include "core/error.h"
#include "dist/bounded.h"

namespace exfusion {
namespace {

using Native = c10::intrusive_ptr<c10d::Store>;

constexpr std::chrono::milliseconds kLongestPause(64);  // between two questions of wait()

}  // namespace

// What the copies of a store, and those within a prefix, share besides `store`.
struct Wire {
  std::mutex mutex;  // c10d's clients are not all safe to use from two threads
  std::atomic<bool> broken = false;
};

struct Store::State {
  Native store;
  std::chrono::milliseconds patience;
  std::shared_ptr<Wire> wire = std::make_shared<Wire>();

  template <class Body>
  auto call(const char* what, const std::string& key, Body body) const {
    const auto failed = [&](const std::string& why) {
      return DistributedError(fmt::format("store: {} '{}': {}", what, key, why));
    };
    const auto silent = [&] {
      return failed(fmt::format("the store's host has not answered for {}", duration_text(patience)));
    };
    if (wire->broken) throw silent();
    try {
      auto answer = exfusion::within(patience, [held = store, link = wire, body] {
        const std::lock_guard<std::mutex> lock(link->mutex);
        return body(*held);
      });
      if (answer) return *std::move(answer);
    } catch (const c10::Error& error) {
      throw failed(error.what_without_backtrace());
    } catch (const std::exception& error) {
      throw failed(error.what());
    }
    wire->broken = true;
    throw silent();
  }
};

Store::Store(c10d::Store* store, std::chrono::milliseconds patience)
    : state_(std::make_shared<State>(State{Native::reclaim(store), patience})) {}

void Store::set(const std::string& key, const std::string& value) const {
  state_->call("set", key, [key, value](c10d::Store& store) {
    store.set(key, value);
    return true;
  });
}

std::optional<std::string> Store::get(const std::string& key) const {
  return state_->call("get", key, [key](c10d::Store& store) -> std::optional<std::string> {
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
      throw DistributedError(fmt::format("store: nobody has set '{}' for {}", key, duration_text(timeout)));
    std::this_thread::sleep_for(pause);
  }
}

std::int64_t Store::add(const std::string& key, std::int64_t number) const {
  return state_->call("add", key, [key, number](c10d::Store& store) { return store.add(key, number); });
}

bool Store::compare_set(const std::string& key, const std::string& expected,
                        const std::string& desired) const {
  return state_->call("compare_set", key, [key, expected, desired](c10d::Store& store) {
    return store.compareSet(key, expected, desired) == desired;
  });
}

Store Store::clone() const {
  Native copy = state_->call("clone", "", [](c10d::Store& store) { return store.clone(); });
  return Store(copy.release(), state_->patience);
}

Store Store::within(const std::string& prefix) const {
  auto store = c10::make_intrusive<c10d::PrefixStore>(prefix, state_->store);
  return Store(std::make_shared<State>(State{std::move(store), state_->patience, state_->wire}));
}

c10d::Store& Store::native() const {
  return *state_->store;
}

}  // namespace exfusion
