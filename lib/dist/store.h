// Small texts that the ranks of a run leave for each other under keys: a c10d store behind strings.
#pragma once
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

namespace c10d {
class Store;
}  // namespace c10d

namespace exfusion {

// A copy shares the connection; calls from several threads are safe. No call hangs: when the store's host has
// not answered for `patience` it throws, and from then on every call over that connection does so at once.
// All throw DistributedError.
class Store {
 public:
  // Takes a c10d store (c10::intrusive_ptr released into a raw pointer); made by connect() and by tests.
  explicit Store(c10d::Store* store, std::chrono::milliseconds patience = std::chrono::seconds(10));

  void set(const std::string& key, const std::string& value) const;
  std::optional<std::string> get(const std::string& key) const;  // at once; nullopt if nobody has set it
  // The value, once somebody sets it; throws after `timeout` without it.
  std::string wait(const std::string& key, std::chrono::milliseconds timeout) const;
  // Adds to a number (0 if absent) and returns the sum. The key is then not for set().
  std::int64_t add(const std::string& key, std::int64_t number) const;
  // Makes it `desired` if it is `expected`, or if it is absent and `expected` is "". Returns whether it now
  // is `desired`.
  bool compare_set(const std::string& key, const std::string& expected, const std::string& desired) const;

  Store clone() const;                            // the same texts over a connection of its own
  Store within(const std::string& prefix) const;  // the same connection; keys are `prefix`/key of this one
  c10d::Store& native() const;                    // for the backends of c10d

 private:
  struct State;
  explicit Store(std::shared_ptr<State> state) : state_(std::move(state)) {}
  std::shared_ptr<State> state_;
};

}  // namespace exfusion
