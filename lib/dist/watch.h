// Who is to blame when a run of several ranks stops: every rank beats like a heart over the store, and one
// whose heart stops, that fails or that hangs is named by all others, which then end.
#pragma once
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "dist/process_group.h"

namespace exfusion {

class Store;

struct WatchOptions {
  using Span = std::chrono::milliseconds;
  Span beat{500};        // between two heartbeats, and two looks at those of others
  Span silence{8000};    // without a beat: lost
  Span suspicion{5000};  // the same once a collective has failed
  Span patience{6000};   // for an answer of the store
  Span grace{3000};      // for the training thread to end the process once the lost rank is known
  Span slow_every{30000};
  // Ends the process when the training thread does not: it is stuck in a collective that has lost its peer.
  // {}: prints "program: words" on stderr and leaves with exit code 1.
  std::function<void(const std::string& words)> end;
};

// Of one rank, for as long as the group lives; the group's observer. A thread of its own beats, looks at the
// next rank and at the store's host, and reads the verdict: the store's key under which the first rank that
// finds out says who was lost, so that all name the same one. The words are
//   lost rank 2 (host n7, pid 123): last seen in backward of step 118, 8.2 s ago: all_reduce: Connection
//   reset
// A rank that hangs is named after dist.timeout: the one that waits for fewer collectives than the others.
// Within `grace` of the verdict the process ends, wherever its training thread is.
class Watch final : public CollectiveObserver {
 public:
  // All ranks make theirs as soon as the group is connected; returns once `store_host` has. That is the rank
  // which serves the store, -1 if none of them does (torchrun's agent). Throws DistributedError when the
  // store does not answer.
  Watch(const Store& store, int rank, int world, int store_host, WatchOptions options = {});
  ~Watch() override;  // without finish() or a verdict before: failed()
  Watch(const Watch&) = delete;
  Watch& operator=(const Watch&) = delete;

  void at(const std::string& phase, std::int64_t step);  // the training thread begins a phase
  void waiting(const char* collective) override;
  void done() override;
  // Waits for the verdict, at most about 15 s, and returns its words. Without a culprit they are the error.
  std::string explain(const std::string& error) override;

  // This rank ends by an error of its own, which the others will name. Nothing after a verdict: errors of
  // collectives may be passed too. Returns when the others know, or do not answer.
  void failed(const std::string& reason);
  // This rank has done its work: its heart may stop. The store's host stays until all have. Throws
  // DistributedError with a verdict that arrives meanwhile.
  void finish();

 private:
  struct State;
  std::shared_ptr<State> state_;  // shared with the thread, which may outlive the watch to end the process
};

}  // namespace exfusion
