#include "dist/store.h"

#include <gtest/gtest.h>

#include <chrono>
#include <string>
#include <thread>
#include <torch/csrc/distributed/c10d/HashStore.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include "core/error.h"

namespace exfusion {
namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

Store served_here() {
  c10d::TCPStoreOptions options;
  options.port = 0;  // any that is free
  options.isServer = true;
  options.waitWorkers = false;
  return Store(c10::make_intrusive<c10d::TCPStore>("127.0.0.1", options).release());
}

// A host that has stopped: it never answers.
class SilentStore : public c10d::HashStore {
 public:
  bool check(const std::vector<std::string>&) override {
    std::this_thread::sleep_for(1s);
    return false;
  }
};

TEST(Store, KeepsTexts) {
  const Store store = served_here(), other = store.clone();
  EXPECT_EQ(store.get("a"), std::nullopt);
  store.set("a", "one");
  store.set("empty", "");
  EXPECT_EQ(other.get("a"), "one");
  EXPECT_EQ(other.get("empty"), "");
  EXPECT_EQ(store.add("n", 3), 3);
  EXPECT_EQ(other.add("n", -1), 2);
}

TEST(Store, ComparesBeforeItSets) {
  const Store store = served_here();
  EXPECT_TRUE(store.compare_set("first", "", "rank 1"));
  EXPECT_FALSE(store.compare_set("first", "", "rank 2"));
  EXPECT_EQ(store.get("first"), "rank 1");
  EXPECT_TRUE(store.compare_set("first", "rank 1", "rank 3"));
}

TEST(Store, KeysWithinAPrefixAreTheirOwn) {
  const Store store = served_here(), inner = store.within("inner");
  inner.set("a", "x");
  EXPECT_EQ(store.get("a"), std::nullopt);
  EXPECT_EQ(inner.clone().get("a"), "x");
}

TEST(Store, WaitsForAnotherThreadAndNotForever) {
  const Store store = served_here();
  std::thread late([other = store.clone()] {
    std::this_thread::sleep_for(100ms);
    other.set("late", "here");
  });
  EXPECT_EQ(store.wait("late", 10s), "here");
  late.join();
  const auto start = Clock::now();
  EXPECT_THROW(store.wait("never", 100ms), DistributedError);
  EXPECT_GE(Clock::now() - start, 100ms);
  EXPECT_EQ(store.get("late"), "here");  // the connection is as good as before
}

// One who waits does not hold up the others of the same connection.
TEST(Store, AWaitLeavesTheConnectionFree) {
  const Store store = served_here();
  std::thread waiting([&] { EXPECT_EQ(store.wait("later", 10s), "x"); });
  std::this_thread::sleep_for(50ms);
  store.set("later", "x");
  waiting.join();
}

TEST(Store, AHostThatStopsIsNoticed) {
  const Store store(c10::make_intrusive<SilentStore>().release(), 100ms);
  const auto start = Clock::now();
  EXPECT_THROW(store.get("a"), DistributedError);
  EXPECT_LT(Clock::now() - start, 900ms);
  const auto again = Clock::now();
  EXPECT_THROW(store.set("a", "b"), DistributedError);  // no second wait
  EXPECT_LT(Clock::now() - again, 90ms);
}

}  // namespace
}  // namespace exfusion
