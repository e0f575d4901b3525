#include "dist/hearts.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>

#include "dist/agreement.h"

namespace exfusion {
namespace {

using Clock = std::chrono::steady_clock;

std::string key(int rank) {
  return fmt::format("heart/{}", rank);
}

}  // namespace

Hearts::Hearts(Store store, int rank, int world, std::chrono::milliseconds longest_nap)
    : store_(std::move(store)),
      rank_(rank),
      world_(world),
      longest_nap_(longest_nap),
      peers_(static_cast<std::size_t>(world)) {
  own_.host = host_name();
  own_.pid = getpid();
}

void Hearts::beat(const Activity& activity, RankState state) {
  activity.write(own_);
  own_.state = state;
  ++own_.beat;
  store_.set(key(rank_), own_.text());
}

const Peer& Hearts::look_at(int other) {
  Peer& peer = peers_[static_cast<std::size_t>(other)];
  const std::optional<std::string> text = store_.get(key(other));
  const Clock::time_point now = Clock::now();
  std::optional<Heartbeat> heart;
  if (text) heart = Heartbeat::parse(*text);
  if (heart && (!peer.heart || heart->beat != peer.heart->beat)) {
    peer.heart = std::move(heart);
    peer.age = {};
    ++peer.fresh;
  } else if (peer.heart || alarmed_) {
    peer.age += std::min<Clock::duration>(now - peer.looked, longest_nap_);
  }
  peer.looked = now;
  return peer;
}

void Hearts::look_at_all() {
  for (int other = 0; other < world_; ++other)
    if (other != rank_) look_at(other);
}

void Hearts::look_at_next(int store_host) {
  int next = rank_;
  do next = (next + 1) % world_;
  while (next != rank_ && look_at(next).gone());
  if (store_host >= 0 && store_host != rank_ && store_host != next) look_at(store_host);
}

void Hearts::alarm() {
  alarmed_ = true;
  for (Peer& peer : peers_) peer.fresh = 0;
}

std::optional<int> Hearts::silent(std::chrono::milliseconds limit) const {
  for (int other = 0; other < world_; ++other)
    if (other != rank_ && !peer(other).gone() && peer(other).age >= limit) return other;
  return std::nullopt;
}

std::optional<int> Hearts::behind() const {
  const auto progress = [](const Heartbeat& heart) { return std::pair(heart.collective, heart.waiting); };
  std::optional<int> last;
  std::pair least = progress(own_);
  for (int other = 0; other < world_; ++other) {
    if (other == rank_ || !peer(other).in(RankState::running) || progress(*peer(other).heart) >= least)
      continue;
    last = other;
    least = progress(*peer(other).heart);
  }
  return last;
}

template <class Predicate>
bool Hearts::all_others(const Predicate& predicate) const {
  for (int other = 0; other < world_; ++other)
    if (other != rank_ && !predicate(other)) return false;
  return true;
}

bool Hearts::all_gone(int culprit) const {
  return all_others([&](int other) {
    return peer(other).gone() || (other == culprit && peer(other).age >= 2 * longest_nap_);
  });
}

bool Hearts::all_fresh(int beats) const {
  return all_others(
      [&](int other) { return !peer(other).in(RankState::running) || peer(other).fresh >= beats; });
}

std::string Hearts::portrait(int rank, const std::string& fate) const {
  if (rank != rank_ && !peer(rank).heart) return fmt::format("lost rank {}, which was never seen", rank);
  const Heartbeat& heart = rank == rank_ ? own_ : *peer(rank).heart;
  return fmt::format("lost rank {} (host {}, pid {}): {} {} of step {}", rank, heart.host, heart.pid, fate,
                     heart.phase, heart.step);
}

}  // namespace exfusion
