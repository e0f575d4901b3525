#include "nn/layer_selection.h"

#include <algorithm>
#include <charconv>
#include <optional>
#include <string_view>

namespace exfusion {
namespace {

std::optional<std::int64_t> whole_number(std::string_view text) {
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const bool leading_zero = text.size() > 1 && text.front() == '0';
  if (leading_zero || error != std::errc() || end != text.data() + text.size() || value < 0)
    return std::nullopt;
  return value;
}

// The k of "last:k" for prefix "last:", k >= 1.
std::optional<std::int64_t> count_after(const std::vector<std::string>& words, std::string_view prefix) {
  if (words.size() != 1 || !words[0].starts_with(prefix)) return std::nullopt;
  const auto count = whole_number(std::string_view(words[0]).substr(prefix.size()));
  return count && *count >= 1 ? count : std::nullopt;
}

bool well_formed(const std::vector<std::string>& words) {
  if (words == std::vector<std::string>{"all"} || count_after(words, "last:") || count_after(words, "every:"))
    return true;
  std::vector<std::int64_t> seen;
  for (const std::string& word : words) {
    const auto number = whole_number(word);
    if (!number || std::ranges::find(seen, *number) != seen.end()) return false;
    seen.push_back(*number);
  }
  return !seen.empty();
}

}  // namespace

std::string layer_selection_problem(const std::vector<std::string>& words, std::int64_t blocks) {
  if (!well_formed(words))
    return "layers must be all, last:k or every:k with k >= 1, or a list of different block numbers";
  const std::string model = " of a model with " + std::to_string(blocks) + " blocks";
  for (const char* prefix : {"last:", "every:"}) {
    const auto count = count_after(words, prefix);
    if (count && *count > blocks) return "layers: " + words[0] + model;
  }
  for (const std::string& word : words) {
    const auto number = whole_number(word);
    if (number && *number >= blocks) return "layers: block " + word + model + " (the first is 0)";
  }
  return "";
}

std::vector<bool> select_layers(const std::vector<std::string>& words, std::int64_t blocks) {
  std::vector<bool> chosen(static_cast<std::size_t>(blocks), words.at(0) == "all");
  if (const auto last = count_after(words, "last:")) std::fill(chosen.end() - *last, chosen.end(), true);
  if (const auto every = count_after(words, "every:")) {
    for (std::int64_t i = *every - 1; i < blocks; i += *every) chosen[static_cast<std::size_t>(i)] = true;
  }
  for (const std::string& word : words) {
    if (const auto number = whole_number(word)) chosen.at(static_cast<std::size_t>(*number)) = true;
  }
  return chosen;
}

}  // namespace exfusion
