#include "dist/agreement.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <exception>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>
#include <thread>

#include "core/duration.h"
#include "core/error.h"

namespace exfusion {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kLongestPause(50);  // between two questions
constexpr std::chrono::seconds kGrace(5);               // rank 0 speaks first where all wait for as long
constexpr std::chrono::seconds kLastWords(10);
constexpr const char* kRefused = "refused";

// The value of a key; nullopt at `until`, and when a rank refuses: `refusal` then says who and why.
std::optional<std::string> awaited(const Store& store, const std::string& key, Clock::time_point until,
                                   std::string& refusal) {
  for (std::chrono::milliseconds pause(1);; pause = std::min(2 * pause, kLongestPause)) {
    if (auto value = store.get(key)) return value;
    if (const auto reason = store.get(kRefused)) refusal = *reason;
    if (!refusal.empty() || Clock::now() >= until) return std::nullopt;
    std::this_thread::sleep_for(pause);
  }
}

std::string key_of(const std::string& topic, int rank) {
  return fmt::format("{}/{}", topic, rank);
}

// Stays, for `bound` at most, until `count` ranks have added to `key`: the store may end with this process.
void linger(const Store& store, const std::string& key, std::int64_t count, std::chrono::seconds bound) {
  const auto until = Clock::now() + bound;
  while (store.add(key, 0) < count && Clock::now() < until) std::this_thread::sleep_for(kLongestPause);
}

std::int64_t present(const Store& store, const Launch& launch, const std::string& topic) {
  std::int64_t count = 0;
  for (int rank = 0; rank < launch.world; ++rank) count += store.get(key_of(topic, rank)) ? 1 : 0;
  return count;
}

std::vector<std::string> all_texts(const Store& store, const Launch& launch, const std::string& topic,
                                   std::chrono::milliseconds timeout) {
  const auto until = Clock::now() + timeout;
  std::vector<std::string> texts;
  std::vector<int> missing;
  for (int rank = 0; rank < launch.world; ++rank) {
    std::string refusal;
    auto text = awaited(store, key_of(topic, rank), until, refusal);
    if (!refusal.empty()) throw DistributedError(refusal);
    if (!text) missing.push_back(rank);
    texts.push_back(text.value_or(""));
  }
  if (!missing.empty())
    throw DistributedError(fmt::format(
        "{}: {} of {} ranks did not come within {}: rank {} (rank 0 waited on host {})", topic,
        missing.size(), launch.world, duration_text(timeout), fmt::join(missing, ", rank "), host_name()));
  return texts;
}

// Rank 0's part: the answer, or why there is none, for all to read.
std::string decide(const Store& store, const Launch& launch, const std::string& topic,
                   std::chrono::milliseconds timeout,
                   const std::function<std::string(const std::vector<std::string>&)>& answer) {
  std::string error;
  try {
    const std::string result = answer(all_texts(store, launch, topic, timeout));
    store.set(topic, "+" + result);
    return result;
  } catch (const std::exception& thrown) {
    error = thrown.what();
  }
  store.set(topic, "-" + error);
  linger(store, topic + "/read", present(store, launch, topic) - 1, std::chrono::seconds(2));
  throw DistributedError(error);
}

using Fields = std::map<std::string, std::string>;

// Of texts of several lines, the first in which they differ.
std::string difference(const std::string& own, const std::string& first) {
  std::istringstream own_lines(own), first_lines(first);
  std::string here, there;
  do {
    here = there = "";
    std::getline(own_lines, here);
    std::getline(first_lines, there);
  } while (here == there && (own_lines || first_lines));
  here.erase(0, here.find_first_not_of(' '));
  there.erase(0, there.find_first_not_of(' '));
  return fmt::format("it has {}, rank 0 has {}", here, there);
}

std::vector<std::string> differences(const Fields& fields, const Fields& first) {
  Fields names = first;
  names.insert(fields.begin(), fields.end());
  const auto value = [](const Fields& own, const std::string& name) {
    const auto found = own.find(name);
    return found == own.end() ? "nothing" : found->second;
  };
  std::vector<std::string> result;
  for (const auto& [name, unused] : names) {
    if (value(fields, name) != value(first, name))
      result.push_back(fmt::format("in {}: {}", name, difference(value(fields, name), value(first, name))));
  }
  return result;
}

// Throws what names the first rank that differs, and all in which it does.
std::string compared(const std::vector<std::string>& texts) {
  const Fields first = nlohmann::json::parse(texts[0]).at("fields").get<Fields>();
  for (std::size_t rank = 1; rank < texts.size(); ++rank) {
    const nlohmann::json record = nlohmann::json::parse(texts[rank]);
    const auto found = differences(record.at("fields").get<Fields>(), first);
    if (!found.empty())
      throw DistributedError(fmt::format("rank {} on host {} differs {}", rank,
                                         record.at("host").get<std::string>(), fmt::join(found, "; ")));
  }
  return "";
}

}  // namespace

std::string meet(const Store& store, const Launch& launch, const std::string& topic, const std::string& text,
                 std::chrono::milliseconds timeout,
                 const std::function<std::string(const std::vector<std::string>&)>& answer) {
  std::string refusal;
  std::optional<std::string> verdict;
  bool rank_0_came = false;
  try {
    store.set(key_of(topic, launch.rank), text);
    if (launch.rank != 0) verdict = awaited(store, topic, Clock::now() + timeout + kGrace, refusal);
    rank_0_came = store.get(key_of(topic, 0)).has_value();
  } catch (const DistributedError& error) {
    throw DistributedError(fmt::format("{}: {}; {}", topic, no_answer_from_store(launch), error.what()));
  }
  if (launch.rank == 0) return decide(store, launch, topic, timeout, answer);
  if (!refusal.empty()) throw DistributedError(refusal);
  if (!verdict)
    throw DistributedError(fmt::format("{}: rank 0 {} within {}", topic,
                                       rank_0_came ? "did not answer" : "did not come",
                                       duration_text(timeout + kGrace)));
  if (verdict->starts_with('+')) return verdict->substr(1);
  store.add(topic + "/read", 1);
  throw DistributedError(verdict->substr(1));
}

void check_agreement(const Store& store, const Launch& launch, std::map<std::string, std::string> fields,
                     std::chrono::milliseconds timeout) {
  fields["byte order"] = std::endian::native == std::endian::little ? "little-endian" : "big-endian";
  meet(store, launch, "agreement", nlohmann::json({{"host", host_name()}, {"fields", fields}}).dump(),
       timeout, compared);
}

void refuse(const Store& store, const Launch& launch, const std::string& reason) noexcept {
  try {
    store.compare_set(kRefused, "",
                      fmt::format("rank {} on host {} refused: {}", launch.rank, host_name(), reason));
    if (launch.rank == 0)
      std::this_thread::sleep_for(std::chrono::seconds(1));  // until the others have read it
  } catch (const std::exception&) {
  }
}

void leave(const Store& store, const Launch& launch) noexcept {
  try {
    store.add("left", 1);
    if (launch.rank == 0) linger(store, "left", launch.world, kLastWords);
  } catch (const std::exception&) {
  }
}

std::string no_answer_from_store(const Launch& launch) {
  return fmt::format("no answer from {} at {}, which serves the store",
                     launch.agent_store ? "torchrun's agent" : "rank 0", launch.master_addr);
}

std::string host_name() {
  char name[256] = "";
  gethostname(name, sizeof name - 1);
  return name;
}

}  // namespace exfusion
