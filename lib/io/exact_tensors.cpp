#include "io/exact_tensors.h"

#include <fmt/format.h>

#include <set>

#include "core/error.h"

namespace exfusion {

void read_exactly(const std::string& path, const NamedTensors& targets) {
  const SafetensorsFile file(path);
  std::set<std::string> expected;
  for (const auto& [name, target] : targets) {
    if (!file.contains(name)) throw FormatError(fmt::format("{}: tensor '{}' is missing", path, name));
    file.read_into(name, target);
    expected.insert(name);
  }
  for (const auto& [name, info] : file.tensors()) {
    if (!expected.count(name))
      throw FormatError(fmt::format("{}: tensor '{}' does not belong to this model or recipe", path, name));
  }
}

}  // namespace exfusion
