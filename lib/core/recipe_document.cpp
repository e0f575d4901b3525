// A recipe from its files and the command line: reading, includes, `--set`, merging, and the list of
// problems.
#include "core/recipe_document.h"
#include "core/recipe_value.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <tuple>

#include "core/error.h"
#include "core/recipe.h"

namespace exfusion {
namespace {

namespace fs = std::filesystem;
using Kind = RecipeNode::Kind;

constexpr std::size_t kMaxFileSize = std::size_t{1} << 20;
constexpr std::size_t kMaxFiles = 64;      // read for one recipe, so that includes of includes cannot explode
constexpr std::size_t kMaxReported = 100;  // lines of one error

std::vector<std::string> split_key(const std::string& path) {
  std::vector<std::string> parts;
  for (std::size_t begin = 0; begin <= path.size() && !path.empty();) {
    const std::size_t end = std::min(path.find('.', begin), path.size());
    parts.push_back(path.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

// The file's text; what is wrong in `problem`.
std::string read_text(const std::string& file, std::string& problem) {
  std::error_code error;
  const fs::file_status status = fs::status(file, error);
  if (status.type() == fs::file_type::not_found) {
    problem = "no such file";
  } else if (error) {
    problem = error.message();
  } else if (!fs::is_regular_file(status)) {
    problem = fs::is_directory(status) ? "is a folder" : "is not a regular file";
  } else {
    std::ifstream stream(file, std::ios::binary);
    std::string text(kMaxFileSize + 1, '\0');
    stream.read(text.data(), static_cast<std::streamsize>(text.size()));
    text.resize(static_cast<std::size_t>(stream.gcount()));
    if (!stream.eof()) problem = text.size() > kMaxFileSize ? "is larger than 1 MiB" : "cannot be read";
    return text;
  }
  return "";
}

// One name per file, for the detection of cycles.
std::string canonical(const std::string& file) {
  std::error_code error;
  return fs::weakly_canonical(file, error).string();
}

void add_leaf_keys(const RecipeNode& node, const std::string& path, std::vector<std::string>& keys) {
  if (node.kind != Kind::map || node.entries.empty()) return keys.push_back(path);
  for (const auto& [key, entry] : node.entries) add_leaf_keys(entry.value, join_key(path, key), keys);
}

// All dotted keys asked for whose last name is `key`.
void add_keys_named(const Asked& asked, const std::string& path, const std::string& key,
                    std::vector<std::string>& found) {
  for (const Asked& child : asked.children) {
    if (child.key == key) found.push_back(join_key(path, key));
    add_keys_named(child, join_key(path, child.key), key, found);
  }
}

std::string hint_for_unknown(const Asked& root, const Asked& section, const std::string& path,
                             const std::string& key) {
  if (key.find(':') != std::string::npos) return " (a ':' must be followed by a space)";
  if (key.find('.') != std::string::npos) return " (a dot does not nest: write a section and its keys)";
  std::vector<std::string> known;
  for (const Asked& child : section.children) known.push_back(child.key);
  const std::string near = nearest_word(key, known);
  if (!near.empty()) return fmt::format(" (did you mean '{}'?)", join_key(path, near));
  std::vector<std::string> elsewhere;
  add_keys_named(root, "", key, elsewhere);
  if (!elsewhere.empty()) return fmt::format(" (did you mean '{}'?)", elsewhere.front());
  const std::string where = path.empty() ? "the recipe" : fmt::format("'{}'", path);
  if (known.empty()) return fmt::format(" ({} has no keys)", where);
  return fmt::format(" (the keys of {} are {})", where, join_words(known));
}

void add_unknown(const Asked& root, const Asked& asked, const RecipeNode& node, const std::string& path,
                 std::vector<RecipeProblem>& all) {
  for (const auto& [key, entry] : node.entries) {
    const Asked* known = asked.find(key);
    if (!known) {
      all.push_back({entry.key_origin, fmt::format("unknown key '{}'{}", join_key(path, key),
                                                   hint_for_unknown(root, asked, path, key))});
    } else if (known->section) {
      add_unknown(root, *known, entry.value, join_key(path, key), all);
    }
  }
}

}  // namespace

const Asked* Asked::find(const std::string& child) const {
  const auto found =
      std::find_if(children.begin(), children.end(), [&](const Asked& a) { return a.key == child; });
  return found == children.end() ? nullptr : &*found;
}

std::size_t RecipeDocument::add_source(std::string name, bool set) {
  sources.push_back({std::move(name), set});
  return sources.size() - 1;
}

std::string RecipeDocument::place(const Origin& origin) const {
  const Source& source = sources[origin.source];
  if (source.set) return source.name;
  return fmt::format("{}:{}:{}", source.name, origin.line, origin.column);
}

const RecipeNode& RecipeDocument::nearest(const std::string& path) const {
  const RecipeNode* node = &root;
  for (const std::string& part : split_key(path)) {
    const auto found = node->entries.find(part);
    if (found == node->entries.end()) break;
    node = &found->second.value;
  }
  return *node;
}

const RecipeNode* RecipeDocument::find(const std::string& path) const {
  const RecipeNode* node = &root;
  for (const std::string& part : split_key(path)) {
    const auto found = node->entries.find(part);
    if (found == node->entries.end()) return nullptr;
    node = &found->second.value;
  }
  return node;
}

Asked& RecipeDocument::ask(const std::string& path) {
  Asked* node = &asked;
  for (const std::string& part : split_key(path)) {
    node->section = true;
    std::vector<Asked>& children = node->children;
    auto child =
        std::find_if(children.begin(), children.end(), [&](const Asked& a) { return a.key == part; });
    if (child == children.end()) child = children.insert(child, Asked{part, false, std::nullopt, {}});
    node = &*child;
  }
  return *node;
}

void RecipeDocument::problem(const std::string& path, const Origin& origin, const std::string& message) {
  if (reported.insert({path, origin.source}).second) problems.push_back({origin, message});
}

void RecipeDocument::fail(const Origin& origin, const std::string& message) {
  problems.push_back({origin, message});
  raise(problems);
}

void RecipeDocument::raise(std::vector<RecipeProblem> all) const {
  std::stable_sort(all.begin(), all.end(), [](const RecipeProblem& a, const RecipeProblem& b) {
    return std::tie(a.origin.source, a.origin.line, a.origin.column) <
           std::tie(b.origin.source, b.origin.line, b.origin.column);
  });
  std::string lines;
  for (std::size_t i = 0; i < std::min(all.size(), kMaxReported); ++i)
    lines +=
        fmt::format("{}{}", i > 0 ? "\n" : "", one_line(place(all[i].origin) + ": " + all[i].message, 2000));
  if (all.size() > kMaxReported) lines += fmt::format("\nand {} more problems", all.size() - kMaxReported);
  throw RecipeError(lines);
}

void RecipeDocument::add_unknown_keys(std::vector<RecipeProblem>& all) const {
  add_unknown(asked, asked, root, "", all);
}

// Maps are merged, anything else replaces. A section keeps the place where a file wrote it, not that of a
// `--set`.
void RecipeDocument::merge(RecipeNode& base, RecipeNode&& over, const std::string& path) {
  if (base.kind == Kind::map && over.kind == Kind::null)
    return problem(
        path, over.origin,
        fmt::format("'{}' is empty here, which would drop what was given before: remove it, or write none",
                    path));
  if (base.kind != Kind::map || over.kind != Kind::map) {
    base = std::move(over);
    return;
  }
  const bool set = sources[over.origin.source].set;
  if (!set) base.origin = over.origin;
  for (auto& [key, entry] : over.entries) {
    const auto [known, added] = base.entries.try_emplace(key, entry);
    if (added) continue;
    if (!set || entry.value.kind != Kind::map) known->second.key_origin = entry.key_origin;
    merge(known->second.value, std::move(entry.value), join_key(path, key));
  }
}

RecipeNode RecipeDocument::load_file(const std::string& file, const std::string& text, Chain& chain) {
  const std::size_t source = add_source(one_line(file, 1000), false);
  RecipeNode node = parse_recipe_text(*this, text, source);
  if (node.kind == Kind::null) fail({source, 1, 1}, "the recipe is empty");
  if (node.kind != Kind::map) fail(node.origin, "a recipe is 'key: value' lines, got " + describe(node));
  const auto include = node.entries.find("include");
  if (include == node.entries.end()) return node;
  const RecipeNode files = std::move(include->second.value);
  node.entries.erase(include);
  RecipeNode merged = load_includes(files, file, chain);
  merge(merged, std::move(node), "");
  return merged;
}

RecipeNode RecipeDocument::load_includes(const RecipeNode& files, const std::string& file, Chain& chain) {
  RecipeNode merged;
  merged.kind = Kind::map;
  merged.origin = files.origin;
  for (const RecipeNode& item : files.kind == Kind::list ? files.items : std::vector<RecipeNode>{files}) {
    if (item.kind != Kind::scalar || item.text.empty())
      fail(item.origin, "include must be a file or a list of files, got " + describe(item));
    if (sources.size() >= kMaxFiles) fail(item.origin, "more than 64 files in one recipe");
    const std::string path = (fs::path(file).parent_path() / item.text).lexically_normal().string();
    std::string wrong;
    const std::string text = read_text(path, wrong);
    if (!wrong.empty()) fail(item.origin, fmt::format("cannot include '{}': {}", path, wrong));
    chain.push_back({path, canonical(path)});
    const auto same = [&](const auto& link) { return link.second == chain.back().second; };
    const auto first = std::find_if(chain.begin(), chain.end(), same);
    if (first != chain.end() - 1) {
      std::string names = first->first;
      for (auto link = first + 1; link != chain.end(); ++link) names += " -> " + link->first;
      fail(item.origin, "include cycle: " + names);
    }
    merge(merged, load_file(path, text, chain), "");
    chain.pop_back();
  }
  return merged;
}

void RecipeDocument::apply_set(const std::string& set) {
  const std::size_t source = add_source(fmt::format("--set {}", one_line(set, 200)), true);
  const Origin origin{source, 1, 1};
  const std::size_t equals = set.find('=');
  const std::string key = set.substr(0, equals);
  const std::vector<std::string> parts = split_key(key);
  if (equals == std::string::npos) return problem("", origin, "must be key=value");
  if (parts.empty() || std::count(parts.begin(), parts.end(), "") > 0)
    return problem("", origin, "a name in the key is empty");
  if (parts.size() > 32) return problem("", origin, "the key has more than 32 names");
  if (parts.front() == "include") return problem("", origin, "include can stand only in a file");
  const RecipeNode& above = nearest(key);
  if (above.is_none() && sources[above.origin.source].set && !find(key))
    return problem("", origin,
                   fmt::format("'{}' cannot be set: {} took its section away", key, place(above.origin)));
  if ((above.kind == Kind::scalar && !above.is_none()) || above.kind == Kind::list) {
    if (!find(key))
      return problem(
          "", origin,
          fmt::format("'{}' cannot be set: the key above it is a value ({})", key, place(above.origin)));
  }
  RecipeNode node = parse_recipe_text(*this, set.substr(equals + 1), source, key);
  if (node.kind == Kind::null) node.origin = origin;
  add_leaf_keys(node, key, set_keys);
  for (auto part = parts.rbegin(); part != parts.rend(); ++part) {
    RecipeNode section;
    section.kind = Kind::map;
    section.origin = origin;
    section.entries.emplace(*part, RecipeEntry{origin, std::move(node)});
    node = std::move(section);
  }
  merge(root, std::move(node), "");
}

void RecipeDocument::load(const std::string& file, const std::string* text,
                          const std::vector<std::string>& sets) {
  std::string wrong;
  const std::string read = text ? *text : read_text(file, wrong);
  if (!wrong.empty()) throw RecipeError(one_line(file, 1000) + ": " + wrong);
  Chain chain{{file, canonical(file)}};
  root = load_file(file, read, chain);
  for (const std::string& set : sets) apply_set(set);
}

}  // namespace exfusion
