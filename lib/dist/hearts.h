// The hearts of a run's ranks, as one of them sees them over the store: its own, which it makes beat, and how
// long ago each of the others did.
#pragma once
#include <chrono>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "dist/heartbeat.h"
#include "dist/store.h"

namespace exfusion {

struct Peer {
  std::optional<Heartbeat> heart;  // the newest seen
  // Since its last beat by this rank's clock, as far as this rank was awake: a machine that stands still for
  // a while loses nobody.
  std::chrono::steady_clock::duration age{};
  std::chrono::steady_clock::time_point looked = std::chrono::steady_clock::now();
  int fresh = 0;  // new beats since alarm()

  bool in(RankState state) const { return heart && heart->state == state; }
  bool gone() const { return in(RankState::leaving) || in(RankState::finished); }
};

// For one thread. All functions but the const ones throw DistributedError when the store does not answer.
class Hearts {
 public:
  // `longest_nap`: of what passes between two looks no more counts as age.
  Hearts(Store store, int rank, int world, std::chrono::milliseconds longest_nap);
  void beat(const Activity& activity, RankState state);
  const Peer& look_at(int other);
  void look_at_all();
  // At the next rank that has not finished, and at `store_host` (-1: none): everybody is watched by one
  // other, and the effort does not grow with the square of the ranks.
  void look_at_next(int store_host);
  // Something is wrong: counts fresh beats from here on, and misses hearts that have never beaten.
  void alarm();

  const Heartbeat& own() const { return own_; }
  const Peer& peer(int other) const { return peers_[static_cast<std::size_t>(other)]; }
  // The first rank that has neither finished nor left, and whose heart has not beaten for `limit`.
  std::optional<int> silent(std::chrono::milliseconds limit) const;
  // The running rank that has come to the fewest collectives, if it is behind this one.
  std::optional<int> behind() const;
  // All others have finished or left, but for `culprit` (-1: none) if it is silent.
  bool all_gone(int culprit) const;
  bool all_fresh(int beats) const;  // every other rank that runs has beaten so often since alarm()
  // "lost rank 2 (host n7, pid 123): FATE backward of step 118"
  std::string portrait(int rank, const std::string& fate) const;

 private:
  template <class Predicate>
  bool all_others(const Predicate& predicate) const;
  Store store_;
  int rank_, world_;
  std::chrono::milliseconds longest_nap_;
  Heartbeat own_;
  std::vector<Peer> peers_;
  bool alarmed_ = false;
};

}  // namespace exfusion
