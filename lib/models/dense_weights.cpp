#include "models/dense_weights.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <set>

#include "core/error.h"
#include "io/safetensors.h"

namespace exfusion {
namespace {

using Shape = std::vector<std::int64_t>;

// A name from a file as it may stand in a message.
std::string shown(const std::string& name) {
  constexpr std::size_t kLongest = 120;
  const std::string text = nlohmann::json(name).dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
  const std::string inside = text.substr(1, text.size() - 2);
  return "'" + (inside.size() > kLongest ? inside.substr(0, kLongest) + "…" : inside) + "'";
}

std::string shown(const Shape& shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

// Which tensors a recipe's skip list covers.
class SkipList {
 public:
  explicit SkipList(const std::vector<std::string>& entries)
      : entries_(entries), used_(entries.size(), false) {}
  bool covers(const std::string& name) {
    bool covered = false;
    for (std::size_t i = 0; i < entries_.size(); ++i) {
      const bool fits = name == entries_[i] || (entries_[i].ends_with('.') && name.starts_with(entries_[i]));
      used_[i] = used_[i] || fits;
      covered = covered || fits;
    }
    return covered;
  }
  std::vector<std::string> unused() const {
    std::vector<std::string> names;
    for (std::size_t i = 0; i < entries_.size(); ++i) {
      if (!used_[i]) names.push_back(entries_[i]);
    }
    return names;
  }

 private:
  const std::vector<std::string>& entries_;
  std::vector<bool> used_;
};

// The side of the square grid behind `prefix` rows, or 0 if there is none.
std::int64_t grid_side(std::int64_t rows, std::int64_t prefix) {
  if (rows <= prefix) return 0;
  const auto side = static_cast<std::int64_t>(std::llround(std::sqrt(static_cast<double>(rows - prefix))));
  return side * side == rows - prefix ? side : 0;
}

// How the file's tensor becomes the model's.
struct Plan {
  std::string name;
  at::Tensor target;
  bool resize = false;
};

// What is wrong with the file's tensor for this parameter, "" if nothing is.
std::string mismatch(const TensorInfo& info, Plan& plan, std::int64_t prefix) {
  const Shape expected = plan.target.sizes().vec();
  if (info.dtype != "F32" && info.dtype != "F16" && info.dtype != "BF16")
    return fmt::format("is {}, expected F32, F16 or BF16", info.dtype);
  if (info.shape == expected) return "";
  if (plan.name != "pos_embed" || info.shape.size() != 3 || info.shape[0] != 1 ||
      info.shape[2] != expected[2])
    return fmt::format("is {}, expected {}", shown(info.shape), shown(expected));
  if (grid_side(info.shape[1], prefix) == 0)
    return fmt::format("has {} positions, {} and no square grid, expected {}", info.shape[1],
                       prefix == 0 ? "no class token" : "a class token", expected[1]);
  plan.resize = true;
  return "";
}

void copy_tensor(const SafetensorsFile& file, const Plan& plan, std::int64_t prefix,
                 DenseWeightsReport& report) {
  const at::Tensor source = file.read(plan.name).to(at::kFloat);
  if (!plan.resize) {
    plan.target.copy_(source);
    report.matched.push_back(plan.name);
    return;
  }
  plan.target.copy_(resize_position_embedding(source, prefix, grid_side(plan.target.size(1), prefix)));
  report.resized.push_back(
      fmt::format("{} {} -> {}", plan.name, shown(source.sizes().vec()), shown(plan.target.sizes().vec())));
}

void check_finite(const SafetensorsFile& file, const std::vector<Plan>& plans) {
  for (const Plan& plan : plans) {
    if (!file.read(plan.name).isfinite().all().item<bool>())
      throw FormatError(
          fmt::format("{}: {} holds values that are not finite", file.path(), shown(plan.name)));
  }
}

}  // namespace

at::Tensor resize_position_embedding(const at::Tensor& embedding, std::int64_t prefix, std::int64_t grid) {
  const std::int64_t rows = embedding.size(1) - prefix, dim = embedding.size(2);
  const std::int64_t side = grid_side(embedding.size(1), prefix);
  const at::Tensor image =
      embedding.narrow(1, prefix, rows).reshape({1, side, side, dim}).permute({0, 3, 1, 2});
  const at::Tensor resized = at::_upsample_bicubic2d_aa(image, {grid, grid}, /*align_corners=*/false);
  return at::cat(
      {embedding.narrow(1, 0, prefix), resized.permute({0, 2, 3, 1}).reshape({1, grid * grid, dim})}, 1);
}

std::vector<std::string> DenseWeightsReport::lines() const {
  std::vector<std::string> text = {
      fmt::format("{}: {} tensors taken", file, matched.size() + resized.size())};
  for (const std::string& tensor : resized) text.push_back("resized: " + tensor);
  for (const std::string& name : fresh) text.push_back("skipped, own initial values: " + name);
  for (const std::string& name : left_out) text.push_back("left out of the file: " + shown(name));
  return text;
}

DenseWeightsReport load_dense_weights(Model& model, const std::string& path,
                                      const std::vector<std::string>& skip) {
  const at::NoGradGuard no_grad;
  const SafetensorsFile file(path);
  DenseWeightsReport report{.file = path};
  SkipList skipped(skip);
  std::vector<std::string> problems;
  std::vector<Plan> plans;
  std::set<std::string> names;
  for (const auto& [name, tensor] : model_tensors(model)) names.insert(name);
  const std::int64_t prefix = names.contains("cls_token") ? 1 : 0;
  for (const auto& [name, tensor] : model_tensors(model)) {
    if (skipped.covers(name)) {
      report.fresh.push_back(name);
    } else if (!file.contains(name)) {
      problems.push_back(shown(name) + " is missing");
    } else {
      plans.push_back({name, tensor});
      const std::string problem = mismatch(file.tensors().at(name), plans.back(), prefix);
      if (!problem.empty()) problems.push_back(shown(name) + " " + problem);
    }
  }
  for (const auto& [name, info] : file.tensors()) {
    if (skipped.covers(name))
      report.left_out.push_back(name);
    else if (!names.contains(name))
      problems.push_back(shown(name) + " does not belong to this model");
  }
  for (const std::string& entry : skipped.unused())
    problems.push_back("init_skip names " + shown(entry) + ", which is neither in the file nor in the model");
  if (!problems.empty())
    throw FormatError(
        fmt::format("{}: {}; a tensor (or a beginning that ends with '.') named in init_skip is "
                    "left out",
                    path, fmt::join(problems, "; ")));
  check_finite(file, plans);
  for (const Plan& plan : plans) copy_tensor(file, plan, prefix, report);
  return report;
}

}  // namespace exfusion
