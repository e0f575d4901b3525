// What the ranks of one machine say last, said once: exfusion-train --nproc.
#pragma once
#include <chrono>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace exfusion {

class RankWords {
 public:
  RankWords();  // throws Failure without a socket
  ~RankWords();
  RankWords(const RankWords&) = delete;
  RankWords& operator=(const RankWords&) = delete;

  int socket() const {
    return ours_and_theirs_[1];
  }  // for the ranks: EXFUSION_LAST_WORDS (core/last_words.h)
  // Takes what has arrived, and says it once it has waited 3 s for others who say the same, or all have
  // `ended`: "exfusion-train: ranks 0-2: why". What rank 0 alone has to say when all have ended, it says for
  // all.
  void collect(bool ended);

 private:
  void receive();
  int ours_and_theirs_[2] = {-1, -1};
  std::vector<std::pair<std::string, std::vector<int>>> waiting_;  // words, and who has said them
  std::chrono::steady_clock::time_point since_;                    // of the oldest of them
  bool silent_ = true;                                             // nothing has been said yet
};

}  // namespace exfusion
