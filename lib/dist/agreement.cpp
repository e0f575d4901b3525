#include "dist/agreement.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <exception>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>
#include <sstream>
#include <thread>
#include <utility>

#include "core/duration.h"
#include "core/error.h"
#include "dist/waiting_line.h"

namespace exfusion {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kLongestSilence(50);  // between two questions
constexpr std::chrono::seconds kVerdictGrace(5);          // rank 0 speaks first where all wait for as long
constexpr std::chrono::seconds kLastWords(10);
constexpr const char* kRefused = "refused";
constexpr const char* kPurpose = "purpose";

// The value of a key; nullopt at `until`, and when a rank refuses: `refusal` then says who and why.
std::optional<std::string> awaited(const Store& store, const std::string& key, Clock::time_point until,
                                   std::string& refusal) {
  for (std::chrono::milliseconds pause(1);; pause = std::min(2 * pause, kLongestSilence)) {
    if (auto value = store.get(key)) return value;
    if (const auto reason = store.get(kRefused)) refusal = *reason;
    if (!refusal.empty() || Clock::now() >= until) return std::nullopt;
    std::this_thread::sleep_for(pause);
  }
}

std::string key_of(const std::string& topic, int rank) {
  return fmt::format("{}/{}", topic, rank);
}

// The key that counts the ranks which have handed in their text.
std::string came(const std::string& topic) {
  return topic + "/came";
}

// Stays, for `bound` at most, until `count` ranks have added to `key`: the store may end with this process.
void linger(const Store& store, const std::string& key, std::int64_t count, std::chrono::seconds bound) {
  const auto until = Clock::now() + bound;
  while (store.add(key, 0) < count && Clock::now() < until) std::this_thread::sleep_for(kLongestSilence);
}

// The texts of all ranks, each shown to `arrived` as it comes.
std::vector<std::string> all_texts(const Store& store, const Launch& launch, const std::string& topic,
                                   std::chrono::milliseconds timeout, const Arrived& arrived) {
  WaitingLine line(timeout);
  std::vector<std::string> texts(static_cast<std::size_t>(launch.world));
  std::vector<int> missing(texts.size());
  std::iota(missing.begin(), missing.end(), 0);
  std::int64_t seen = 0;
  for (std::chrono::milliseconds pause(1);; pause = std::min(2 * pause, kLongestSilence)) {
    // Asked for one by one only when somebody has come: there may be a thousand of them.
    if (const std::int64_t count = store.add(came(topic), 0); count != std::exchange(seen, count)) {
      std::erase_if(missing, [&](int rank) {
        const auto text = store.get(key_of(topic, rank));
        if (!text) return false;
        if (arrived) arrived(rank, *text);
        texts[static_cast<std::size_t>(rank)] = *text;
        return true;
      });
    }
    if (missing.empty()) return texts;
    if (const auto refusal = store.get(kRefused)) throw DistributedError(*refusal);
    if (line.left().count() == 0)
      throw DistributedError(fmt::format(
          "{}: {} of {} ranks did not come within {}: {} (rank 0 waited on host {})", topic, missing.size(),
          launch.world, duration_text(timeout), rank_names(missing), host_name()));
    line.say_if_due([&] { return fmt::format("waiting for {} of {}", rank_names(missing), launch.world); });
    std::this_thread::sleep_for(pause);
  }
}

// Rank 0's part: the answer, or why there is none, for all to read.
std::string decide(const Store& store, const Launch& launch, const std::string& topic,
                   std::chrono::milliseconds timeout, const Answer& answer, const Arrived& arrived) {
  std::string error;
  try {
    const std::string result = answer(all_texts(store, launch, topic, timeout, arrived));
    store.set(topic, "+" + result);
    return result;
  } catch (const std::exception& thrown) {
    error = thrown.what();
  }
  store.set(topic, "-" + error);
  linger(store, topic + "/read", store.add(came(topic), 0) - 1, std::chrono::seconds(2));
  throw DistributedError(error);
}

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
  // Of ranks that were started for different things nothing else can be expected to be the same.
  const auto value = [](const Fields& own, const std::string& name) {
    const auto found = own.find(name);
    return found == own.end() ? "nothing" : found->second;
  };
  if (value(fields, kPurpose) != value(first, kPurpose)) names = {{kPurpose, ""}};
  std::vector<std::string> result;
  for (const auto& [name, unused] : names) {
    if (value(fields, name) != value(first, name))
      result.push_back(fmt::format("in {}: {}", name, difference(value(fields, name), value(first, name))));
  }
  return result;
}

std::string record_text(const Fields& fields) {
  return nlohmann::json({{"host", host_name()}, {"fields", fields}}).dump();
}

// Throws what names the rank and all in which it differs.
void compare(int rank, const std::string& text, const Fields& first) {
  const nlohmann::json record = nlohmann::json::parse(text);
  const auto found = differences(record.at("fields").get<Fields>(), first);
  if (!found.empty())
    throw DistributedError(fmt::format("rank {} on host {} differs {}", rank,
                                       record.at("host").get<std::string>(), fmt::join(found, "; ")));
}

std::string hosts_of(const std::vector<std::string>& texts) {
  std::vector<std::string> hosts;
  for (const std::string& text : texts)
    hosts.push_back(nlohmann::json::parse(text).at("host").get<std::string>());
  return nlohmann::json(hosts).dump();
}

}  // namespace

std::string meet(const Store& store, const Launch& launch, const std::string& topic, const std::string& text,
                 std::chrono::milliseconds timeout, const Answer& answer, const Arrived& arrived) {
  std::string refusal;
  std::optional<std::string> verdict;
  bool rank_0_came = false;
  try {
    store.set(key_of(topic, launch.rank), text);
    store.add(came(topic), 1);
    if (launch.rank != 0) verdict = awaited(store, topic, Clock::now() + timeout + kVerdictGrace, refusal);
    rank_0_came = store.get(key_of(topic, 0)).has_value();
  } catch (const DistributedError& error) {
    throw DistributedError(fmt::format("{}: {}; {}", topic, no_answer_from_store(launch), error.what()));
  }
  if (launch.rank == 0) return decide(store, launch, topic, timeout, answer, arrived);
  if (!verdict) store.add(topic + "/read", 1);
  if (!refusal.empty()) throw DistributedError(refusal);
  if (!verdict)
    throw DistributedError(fmt::format("{}: rank 0 {} within {}", topic,
                                       rank_0_came ? "did not answer" : "did not come",
                                       duration_text(timeout + kVerdictGrace)));
  if (verdict->starts_with('+')) return verdict->substr(1);
  store.add(topic + "/read", 1);
  throw DistributedError(verdict->substr(1));
}

std::vector<std::string> check_agreement(const Store& store, const Launch& launch, const std::string& topic,
                                         Fields fields, std::chrono::milliseconds timeout) {
  fields["byte order"] = std::endian::native == std::endian::little ? "little-endian" : "big-endian";
  fields["number of ranks"] = std::to_string(launch.world);
  const auto arrived = [&](int rank, const std::string& text) { compare(rank, text, fields); };
  const std::string answer = meet(store, launch, topic, record_text(fields), timeout, hosts_of, arrived);
  auto hosts = nlohmann::json::parse(answer).get<std::vector<std::string>>();
  if (hosts.size() != static_cast<std::size_t>(launch.world))
    throw DistributedError(
        fmt::format("rank {} is one of {} ranks, rank 0 one of {}: WORLD_SIZE must be the same", launch.rank,
                    launch.world, hosts.size()));
  return hosts;
}

void claim_rank(const Store& store, const Launch& launch) {
  const std::string key = fmt::format("claim/{}", launch.rank),
                    own = fmt::format("host {}, process {}", host_name(), getpid());
  if (store.compare_set(key, "", own)) return;
  throw UsageError(
      fmt::format("rank {} is there already ({}): it was started twice, or another run uses {}:{} "
                  "(MASTER_ADDR, MASTER_PORT) too",
                  launch.rank, store.get(key).value_or("?"), launch.master_addr, launch.master_port));
}

void refuse(const Store& store, const Launch& launch, const std::string& reason,
            std::chrono::seconds stay) noexcept {
  const auto more = std::count(reason.begin(), reason.end(), '\n');
  try {
    store.compare_set(kRefused, "",
                      fmt::format("rank {} on host {} could not start: {}{}", launch.rank, host_name(),
                                  reason.substr(0, reason.find('\n')),
                                  more > 0 ? fmt::format(" (and {} more)", more) : ""));
    const std::string read = std::string(kRefused) + "/read";  // or not to be read any more
    if (launch.rank != 0)
      store.add(read, 1);
    else
      linger(store, read, launch.world - 1, stay);
  } catch (const std::exception&) {
  }
}

void leave(const Store& store, const Launch& launch, int lost) noexcept {
  try {
    store.add("left", 1);
    if (launch.rank == 0) linger(store, "left", launch.world - lost, kLastWords);
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
