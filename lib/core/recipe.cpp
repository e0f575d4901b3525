// Sections: what their owners read is the schema.
#include "core/recipe.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "core/error.h"
#include "core/recipe_document.h"
#include "core/recipe_value.h"

namespace exfusion {
namespace {

using Kind = RecipeNode::Kind;

// The value at `path`, if it is there and right. What is wrong is recorded.
template <class T>
std::optional<T> read(RecipeDocument& document, const std::string& path) {
  document.ask(path);
  const RecipeNode* node = document.find(path);
  if (!node || node->kind == Kind::invalid) return std::nullopt;
  T value{};
  if (const auto problem = parse_value(*node, value)) {
    document.problem(path, problem->origin, path + problem->message);
    return std::nullopt;
  }
  return value;
}

template <class T>
std::string range_text(T low, T high) {
  if (high >= std::numeric_limits<T>::max()) return fmt::format(">= {}", low);
  if (low <= std::numeric_limits<T>::lowest()) return fmt::format("<= {}", high);
  return fmt::format("in [{}, {}]", low, high);
}

template <class T>
std::optional<T> read_in_range(RecipeDocument& document, const std::string& path, T low, T high) {
  const std::optional<T> value = read<T>(document, path);
  if (!value || (low <= *value && *value <= high)) return value;
  const RecipeNode& node = document.nearest(path);
  document.problem(path, node.origin,
                   fmt::format("{} must be {}, got {}", path, range_text(low, high), one_line(node.text)));
  return std::nullopt;
}

std::optional<std::string> read_one_of(RecipeDocument& document, const std::string& path,
                                       const std::vector<std::string>& allowed) {
  document.ask(path);
  const RecipeNode* node = document.find(path);
  if (!node || node->kind == Kind::invalid) return std::nullopt;
  if (node->kind == Kind::scalar && std::find(allowed.begin(), allowed.end(), node->text) != allowed.end())
    return node->text;
  const std::string near = nearest_word(node->text, allowed);
  document.problem(
      path, node->origin,
      fmt::format("{} must be one of {{{}}}, got {}{}", path, join_words(allowed), describe(*node),
                  near.empty() ? "" : fmt::format(" (did you mean '{}'?)", near)));
  return std::nullopt;
}

// The value that the program goes on with, remembered for the resolved recipe.
template <class T>
T use(RecipeDocument& document, const std::string& path, const T& value) {
  document.ask(path).text = yaml_text(value);
  return value;
}

// A missing key is a problem at the section, unless that is no section at all, which has been reported.
void miss(RecipeDocument& document, const std::string& path) {
  const RecipeNode& above = document.nearest(path);
  if (!document.find(path) && (above.kind == Kind::map || above.kind == Kind::null))
    document.problem(path, above.origin, path + " is missing, and it has no default");
}

void append_resolved(const Asked& asked, const std::string& indent, std::string& out) {
  for (const Asked& child : asked.children) {
    if (child.text) {
      out += indent + yaml_text(child.key) + ": " + *child.text + "\n";
    } else if (child.section) {
      std::string inside;
      append_resolved(child, indent + "  ", inside);
      out += indent + yaml_text(child.key) + (inside.empty() ? ": {}\n" : ":\n" + inside);
    }
  }
}

}  // namespace

Section::Section(std::shared_ptr<RecipeDocument> document, std::string path)
    : document_(std::move(document)), path_(std::move(path)) {}

template <class T>
T Section::get(const std::string& key, const T& fallback) {
  const std::string path = join_key(path_, key);
  return use(*document_, path, read<T>(*document_, path).value_or(fallback));
}

template <class T>
T Section::require(const std::string& key) {
  miss(*document_, join_key(path_, key));
  return get(key, T{});
}

template <class T>
T Section::in_range(const std::string& key, T fallback, T low, T high) {
  const std::string path = join_key(path_, key);
  return use(*document_, path, read_in_range(*document_, path, low, high).value_or(fallback));
}

template <class T>
T Section::require_in_range(const std::string& key, T low, T high) {
  miss(*document_, join_key(path_, key));
  return in_range(key, low, low,
                  high);  // a value in range, so that the owner can go on to find more problems
}

template <class T>
std::optional<T> Section::optional_in_range(const std::string& key, T low, T high) {
  const std::string path = join_key(path_, key);
  document_->ask(path);
  if (!has(key)) return std::nullopt;
  const std::optional<T> value = read_in_range(*document_, path, low, high);
  if (value) use(*document_, path, *value);
  return value;
}

std::optional<std::string> Section::optional_string(const std::string& key) {
  const std::string path = join_key(path_, key);
  document_->ask(path);
  if (!has(key)) return std::nullopt;
  const std::optional<std::string> value = read<std::string>(*document_, path);
  if (value) use(*document_, path, *value);
  return value;
}

std::string Section::one_of(const std::string& key, const std::string& fallback,
                            const std::vector<std::string>& allowed) {
  const std::string path = join_key(path_, key);
  return use(*document_, path, read_one_of(*document_, path, allowed).value_or(fallback));
}

std::string Section::require_one_of(const std::string& key, const std::vector<std::string>& allowed) {
  miss(*document_, join_key(path_, key));
  return one_of(key, allowed.front(), allowed);
}

std::vector<std::string> Section::words(const std::string& key, const std::vector<std::string>& fallback) {
  const std::string path = join_key(path_, key);
  std::vector<std::string> result = fallback;
  bool list = fallback.size() != 1;
  Asked& asked = document_->ask(path);
  const RecipeNode* node = document_->find(path);
  if (node && node->kind != Kind::invalid) {
    const auto is_word = [](const RecipeNode& item) { return item.kind == Kind::scalar; };
    list = node->kind == Kind::list;
    const std::vector<RecipeNode> items = list ? node->items : std::vector<RecipeNode>{*node};
    if (std::all_of(items.begin(), items.end(), is_word)) {
      result.clear();
      for (const RecipeNode& item : items) result.push_back(item.text);
    } else {
      document_->problem(path, node->origin,
                         path + " must be a word or a list of words, got " +
                             (list ? "a list of other things" : describe(*node)));
    }
  }
  std::vector<std::string> texts;
  for (const std::string& word : result) texts.push_back(yaml_word(word));
  asked.text = list ? fmt::format("[{}]", join_words(texts)) : join_words(texts);
  return result;
}

bool Section::has(const std::string& key) const {
  const RecipeNode* node = document_->find(join_key(path_, key));
  return node && node->kind != Kind::null;
}

Section Section::child(const std::string& key) {
  const std::string path = join_key(path_, key);
  document_->ask(path).section = true;
  const RecipeNode* node = document_->find(path);
  if (node && (node->kind == Kind::scalar || node->kind == Kind::list))
    document_->problem(path, node->origin,
                       path + " must be a section (key: value lines), got " + describe(*node));
  return Section(document_, path);
}

std::optional<Section> Section::optional_child(const std::string& key) {
  const std::string path = join_key(path_, key);
  Asked& asked = document_->ask(path);
  const RecipeNode* node = document_->find(path);
  if (!node || node->kind == Kind::invalid) return std::nullopt;
  if (node->is_none()) {
    asked.text = "none";
    return std::nullopt;
  }
  if (node->kind == Kind::map) return child(key);
  document_->problem(path, node->origin,
                     path + " must be a section (key: value lines) or the word none, got " + describe(*node));
  return std::nullopt;
}

void Section::without_effect(const std::string& key, const std::string& message) {
  if (!has(key)) return;
  words(key, {});  // asked for, so not reported as unknown
  problem(key, message);
}

void Section::problem(const std::string& key, const std::string& message) {
  const std::string path = join_key(path_, key);
  document_->problem(path, document_->nearest(path).origin, message);
}

Recipe Recipe::load(const std::string& file, const std::vector<std::string>& sets) {
  Recipe recipe;
  recipe.document_ = std::make_shared<RecipeDocument>();
  recipe.document_->load(file, nullptr, sets);
  return recipe;
}

Recipe Recipe::parse(const std::string& text, const std::string& name, const std::vector<std::string>& sets) {
  Recipe recipe;
  recipe.document_ = std::make_shared<RecipeDocument>();
  recipe.document_->load(name, &text, sets);
  return recipe;
}

Section Recipe::root() {
  return Section(document_, "");
}

void Recipe::finish() const {
  std::vector<RecipeProblem> all = document_->problems;
  document_->add_unknown_keys(all);
  if (!all.empty()) document_->raise(std::move(all));
}

std::string Recipe::resolved() const {
  std::string out;
  append_resolved(document_->asked, "", out);
  return out;
}

const std::vector<std::string>& Recipe::set_keys() const {
  return document_->set_keys;
}

#define EXFUSION_READS(T)                                   \
  template T Section::get<T>(const std::string&, const T&); \
  template T Section::require<T>(const std::string&);
EXFUSION_READS(bool)
EXFUSION_READS(std::int64_t)
EXFUSION_READS(double)
EXFUSION_READS(std::string)
EXFUSION_READS(std::vector<std::int64_t>)
EXFUSION_READS(std::vector<double>)
#undef EXFUSION_READS

#define EXFUSION_READS_IN_RANGE(T)                                   \
  template T Section::in_range<T>(const std::string&, T, T, T);      \
  template T Section::require_in_range<T>(const std::string&, T, T); \
  template std::optional<T> Section::optional_in_range<T>(const std::string&, T, T);
EXFUSION_READS_IN_RANGE(std::int64_t)
EXFUSION_READS_IN_RANGE(double)
#undef EXFUSION_READS_IN_RANGE

}  // namespace exfusion
