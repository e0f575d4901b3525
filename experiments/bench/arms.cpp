#include "arms.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "core/error.h"
#include "core/recipe.h"
#include "train/passes.h"

namespace exfusion {

const BenchModel& bench_model(const std::string& name) {
  static const std::array<BenchModel, 3> models = {{{"vit_s", "vit_s.yaml", 64, {}},
                                                    {"vit_ti", "vit_s.yaml", 64, {"model.size=Ti"}},
                                                    {"quickstart", "quickstart.yaml", 128, {}}}};
  const auto model = std::ranges::find(models, name, &BenchModel::name);
  if (model == models.end()) throw UsageError("--models " + name + ": choose vit_s, vit_ti or quickstart");
  return *model;
}

RunConfig arm_config(const BenchModel& model, std::int64_t batch, const std::string& precision,
                     const std::string& arm, const std::vector<std::string>& given) {
  std::vector<std::string> sets = model.sets;
  const auto colon = arm.find(':');
  if (colon == std::string::npos && arm != "dense")
    throw UsageError("--arms " + arm + ": give dense, or WEIGHTS:N such as learned:4");
  if (arm != "dense")
    sets.push_back(
        fmt::format("fusion={{experts: {}, weights: {}}}", arm.substr(colon + 1), arm.substr(0, colon)));
  for (const char* key : {"global_batch", "micro_batch"})
    sets.push_back(fmt::format("train.{}={}", key, batch));
  sets.insert(sets.end(), {"train.precision=" + precision, "train.clip=1.0", "model.drop_path=0.0",
                           "data.name=synthetic"});
  sets.insert(sets.end(), given.begin(), given.end());
  if (arm == "dense") sets.emplace_back("fusion=none");  // last: a key of fusion would bring experts back
  Recipe recipe = Recipe::load(fmt::format("{}/{}", EXFUSION_RECIPES, model.recipe), sets);
  return parse_run(recipe);
}

std::string row_name(std::string arm) {
  const auto colon = arm.find(':');
  if (colon != std::string::npos) arm.replace(colon, 1, "_n");
  return arm;
}

Batch first_batch(const RunConfig& config, const ProcessGroup& group) {
  const Datasets data = make_datasets(config.data, config.seed, config.model.image_shape());
  const auto [first, last] = rows_of_rank(config, group.rank(), group.world());
  return make_batch(*data.train,
                    {.data = config.data,
                     .seed = config.seed,
                     .global_batch = config.train.global_batch,
                     .classes = config.model.vit.classes,
                     .first = first,
                     .count = last - first},
                    0);
}

}  // namespace exfusion
