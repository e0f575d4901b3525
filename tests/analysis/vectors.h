// Published test vectors: tests/data/analysis/*.json, each with `cases` of inputs, expected values and
// absolute tolerances.
#pragma once
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

namespace exfusion::analysis {

using nlohmann::json;

inline json vectors(const std::string& name) {
  std::ifstream file(std::string(EXFUSION_TEST_DATA) + "/analysis/" + name + ".json");
  return json::parse(file);
}

inline json vector_case(const std::string& file, const std::string& name) {
  const json all = vectors(file);
  for (const json& one : all.at("cases")) {
    if (one.at("name") == name) return one;
  }
  ADD_FAILURE() << file << " has no case " << name;
  return {};
}

inline std::vector<double> numbers(const json& values) {
  return values.get<std::vector<double>>();
}

// Row after row.
inline std::vector<double> table(const json& rows) {
  std::vector<double> values;
  for (const json& row : rows)
    for (const json& value : row) values.push_back(value.get<double>());
  return values;
}

inline void expect_near(std::span<const double> found, std::span<const double> expected, double tolerance) {
  ASSERT_EQ(found.size(), expected.size());
  for (std::size_t i = 0; i < found.size(); ++i) EXPECT_NEAR(found[i], expected[i], tolerance) << "at " << i;
}

// One key of a case's expected values, with its tolerance.
inline void expect_key(const json& one, const char* key, double found) {
  EXPECT_NEAR(found, one.at("expected").at(key).get<double>(), one.at("tolerance").at(key).get<double>())
      << one.at("name") << " " << key;
}
inline void expect_key(const json& one, const char* key, const std::vector<double>& found) {
  SCOPED_TRACE(one.at("name").get<std::string>() + " " + key);
  expect_near(found, numbers(one.at("expected").at(key)), one.at("tolerance").at(key).get<double>());
}

}  // namespace exfusion::analysis
