// Values of the recipe reader: from a node to a number or word, back to YAML, and into messages. Only
// core/recipe*.cpp include this.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/recipe_document.h"

namespace exfusion {

// The parsed value; otherwise the place and the rest of the message, which goes on after
// the key.
struct ValueProblem {
  Origin origin;
  std::string message;
};
std::optional<ValueProblem> parse_value(const RecipeNode& node, bool& value);
std::optional<ValueProblem> parse_value(const RecipeNode& node, std::int64_t& value);
std::optional<ValueProblem> parse_value(const RecipeNode& node, double& value);
std::optional<ValueProblem> parse_value(const RecipeNode& node, std::string& value);
std::optional<ValueProblem> parse_value(const RecipeNode& node, std::vector<std::int64_t>& value);
std::optional<ValueProblem> parse_value(const RecipeNode& node, std::vector<double>& value);

// The YAML of a value, such that it reads back as the same one.
std::string yaml_text(bool value);
std::string yaml_text(std::int64_t value);
std::string yaml_text(double value);
std::string yaml_text(const std::string& value);
std::string yaml_text(const std::vector<std::int64_t>& value);
std::string yaml_text(const std::vector<double>& value);
// A word that its owner parses: as yaml_text, but a number stays a plain number.
std::string yaml_word(const std::string& value);

// For messages: the start of an outside text on one line, and what a node is ("'1e3'", "a list", "nothing").
std::string one_line(const std::string& text, std::size_t most = 80);
std::string describe(const RecipeNode& node);
std::string join_words(const std::vector<std::string>& words);  // "a, b, c"
std::string join_key(const std::string& path, const std::string& key);

}  // namespace exfusion
