#include "core/last_words.h"

#include <fmt/format.h>
#include <sys/socket.h>

#include <cstdio>
#include <cstdlib>
#include <sstream>

namespace exfusion {

void say_last_words(const std::string& program, const std::string& text) {
  const char* const socket = std::getenv("EXFUSION_LAST_WORDS");
  const char* const rank = std::getenv("RANK");
  if (socket && *socket && rank && !text.empty()) {
    const std::string words = fmt::format("{} {}", rank, text);
    if (send(std::atoi(socket), words.data(), words.size(), MSG_NOSIGNAL) >= 0) return;
  }
  print_last_words(program, text);
}

void print_last_words(const std::string& program, const std::string& text) {
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) fmt::print(stderr, "{}: {}\n", program, line);
  std::fflush(stderr);
}

}  // namespace exfusion
