// Computes statistics on behalf of tests/python/test_compare.py, which has scipy: reads one JSON object per
// line,
//   {"differences": [...], "confidence": c} or {"p": [...]} or {"n": n, "effect": e, "deviation": s}
// and prints one with the answers.
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>

#include "compare/statistics.h"

using namespace exfusion;
using nlohmann::json;

namespace {

json pair(const Interval& interval) {
  return {interval.low, interval.high};
}

json answer(const json& asked) {
  if (asked.contains("p")) return {{"holm", holm(asked["p"].get<std::vector<double>>())}};
  if (asked.contains("n")) {
    const double effect = asked["effect"], deviation = asked["deviation"];
    const auto needed = seeds_needed(effect, deviation);
    return {{"power", paired_power(asked["n"].get<std::int64_t>(), effect, deviation)},
            {"needed", needed ? json(*needed) : json(nullptr)}};
  }
  const auto differences = asked["differences"].get<std::vector<double>>();
  const double confidence = asked["confidence"];
  return {{"mean", mean(differences)},
          {"deviation", standard_deviation(differences)},
          {"t", pair(t_interval(differences, confidence))},
          {"bootstrap", pair(bootstrap_interval(differences, confidence))},
          {"sign_flip", sign_flip_p(differences)}};
}

}  // namespace

int main() {
  for (std::string line; std::getline(std::cin, line);)
    std::cout << answer(json::parse(line)).dump() << std::endl;
}
