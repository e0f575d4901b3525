// From YAML text to the tree of the recipe. yaml-cpp only scans and parses: its events arrive here before it
// could drop a duplicate key, expand an alias or nest too deep.
#include <fmt/format.h>
#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/parser.h>

#include <algorithm>
#include <array>
#include <sstream>
#include <string_view>

#include "core/recipe_document.h"
#include "core/recipe_value.h"

namespace exfusion {
namespace {

constexpr std::size_t kMaxDepth = 32;
constexpr std::size_t kMaxKey = 128;
constexpr const char* kNoAliases = "anchors (&) and aliases (*) are not allowed in a recipe (use include)";

bool is_control(char c) {
  return (static_cast<unsigned char>(c) < 0x20 && c != '\t' && c != '\n') || c == 0x7f;
}

class TreeBuilder : public YAML::EventHandler {
 public:
  TreeBuilder(RecipeDocument& document, std::size_t source, const std::string& prefix)
      : document_(document), source_(source), prefix_(prefix) {}

  RecipeNode take() { return std::move(root_); }

  void OnDocumentStart(const YAML::Mark& mark) override {
    if (documents_++ > 0)
      document_.fail(origin(mark), "a second document starts here; a recipe is one document");
  }
  void OnDocumentEnd() override {}

  void OnNull(const YAML::Mark& mark, YAML::anchor_t) override {
    if (wants_key()) document_.fail(origin(mark), "a key must be a word, got nothing");
    RecipeNode node;
    // The mark of a missing value is that of whatever comes next.
    node.origin = stack_.empty() || stack_.back().node.kind != RecipeNode::Kind::map
                      ? origin(mark)
                      : stack_.back().key_origin;
    attach(std::move(node));
  }

  void OnAlias(const YAML::Mark& mark, YAML::anchor_t) override {
    if (wants_key()) document_.fail(origin(mark), kNoAliases);
    RecipeNode node;
    node.origin = origin(mark);
    node.kind = RecipeNode::Kind::invalid;
    document_.problem(path(), node.origin, kNoAliases);
    attach(std::move(node));
  }

  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& text) override {
    if (wants_key()) check_key(mark, text);
    check_properties(mark, tag, anchor);
    if (std::any_of(text.begin(), text.end(), is_control))
      document_.problem(path(), origin(mark), fmt::format("'{}' has a control character", one_line(text)));
    if (wants_key()) {
      stack_.back().has_key = true;
      return;
    }
    RecipeNode node;
    node.kind = RecipeNode::Kind::scalar;
    node.origin = origin(mark);
    node.text = text;
    node.quoted = tag == "!";
    attach(std::move(node));
  }

  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    open(mark, tag, anchor, RecipeNode::Kind::list);
  }
  void OnSequenceEnd() override { close(); }

  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    open(mark, tag, anchor, RecipeNode::Kind::map);
  }
  void OnMapEnd() override { close(); }

 private:
  struct Level {
    RecipeNode node;
    std::string path;
    std::string key;  // of the value that comes next
    Origin key_origin;
    bool has_key = false;
  };

  Origin origin(const YAML::Mark& mark) const { return {source_, mark.line + 1, mark.column + 1}; }

  bool wants_key() const {
    return !stack_.empty() && stack_.back().node.kind == RecipeNode::Kind::map && !stack_.back().has_key;
  }

  std::string path() const {
    if (stack_.empty()) return prefix_;
    return join_key(stack_.back().path, stack_.back().key);
  }

  void check_key(const YAML::Mark& mark, const std::string& text) {
    Level& level = stack_.back();
    if (text.size() > kMaxKey) document_.fail(origin(mark), "a key is longer than 128 bytes");
    level.key = text;
    level.key_origin = origin(mark);
    if (text.empty()) document_.fail(origin(mark), "a key must be a word, got an empty one");
    const auto first = level.node.entries.find(text);
    if (first != level.node.entries.end())
      document_.problem(path(), origin(mark),
                        fmt::format("key '{}' appears twice (first at {})", one_line(path()),
                                    document_.place(first->second.key_origin)));
  }

  void check_properties(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor) {
    if (anchor != 0) document_.problem(path(), origin(mark), kNoAliases);
    if (!tag.empty() && tag != "?" && tag != "!")
      document_.problem(path(), origin(mark),
                        fmt::format("tags such as '{}' are not allowed in a recipe", one_line(tag)));
  }

  void open(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor, RecipeNode::Kind kind) {
    if (wants_key())
      document_.fail(origin(mark), "a key must be a word, got a list or a map (is a bracket open?)");
    if (stack_.size() == kMaxDepth)
      document_.fail(origin(mark), fmt::format("nested deeper than {} levels", kMaxDepth));
    check_properties(mark, tag, anchor);
    Level level;
    level.path = path();
    level.node.kind = kind;
    level.node.origin = origin(mark);
    stack_.push_back(std::move(level));
  }

  void close() {
    RecipeNode node = std::move(stack_.back().node);
    stack_.pop_back();
    attach(std::move(node));
  }

  void attach(RecipeNode&& node) {
    if (stack_.empty()) {
      root_ = std::move(node);
      return;
    }
    Level& level = stack_.back();
    if (level.node.kind == RecipeNode::Kind::list) {
      level.node.items.push_back(std::move(node));
    } else {
      level.node.entries.try_emplace(level.key, RecipeEntry{level.key_origin, std::move(node)});
      level.has_key = false;
      level.key.clear();
    }
  }

  RecipeDocument& document_;
  std::size_t source_;
  std::string prefix_;
  RecipeNode root_;
  std::vector<Level> stack_;
  int documents_ = 0;
};

// Length of the UTF-8 character at `at` (Unicode 15, table 3-7), 0 if there is none.
std::size_t utf8_length(const std::string& text, std::size_t at) {
  const auto byte = [&](std::size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u; };
  const unsigned lead = byte(at);
  if (lead < 0x80) return 1;
  const std::size_t length = lead >= 0xC2 && lead < 0xE0   ? 2
                             : lead >= 0xE0 && lead < 0xF0 ? 3
                             : lead >= 0xF0 && lead < 0xF5 ? 4
                                                           : 0;
  for (std::size_t i = 1; i < length; ++i)
    if (byte(at + i) >> 6 != 2) return 0;
  const unsigned second = byte(at + 1);
  const bool overlong_or_surrogate = (lead == 0xE0 && second < 0xA0) || (lead == 0xED && second >= 0xA0) ||
                                     (lead == 0xF0 && second < 0x90) || (lead == 0xF4 && second >= 0x90);
  return overlong_or_surrogate ? 0 : length;
}

void check_is_text(RecipeDocument& document, const std::string& text, std::size_t source) {
  Origin at{source, 1, 1};
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t length = utf8_length(text, i);
    if (length == 0 || (is_control(text[i]) && text[i] != '\r'))
      document.fail(
          at, fmt::format("not a text file in UTF-8 (byte 0x{:02x})", static_cast<unsigned char>(text[i])));
    if (text[i] == '\n') {
      ++at.line;
      at.column = 1;
    } else {
      ++at.column;
    }
    i += length;
  }
}

// The 1-based column of a tab in the indentation of a line, 0 if there is none.
int tab_in_indentation(const std::string& text, int line) {
  std::istringstream stream(text);
  std::string found;
  for (int i = 0; i <= line; ++i) std::getline(stream, found);
  const std::size_t tab = std::string_view(found).substr(0, found.find_first_not_of(" \t")).find('\t');
  return tab == std::string_view::npos ? 0 : static_cast<int>(tab) + 1;
}

// yaml-cpp's words are those of a scanner; these are for somebody who edits a recipe.
std::string reworded(const std::string& message) {
  static constexpr std::array<std::pair<std::string_view, const char*>, 8> kWords = {{
      {"illegal map value", "a ':' where no value can stand (is the indentation right? is a quote missing?)"},
      {"end of map not found",
       "this line does not fit in here (is the indentation right? is a ':' missing?)"},
      {"end of sequence not found", "this line does not fit into the list (is the indentation right?)"},
      {"end of sequence flow not found", "a '[' is not closed with ']'"},
      {"end of map flow not found", "a '{' is not closed with '}'"},
      {"illegal document indicator in scalar", "a quote is not closed"},
      {"illegal flow end", "a ']' or '}' that nothing opened"},
      {"the referenced anchor is not defined", kNoAliases},
  }};
  for (const auto& [theirs, ours] : kWords)
    if (message.starts_with(theirs)) return ours;
  return "not valid YAML: " + one_line(message);
}

}  // namespace

RecipeNode parse_recipe_text(RecipeDocument& document, const std::string& text, std::size_t source,
                             const std::string& prefix) {
  check_is_text(document, text, source);
  // yaml-cpp takes a quote or bracket that is open at the end of the text for closed, but not before a
  // document end.
  std::istringstream stream(text + (text.ends_with('\n') ? "...\n" : "\n...\n"));
  TreeBuilder builder(document, source, prefix);
  try {
    YAML::Parser parser(stream);
    while (parser.HandleNextDocument(builder)) continue;
  } catch (const YAML::Exception& error) {
    const int line = std::max(error.mark.line, 0);
    if (const int tab = tab_in_indentation(text, line))
      document.fail({source, line + 1, tab}, "a tab in the indentation: use spaces");
    document.fail({source, line + 1, std::max(error.mark.column, 0) + 1}, reworded(error.msg));
  }
  return builder.take();
}

}  // namespace exfusion
