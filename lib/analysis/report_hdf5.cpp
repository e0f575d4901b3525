#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "analysis/report.h"
#include "analysis/write_hdf5.h"

namespace exfusion::analysis {
namespace {

using Json = nlohmann::ordered_json;

bool numeric(const Json& value) {
  return value.is_number() || value.is_boolean() || value.is_null();
}

double number(const Json& value) {
  if (value.is_null()) return std::nan("");
  return value.is_boolean() ? value.get<bool>() : value.get<double>();
}

void write_object(std::int64_t parent, const std::string& name, const Json& object);

void write_value(std::int64_t group, const std::string& name, const Json& value) {
  if (value.is_string()) return write_texts(group, name, {value.get<std::string>()}, true);
  if (value.is_object()) return write_object(group, name, value);
  if (numeric(value)) return write_values(group, name, {}, std::vector{number(value)});
  if (std::all_of(value.begin(), value.end(), numeric)) {
    std::vector<double> values;
    for (const Json& one : value) values.push_back(number(one));
    return write_values(group, name, {values.size()}, values);
  }
  const Hdf5Handle rows = create_group(group, name);
  for (std::size_t i = 0; i < value.size(); ++i) write_value(rows, std::to_string(i), value[i]);
}

void write_object(std::int64_t parent, const std::string& name, const Json& object) {
  const Hdf5Handle group = create_group(parent, name);
  for (const auto& [key, value] : object.items()) write_value(group, key, value);
}

}  // namespace

void write_report_hdf5(const Json& report, const std::filesystem::path& file) {
  write_hdf5_file(file, [&](std::int64_t opened) {
    write_texts(opened, "format", {"exfusion-analysis"}, true);
    for (const Json& layer : report.at("layers")) {
      const std::string number = layer.at("layer").dump();
      write_object(opened, "layer_" + std::string(number.size() < 3 ? 3 - number.size() : 0, '0') + number,
                   layer);
    }
    for (const auto& [key, value] : report.items()) {
      if (key != "layers") write_value(opened, key, value);
    }
  });
}

}  // namespace exfusion::analysis
