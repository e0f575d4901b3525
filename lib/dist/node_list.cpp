#include "dist/node_list.h"

#include <fmt/format.h>

#include <cstddef>
#include <regex>
#include <string_view>

#include "core/error.h"

namespace exfusion {
namespace {

constexpr std::size_t kMostHosts = 65536;
constexpr std::size_t kLongestList = std::size_t{1} << 20;

[[noreturn]] void malformed(const std::string& name, const std::string& list, const std::string& why) {
  throw UsageError(fmt::format("{} is '{}': {}; a list such as n[01-03,07],login was expected", name,
                               list.substr(0, 100), why));
}

// Cuts at commas outside of brackets.
std::vector<std::string> items(const std::string& name, const std::string& list) {
  std::vector<std::string> found(1);
  bool inside = false;
  for (const char c : list) {
    if (c == '[' || c == ']') {
      if (inside == (c == '[')) malformed(name, list, "its brackets do not match");
      inside = c == '[';
    }
    if (c == ',' && !inside)
      found.emplace_back();
    else
      found.back() += c;
  }
  if (inside) malformed(name, list, "a bracket is not closed");
  return found;
}

// "01-03,07": 01 02 03 07; numbers keep the width of the range's first.
std::vector<std::string> range_numbers(const std::string& name, const std::string& list,
                                       const std::string& ranges) {
  static const std::regex kRange("([0-9]{1,9})(?:-([0-9]{1,9}))?");
  std::vector<std::string> found;
  for (const std::string& range : items(name, ranges)) {
    std::smatch match;
    if (!std::regex_match(range, match, kRange))
      malformed(name, list, fmt::format("'{}' is no number or range", range));
    const std::size_t first = std::stoul(match[1]), last = match[2].matched ? std::stoul(match[2]) : first;
    if (last < first) malformed(name, list, fmt::format("the range {} runs backwards", range));
    if (last - first >= kMostHosts || found.size() + (last - first) >= kMostHosts)
      malformed(name, list, fmt::format("it has over {} hosts", kMostHosts));
    for (std::size_t n = first; n <= last; ++n)
      found.push_back(fmt::format("{:0{}}", n, static_cast<std::size_t>(match[1].length())));
  }
  return found;
}

// The hosts of "rack[1-2]n[1-4]".
std::vector<std::string> expand(const std::string& name, const std::string& list, const std::string& item) {
  std::vector<std::string> hosts = {""};
  for (std::size_t at = 0; at < item.size();) {
    std::vector<std::string> parts;
    if (item[at] == '[') {
      const std::size_t end = item.find(']', at);  // items() has matched them
      parts = range_numbers(name, list, item.substr(at + 1, end - at - 1));
      at = end + 1;
    } else {
      const std::size_t end = std::min(item.find('[', at), item.size());
      parts = {item.substr(at, end - at)};
      at = end;
    }
    if (hosts.size() * parts.size() > kMostHosts)
      malformed(name, list, fmt::format("it has over {} hosts", kMostHosts));
    std::vector<std::string> longer;
    for (const std::string& host : hosts)
      for (const std::string& part : parts) longer.push_back(host + part);
    hosts = std::move(longer);
  }
  return hosts;
}

}  // namespace

std::vector<std::string> parse_node_list(const std::string& name, const std::string& list) {
  constexpr std::string_view kAllowed =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_[],";
  if (list.size() > kLongestList) malformed(name, list, fmt::format("it has {} characters", list.size()));
  if (list.find_first_not_of(kAllowed) != std::string::npos)
    malformed(name, list, "it has characters that no host name has");
  std::vector<std::string> hosts;
  for (const std::string& item : items(name, list)) {
    if (item.empty() || item[0] == '[') malformed(name, list, "a host has no name");
    const std::vector<std::string> more = expand(name, list, item);
    if (hosts.size() + more.size() > kMostHosts)
      malformed(name, list, fmt::format("it has over {} hosts", kMostHosts));
    hosts.insert(hosts.end(), more.begin(), more.end());
  }
  return hosts;
}

int tasks_of_node(const std::string& name, const std::string& list, int node) {
  static const std::regex kItem("([0-9]{1,6})(?:\\(x([0-9]{1,6})\\))?");
  const auto wrong = [&](const std::string& why) {
    return UsageError(fmt::format("{} is '{}': {}; numbers of tasks such as 2(x3),1 were expected", name,
                                  list.substr(0, 100), why));
  };
  if (list.size() > kLongestList) throw wrong(fmt::format("it has {} characters", list.size()));
  int nodes = 0;
  for (const std::string& item : items(name, list)) {
    std::smatch match;
    if (!std::regex_match(item, match, kItem)) throw wrong(fmt::format("'{}' is none", item));
    nodes += match[2].matched ? std::stoi(match[2]) : 1;
    if (node < nodes) return std::stoi(match[1]);
  }
  throw wrong(fmt::format("it has {} nodes, and this one is number {}", nodes, node));
}

}  // namespace exfusion
