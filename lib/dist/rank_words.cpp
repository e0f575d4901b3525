#include "dist/rank_words.h"

#include <fmt/format.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "core/error.h"
#include "core/last_words.h"
#include "dist/launch.h"

namespace exfusion {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::seconds kForOthers(3);
constexpr std::size_t kLongest = std::size_t{1} << 18;  // more than a socket of this kind takes

}  // namespace

RankWords::RankWords() {
  if (socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, ours_and_theirs_) != 0)
    throw Failure(fmt::format("--nproc: no socket for the ranks' last words: {}", std::strerror(errno)));
}

RankWords::~RankWords() {
  for (const int end : ours_and_theirs_) close(end);
}

// Each message is "RANK words".
void RankWords::receive() {
  std::string message(kLongest, '\0');
  for (;;) {
    const ssize_t size = recv(ours_and_theirs_[0], message.data(), message.size(), MSG_DONTWAIT);
    if (size <= 0) return;
    const std::string text = message.substr(0, static_cast<std::size_t>(size));
    const int rank = std::atoi(text.c_str());
    const std::string words = text.substr(text.find(' ') + 1);
    if (waiting_.empty()) since_ = Clock::now();
    auto known = std::ranges::find(waiting_, words, [](const auto& one) { return one.first; });
    if (known == waiting_.end()) known = waiting_.insert(known, {words, {}});
    known->second.push_back(rank);
  }
}

void RankWords::collect(bool ended) {
  receive();
  if (waiting_.empty() || (!ended && Clock::now() - since_ < kForOthers)) return;
  const bool for_all = ended && silent_ && waiting_.size() == 1 && waiting_[0].second == std::vector<int>{0};
  for (auto& [words, ranks] : waiting_) {
    std::ranges::sort(ranks);
    print_last_words(for_all ? "exfusion-train" : "exfusion-train: " + rank_names(ranks), words);
  }
  waiting_.clear();
  silent_ = false;
}

}  // namespace exfusion
