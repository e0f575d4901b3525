// The parts of a report: layers by the number of their block.
#pragma once
#include <cstdint>
#include <nlohmann/json.hpp>

namespace exfusion {

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

}  // namespace exfusion
