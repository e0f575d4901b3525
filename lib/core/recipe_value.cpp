// Scalars of a recipe, both ways: from the text of the file to a value, and from a value to text that reads
// back as it.
#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <numeric>
#include <string_view>

#include "core/recipe.h"
#include "core/recipe_value.h"

namespace exfusion {
namespace {

using Kind = RecipeNode::Kind;

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}

// Reads a decimal number. Otherwise a hint in brackets for the message, "" when there is none to give.
template <class T>
std::optional<std::string> number_problem(std::string_view text, T& value) {
  const bool negative = text.starts_with('-');
  const std::string_view digits = text.substr(negative || text.starts_with('+') ? 1 : 0);
  // from_chars knows no '+', and takes "inf" and "nan" for numbers.
  if (digits.empty() || !(is_digit(digits[0]) || digits[0] == '.')) return "";
  const std::string_view number = negative ? text : digits;
  const char* number_end = number.data() + number.size();
  T parsed{};
  const auto [end, error] = std::from_chars(number.data(), number_end, parsed);
  if (end != number_end || error == std::errc::invalid_argument) return "";
  if (error == std::errc::result_out_of_range) return " (beyond what 64 bits hold)";
  if (digits.size() > 1 && digits[0] == '0' && is_digit(digits[1])) return " (no leading zeros)";
  value = parsed;
  return std::nullopt;
}

template <class T>
std::optional<ValueProblem> parse_number(const RecipeNode& node, T& value, const char* what) {
  std::optional<std::string> hint = "";
  if (node.kind == Kind::scalar && !node.quoted) hint = number_problem(node.text, value);
  if (!hint) return std::nullopt;
  return ValueProblem{node.origin, fmt::format(" must be {}, got {}{}", what, describe(node), *hint)};
}

template <class T>
std::optional<ValueProblem> parse_list(const RecipeNode& node, std::vector<T>& value, const char* what) {
  if (node.kind != Kind::list)
    return ValueProblem{node.origin, fmt::format(" must be a list of {}, got {}", what, describe(node))};
  std::vector<T> items(node.items.size());
  for (std::size_t i = 0; i < items.size(); ++i)
    if (auto problem = parse_value(node.items[i], items[i])) {
      problem->message = fmt::format("[{}]{}", i, problem->message);
      return problem;
    }
  value = std::move(items);
  return std::nullopt;
}

std::string quoted(const std::string& text) {
  std::string result = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      result += {'\\', c};
    } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
      result += fmt::format("\\x{:02X}", static_cast<unsigned char>(c));
    } else {
      result += c;
    }
  }
  return result + '"';
}

// Letters, digits and a few marks, none of which YAML gives a meaning to; anything else is safer in quotes.
bool stands_plain(const std::string& text) {
  static const std::vector<std::string> nulls = {"null", "Null", "NULL", "~"};
  return !text.empty() && std::find(nulls.begin(), nulls.end(), text) == nulls.end() && text.front() != '-' &&
         text.back() != ':' && text.front() != ':' &&
         std::all_of(text.begin(), text.end(), [](unsigned char c) {
           return std::isalnum(c) ||
                  std::string_view("_-./:+=").find(static_cast<char>(c)) != std::string_view::npos;
         });
}

// Whether some YAML reader (1.1 ones among them) takes the word for a boolean or a number.
bool looks_typed(const std::string& text) {
  static const std::vector<std::string> words = {"true", "false", "yes", "no", "on", "off", "y", "n"};
  std::string lower = text;
  std::transform(lower.begin(), lower.end(), lower.begin(), [](unsigned char c) { return std::tolower(c); });
  if (std::find(words.begin(), words.end(), lower) != words.end()) return true;
  const std::size_t first = text.find_first_not_of("+-.");
  return first == std::string::npos || is_digit(text[first]) || lower.substr(first) == "nan" ||
         lower.substr(first) == "inf";
}

// Nobody means another word by another case or by a dash for an underscore.
std::string comparable(std::string word) {
  for (char& c : word) c = c == '-' ? '_' : static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return word;
}

// Insertions, deletions, substitutions and swaps of neighbours (optimal string alignment).
std::size_t edit_distance(const std::string& a, const std::string& b) {
  std::vector<std::size_t> before(b.size() + 1), last(b.size() + 1), row(b.size() + 1);
  std::iota(last.begin(), last.end(), std::size_t{0});
  for (std::size_t i = 1; i <= a.size(); ++i) {
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      row[j] = std::min({last[j] + 1, row[j - 1] + 1, last[j - 1] + (a[i - 1] != b[j - 1])});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
        row[j] = std::min(row[j], before[j - 2] + 1);
    }
    std::swap(before, last);
    std::swap(last, row);
  }
  return last[b.size()];
}

template <class T>
std::string yaml_list(const std::vector<T>& values) {
  std::string result = "[";
  for (const T& value : values) result += (result.size() > 1 ? ", " : "") + yaml_text(value);
  return result + "]";
}

}  // namespace

std::optional<ValueProblem> parse_value(const RecipeNode& node, bool& value) {
  if (node.kind == Kind::scalar && !node.quoted && (node.text == "true" || node.text == "false")) {
    value = node.text == "true";
    return std::nullopt;
  }
  return ValueProblem{node.origin, " must be true or false, got " + describe(node)};
}

std::optional<ValueProblem> parse_value(const RecipeNode& node, std::int64_t& value) {
  return parse_number(node, value, "an integer");
}

std::optional<ValueProblem> parse_value(const RecipeNode& node, double& value) {
  return parse_number(node, value, "a number");
}

std::optional<ValueProblem> parse_value(const RecipeNode& node, std::string& value) {
  if (node.kind != Kind::scalar) return ValueProblem{node.origin, " must be a string, got " + describe(node)};
  value = node.text;
  return std::nullopt;
}

std::optional<ValueProblem> parse_value(const RecipeNode& node, std::vector<std::int64_t>& value) {
  return parse_list(node, value, "integers");
}

std::optional<ValueProblem> parse_value(const RecipeNode& node, std::vector<double>& value) {
  return parse_list(node, value, "numbers");
}

std::string yaml_text(bool value) {
  return value ? "true" : "false";
}
std::string yaml_text(std::int64_t value) {
  return std::to_string(value);
}
std::string yaml_text(double value) {
  return fmt::format("{}", value);
}  // the shortest that reads back the same
std::string yaml_text(const std::string& value) {
  return looks_typed(value) ? quoted(value) : yaml_word(value);
}
std::string yaml_text(const std::vector<std::int64_t>& value) {
  return yaml_list(value);
}
std::string yaml_text(const std::vector<double>& value) {
  return yaml_list(value);
}
std::string yaml_word(const std::string& value) {
  return stands_plain(value) ? value : quoted(value);
}

std::string one_line(const std::string& text, std::size_t most) {
  std::string result;
  for (const char c : text) {
    if (result.size() >= most && (static_cast<unsigned char>(c) & 0xC0) != 0x80) return result + "...";
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
      result += c == '\n' ? "\\n" : fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
    } else {
      result += c;
    }
  }
  return result;
}

std::string describe(const RecipeNode& node) {
  switch (node.kind) {
    case Kind::scalar:
      return node.quoted ? fmt::format("the string \"{}\"", one_line(node.text))
                         : fmt::format("'{}'", one_line(node.text));
    case Kind::list:
      return "a list";
    case Kind::map:
      return "a section";
    default:
      return "nothing";
  }
}

std::string join_words(const std::vector<std::string>& words) {
  return fmt::format("{}", fmt::join(words, ", "));
}

std::string join_key(const std::string& path, const std::string& key) {
  return path.empty() || key.empty() ? path + key : path + "." + key;
}

std::string nearest_word(const std::string& word, const std::vector<std::string>& allowed) {
  std::string nearest;
  std::size_t least = SIZE_MAX;
  for (const std::string& candidate : allowed) {
    const std::size_t longer = std::max(word.size(), candidate.size());
    const std::size_t most = std::clamp<std::size_t>(longer / 3, 1, 3);
    if (longer - std::min(word.size(), candidate.size()) > most) continue;
    const std::size_t distance = edit_distance(comparable(word), comparable(candidate));
    if (distance <= most && distance < longer && distance < least) {
      least = distance;
      nearest = candidate;
    }
  }
  if (!nearest.empty() || word.size() < 3) return nearest;
  const auto start = std::find_if(allowed.begin(), allowed.end(), [&](const std::string& candidate) {
    return candidate.starts_with(word) || (candidate.size() >= 3 && word.starts_with(candidate));
  });
  return start == allowed.end() ? "" : *start;
}

}  // namespace exfusion
