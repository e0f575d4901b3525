// bench_step: milliseconds of a training step, arms interleaved in one process: dense, and fused with N
// experts.
//
//   bench_step RECIPE [--arms dense,learned:4,learned:8] [--rounds 15] [--json FILE]
//   bench_step RECIPE --serve ARM       one step per line read from stdin, its milliseconds on stdout
//   (peers.py interleaves this
//                                       process with PyTorch's)
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <fmt/format.h>
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "core/recipe.h"
#include "data/loader.h"
#include "train/run_config.h"
#include "train/step.h"

namespace exfusion {
namespace {

struct Arm {
  std::string name;
  RunConfig config;
  TrainingState state;
  std::vector<double> milliseconds;
};

// "dense", "static:4", "learned:8" applied to the recipe.
Arm make_arm(const std::string& recipe_file, const std::string& name, const std::vector<std::string>& more) {
  std::vector<std::string> sets = more;
  const auto colon = name.find(':');
  if (colon == std::string::npos) {
    sets.push_back("fusion=none");
  } else {
    sets.push_back("fusion={experts: " + name.substr(colon + 1) + ", weights: " + name.substr(0, colon) +
                   "}");
  }
  Recipe recipe = Recipe::load(recipe_file, sets);
  Arm arm{.name = name, .config = parse_run(recipe)};
  if (arm.config.train.threads > 0) at::set_num_threads(static_cast<int>(arm.config.train.threads));
  arm.state = make_training_state(arm.config);
  return arm;
}

double timed_step(Arm& arm, const Batch& batch) {
  const auto start = std::chrono::steady_clock::now();
  train_step(arm.config, arm.state, batch, 1'000'000, 1'000'000);
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

double peak_megabytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_maxrss) / 1024.0;
}

int serve(Arm& arm, const Batch& batch) {
  for (std::string line; std::getline(std::cin, line);) {
    std::cout << timed_step(arm, batch) << " " << peak_megabytes() << std::endl;
  }
  return 0;
}

int run(const std::vector<std::string>& arguments) {
  std::string recipe, arms = "dense,learned:4,learned:8", json_file, served;
  std::vector<std::string> sets;
  int rounds = 15;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const auto value = [&] { return i + 1 < arguments.size() ? arguments[++i] : std::string(); };
    if (arguments[i] == "--arms")
      arms = value();
    else if (arguments[i] == "--rounds")
      rounds = std::stoi(value());
    else if (arguments[i] == "--json")
      json_file = value();
    else if (arguments[i] == "--serve")
      served = value();
    else if (arguments[i] == "--set")
      sets.push_back(value());
    else
      recipe = arguments[i];
  }
  if (recipe.empty()) recipe = "recipes/vit_s.yaml", sets.push_back("train.global_batch=64");

  std::vector<Arm> all;
  std::istringstream names(served.empty() ? arms : served);
  for (std::string name; std::getline(names, name, ',');) all.push_back(make_arm(recipe, name, sets));
  const RunConfig& config = all.front().config;
  const Datasets data = make_datasets(config.data, config.seed, config.model.image_shape());
  const Batch batch = make_batch(
      *data.train, {config.data, config.seed, config.train.global_batch, config.model.vit.classes}, 0);
  for (Arm& arm : all) timed_step(arm, batch);
  if (!served.empty()) return serve(all.front(), batch);

  for (int round = 0; round < rounds; ++round) {
    for (Arm& arm : all) arm.milliseconds.push_back(timed_step(arm, batch));
  }
  nlohmann::json rows = nlohmann::json::array();
  const double base = median(all.front().milliseconds);
  fmt::print("{} images, {}, {} threads, {} rounds, medians\n{:<14}{:>10}{:>10}{:>10}\n",
             config.train.global_batch, config.train.precision, at::get_num_threads(), rounds, "arm", "ms",
             "over base", "ratio");
  for (const Arm& arm : all) {
    const double time = median(arm.milliseconds);
    fmt::print("{:<14}{:>10.1f}{:>10.1f}{:>10.3f}\n", arm.name, time, time - base, time / base);
    rows.push_back({{"name", "step/" + config.name + "/b" + std::to_string(config.train.global_batch) + "/" +
                                 arm.name + "/" + config.train.precision},
                    {"ratio", time / base},
                    {"samples", arm.milliseconds}});
  }
  if (!json_file.empty())
    std::ofstream(json_file) << nlohmann::json({{"threads", at::get_num_threads()}, {"rows", rows}}).dump(1)
                             << "\n";
  return 0;
}

}  // namespace
}  // namespace exfusion

int main(int argc, char** argv) {
  try {
    return exfusion::run({argv + 1, argv + argc});
  } catch (const std::exception& error) {
    fmt::print(stderr, "bench_step: {}\n", error.what());
    return 2;
  }
}
