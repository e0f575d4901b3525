// The strict recipe reader. A recipe is YAML; whoever owns a section reads its keys through `Section`, and
// that reading is the schema: what nobody asked for is an unknown key. Problems are collected and reported
// together by `Recipe::finish`, each as one line `file:line:column: what was found, what is allowed (did you
// mean …?)`; for a value from the command line the place is `--set a.b=c`.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace exfusion {

struct RecipeDocument;  // tree, origins and problems; shared by the sections of one recipe

class Section {
 public:
  // The value of `key`, or `fallback` if it is missing or wrong (a wrong one is recorded as a problem). T:
  // bool, int64_t, double, std::string, std::vector<int64_t>, std::vector<double>. Only true/false are
  // booleans; 1e3 is no integer; no octals; null is no value of any of these; a quoted "5" is a string.
  template <class T>
  T get(const std::string& key, const T& fallback);
  // As get; a missing key is a problem. What stands in for it is T{}, the low end of a range, or the first
  // word.
  template <class T>
  T require(const std::string& key);
  // As get / require with low <= value <= high. T: int64_t, double.
  template <class T>
  T in_range(const std::string& key, T fallback, T low, T high);
  template <class T>
  T require_in_range(const std::string& key, T low, T high);
  // As get for a value that may be absent: nullopt when the key is missing (or the value is null).
  template <class T>
  std::optional<T> optional_in_range(const std::string& key, T low, T high);
  std::optional<std::string> optional_string(const std::string& key);
  // One of a few words; the problem names them and the nearest.
  std::string one_of(const std::string& key, const std::string& fallback,
                     const std::vector<std::string>& allowed);
  std::string require_one_of(const std::string& key, const std::vector<std::string>& allowed);
  // "all", "last:2" or a list: a value that the owner parses himself gets its raw form here. Scalars: the
  // text; lists: items.
  std::vector<std::string> words(const std::string& key, const std::vector<std::string>& fallback);

  bool has(const std::string& key) const;  // present and not null
  // A missing section is an empty one; a scalar in its place is a problem.
  Section child(const std::string& key);
  // As child for a section that can be switched off: nullopt when missing, or given as the word `none`.
  std::optional<Section> optional_child(const std::string& key);
  // A key that has no effect under the other choices made: recorded as a problem where it is given, and not
  // as unknown too.
  void without_effect(const std::string& key, const std::string& message);
  // Records a problem at `key` (its place in the file, or this section's when missing), for checks across
  // keys. The message names the key itself; a key that has a problem already gets no second one.
  void problem(const std::string& key, const std::string& message);
  const std::string& path() const { return path_; }  // "" for the root, "optim.schedule"

 private:
  friend class Recipe;
  Section(std::shared_ptr<RecipeDocument> document, std::string path);
  std::shared_ptr<RecipeDocument> document_;
  std::string path_;
};

class Recipe {
 public:
  // Reads `file`, its includes (a path or a list under `include:`, relative to the file; later files and the
  // file itself win) and then `sets` ("a.b=c", the value as YAML; "a=none" drops a section). Throws
  // RecipeError when it is not a recipe at all.
  static Recipe load(const std::string& file, const std::vector<std::string>& sets);
  static Recipe parse(const std::string& text, const std::string& name,
                      const std::vector<std::string>& sets = {});
  Section root();
  // Throws RecipeError with all problems, sorted by place, unknown keys among them.
  void finish() const;
  // Every key that was asked for with the value that was used, defaults included, as YAML that `load`
  // accepts.
  std::string resolved() const;
  // Dotted keys of the values in the `sets` given (a={b: 1} is a.b), for callers that allow only some
  // (resume).
  const std::vector<std::string>& set_keys() const;

 private:
  std::shared_ptr<RecipeDocument> document_;
};

// The word of `allowed` nearest to `word` by edit distance, or "" if none is near.
std::string nearest_word(const std::string& word, const std::vector<std::string>& allowed);

}  // namespace exfusion
