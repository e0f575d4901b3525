// Inside of the recipe reader: the tree of a recipe with the origin of every key, what was asked of it, and
// the problems found. Only core/recipe*.cpp include this.
#pragma once
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace exfusion {

struct Origin {
  std::size_t source = 0;  // index in RecipeDocument::sources
  int line = 0;            // 1-based
  int column = 0;          // 1-based
};

struct RecipeEntry;

struct RecipeNode {
  enum class Kind {
    null,
    scalar,
    list,
    map,
    invalid
  };  // invalid: already reported, nothing more is said about it
  Kind kind = Kind::null;
  Origin origin;
  std::string text;     // scalar
  bool quoted = false;  // scalar: "5" is a string, 5 a number
  std::vector<RecipeNode> items;
  std::map<std::string, RecipeEntry> entries;

  bool is_none() const { return kind == Kind::scalar && text == "none"; }
};

struct RecipeEntry {
  Origin key_origin;
  RecipeNode value;
};

// What was asked for, in the order of first asking: the schema, and with the values used the resolved recipe.
struct Asked {
  std::string key;
  bool section = false;
  std::optional<std::string> text;  // the value used, as YAML; none: nothing to print
  std::vector<Asked> children;

  const Asked* find(const std::string& child) const;
};

struct RecipeProblem {
  Origin origin;
  std::string message;
};

struct RecipeDocument {
  struct Source {
    std::string name;  // file name, or "--set key=value"
    bool set = false;  // a place in it has no line and column
  };
  std::vector<Source> sources;
  RecipeNode root;
  Asked asked;
  std::vector<RecipeProblem> problems;
  std::set<std::pair<std::string, std::size_t>> reported;  // (dotted key, source): one problem each
  std::vector<std::string> set_keys;

  std::size_t add_source(std::string name, bool set);
  // Reads the file (or `text`, when given, in its place), its includes and the sets.
  void load(const std::string& file, const std::string* text, const std::vector<std::string>& sets);

  // The node at a dotted key; nullptr when missing. "" is the root.
  const RecipeNode* find(const std::string& path) const;
  // The nearest node at or above `path` that exists.
  const RecipeNode& nearest(const std::string& path) const;
  Asked& ask(const std::string& path);

  // Records a problem at the dotted key `path`, unless that key of that source has one already.
  void problem(const std::string& path, const Origin& origin, const std::string& message);
  // Records it and throws all problems so far.
  [[noreturn]] void fail(const Origin& origin, const std::string& message);
  [[noreturn]] void raise(std::vector<RecipeProblem> all) const;
  std::string place(const Origin& origin) const;
  void add_unknown_keys(std::vector<RecipeProblem>& all) const;

 private:
  using Chain =
      std::vector<std::pair<std::string, std::string>>;  // files being included: as named, canonical
  RecipeNode load_file(const std::string& file, const std::string& text, Chain& chain);
  RecipeNode load_includes(const RecipeNode& files, const std::string& file, Chain& chain);
  void merge(RecipeNode& base, RecipeNode&& over, const std::string& path);
  void apply_set(const std::string& set);
};

// recipe_parse.cpp. The tree of one YAML document. Syntax errors and documents that are no tree of maps,
// lists and scalars (aliases, tags and duplicate keys aside: recorded) end in `fail`. An empty text is null.
// `prefix`: the dotted key that the tree will stand at.
RecipeNode parse_recipe_text(RecipeDocument& document, const std::string& text, std::size_t source,
                             const std::string& prefix = "");

}  // namespace exfusion
