// What the ranks of a run say about themselves while they work, and what the training thread tells for it.
#pragma once
#include <chrono>
#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

namespace exfusion {

// failing: a collective has failed, and the rank asks who is to blame. leaving: it knows, and ends.
enum class RankState { running, failing, leaving, finished };

struct Heartbeat {
  std::string host;
  int pid = 0;
  std::string phase = "start";
  std::int64_t step = 0;        // under way
  std::int64_t beat = 0;        // grows with every heartbeat
  std::int64_t collective = 0;  // collectives of all ranks that it has waited for to the end
  bool waiting = false;         // for the next one
  RankState state = RankState::running;
  std::map<std::string, double> seconds;  // by phase, of a recent step, without waiting for collectives

  std::string text() const;
  static Heartbeat parse(const std::string& text);  // throws DistributedError unless it is one
};

// Where the training thread is, and how long the phases of a step take it. Safe from several threads.
class Activity {
 public:
  using Clock = std::chrono::steady_clock;
  void at(const std::string& phase, std::int64_t step, Clock::time_point now = Clock::now());
  void waiting(const std::string& collective, Clock::time_point now = Clock::now());
  void done(Clock::time_point now = Clock::now());
  void write(Heartbeat& heart) const;

 private:
  mutable std::mutex mutex_;
  std::string phase_ = "start";
  std::int64_t step_ = 0, collective_ = 0;
  bool waiting_ = false, between_two_ = false;
  Clock::time_point since_ = Clock::now(), waits_since_;  // since_: moved on by what was waited
  std::map<std::string, double> current_;                 // seconds of the phases of the step under way
  std::map<std::string, double> seconds_;                 // averages over recent steps
};

// "rank 3 is slow: its backward takes 2.4 x the median of the other ranks": the phase that holds the others
// up most, if it takes at least twice their median and 20 ms more.
std::optional<std::string> slow_rank(const std::vector<Heartbeat>& hearts);

}  // namespace exfusion
