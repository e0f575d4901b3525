// The parts of a report: layers by the number of their block.
#pragma once
#include <cmath>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

namespace exfusion {

// null where not finite.
inline nlohmann::ordered_json numbers_json(const std::vector<double>& values) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const double one : values)
    list.push_back(std::isfinite(one) ? nlohmann::ordered_json(one) : nlohmann::ordered_json(nullptr));
  return list;
}

// The layer of a block, made in its place where there is none yet.
inline nlohmann::ordered_json& layer_of(nlohmann::ordered_json& layers, std::int64_t block) {
  auto place = layers.begin();
  while (place != layers.end() && place->at("layer").get<std::int64_t>() < block) ++place;
  if (place != layers.end() && place->at("layer").get<std::int64_t>() == block) return *place;
  nlohmann::ordered_json made = {{"layer", block}, {"undefined", nlohmann::ordered_json::object()}};
  return *layers.insert(place, std::move(made));
}

// Adds the fields of an object, and its `undefined` to that of the other, which stays the last.
inline void add_fields(nlohmann::ordered_json& to, nlohmann::ordered_json fields) {
  nlohmann::ordered_json undefined = nlohmann::ordered_json::object();
  for (const auto* object : {&to, &fields}) {
    const auto found = object->find("undefined");
    if (found != object->end()) undefined.update(*found);
  }
  to.erase("undefined");
  for (auto& [name, value] : fields.items()) to[name] = std::move(value);
  to["undefined"] = std::move(undefined);
}

// The fields that are wanted, by name, and the reasons of what is undefined in them.
template <class Wanted>
nlohmann::ordered_json only_fields(const nlohmann::ordered_json& object, const Wanted& wanted) {
  nlohmann::ordered_json kept = nlohmann::ordered_json::object(), undefined = kept;
  for (const auto& [name, value] : object.items()) {
    if (name != "undefined" && wanted(name)) kept[name] = value;
  }
  for (const auto& [path, reason] : object.at("undefined").items()) {
    if (wanted(path.substr(0, path.find('.')))) undefined[path] = reason;
  }
  kept["undefined"] = std::move(undefined);
  return kept;
}

}  // namespace exfusion
