// Reports as JSON: an undefined number is null, and its reason stands in `undefined` under its path.
#pragma once
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "analysis/bootstrap.h"

namespace exfusion::analysis {

using Json = nlohmann::ordered_json;

inline Json interval_json(const Interval& one) {
  return one.defined() ? Json({one.low, one.high}) : Json(nullptr);
}

// Builds one object and notes the reason of every null under its path ("heldout_l1.mfg", two levels at most).
class Fields {
 public:
  void put(const std::string& path, const Quantity& one) {
    put(path, one.defined() ? Json(one.value) : Json(nullptr), one.reason);
  }
  void put(const std::string& path, const Interval& one) { put(path, interval_json(one), one.reason); }
  void put(const std::string& path, Json value, const std::string& reason = "") {
    const std::size_t dot = path.find('.');
    (dot == path.npos ? object_[path] : object_[path.substr(0, dot)][path.substr(dot + 1)]) =
        std::move(value);
    note(path, reason);
  }
  void note(const std::string& path, const std::string& reason) {
    if (!reason.empty()) undefined_[path] = reason;
  }
  Json finished() {
    object_["undefined"] = std::move(undefined_);
    return std::move(object_);
  }

 private:
  Json object_ = Json::object(), undefined_ = Json::object();
};

}  // namespace exfusion::analysis
