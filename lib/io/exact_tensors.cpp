#include "io/exact_tensors.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <set>

#include "core/error.h"
#include "io/part_pieces.h"
#include "io/safetensors_layout.h"

namespace exfusion {

void expect_exactly(const SafetensorsFile& file, const TensorParts& parts) {
  std::set<std::string> expected;
  for (const TensorPart& part : parts) {
    const auto found = file.tensors().find(part.name);
    if (found == file.tensors().end())
      throw FormatError(fmt::format("{}: tensor '{}' is missing", file.path(), part.name));
    const TensorInfo& info = found->second;
    const std::string_view type = stored_type(part.values.scalar_type());
    const std::vector<std::int64_t> shape = whole_shape(part);
    if (info.dtype != type || info.shape != shape)
      throw FormatError(fmt::format("{}: tensor '{}' is {} [{}], expected {} [{}]", file.path(), part.name,
                                    info.dtype, fmt::join(info.shape, ", "), type, fmt::join(shape, ", ")));
    expected.insert(part.name);
  }
  for (const auto& [name, info] : file.tensors()) {
    if (!expected.count(name))
      throw FormatError(
          fmt::format("{}: tensor '{}' does not belong to this model or recipe", file.path(), name));
  }
}

void read_exactly(const std::string& path, const NamedTensors& targets) {
  const SafetensorsFile file(path);
  TensorParts parts;
  for (const auto& [name, target] : targets) parts.push_back({.name = name, .values = target});
  expect_exactly(file, parts);
  for (const auto& [name, target] : targets) file.read_into(name, target);
}

}  // namespace exfusion
