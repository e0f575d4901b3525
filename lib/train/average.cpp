#include "train/average.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>

#include "core/error.h"
#include "core/log.h"
#include "train/checkpoint.h"
#include "train/evaluation.h"

namespace exfusion {
namespace {

namespace fs = std::filesystem;

// The newest `count` checkpoints that can be used, oldest first.
std::vector<fs::path> last_checkpoints(const fs::path& run, std::int64_t count) {
  std::vector<fs::path> found;
  for (const fs::path& folder : checkpoint_folders(run / "checkpoints")) {
    if (static_cast<std::int64_t>(found.size()) == count) break;
    try {
      read_checkpoint(folder);
      found.push_back(folder);
    } catch (const BadInput& error) {
      log_warning("checkpoint not used: {}", error.what());
    }
  }
  if (static_cast<std::int64_t>(found.size()) < count)
    throw CheckpointError(
        fmt::format("{}: has {} checkpoint(s), an average of {} was asked for: a recipe with "
                    "checkpoint.keep of at least {} keeps so many",
                    run.string(), found.size(), count, count));
  std::reverse(found.begin(), found.end());
  return found;
}

using Tensors = std::vector<at::Tensor>;

// The sum of `sums` (none: nothing yet) and the parameters of a checkpoint, in double precision; reads these
// into the model.
Tensors plus_checkpoint(const Tensors& sums, Model& model, const fs::path& checkpoint) {
  load_weights(checkpoint / "model.safetensors", model);
  Tensors total;
  for (const at::Tensor& parameter : model.parameters()) total.push_back(parameter.detach().to(at::kDouble));
  for (std::size_t i = 0; i < sums.size(); ++i) total[i] += sums[i];
  return total;
}

// The mean of `count` checkpoints, rounded to the parameters' type.
void write_mean(const Tensors& sums, std::int64_t count, Model& model) {
  const Tensors parameters = model.parameters();
  for (std::size_t i = 0; i < sums.size(); ++i)
    parameters[i].detach().copy_(sums[i] / static_cast<double>(count));
}

std::int64_t step_of(const fs::path& checkpoint) {
  return std::stoll(checkpoint.filename().string().substr(5));  // step-NNNNNNNN
}

// The held-out images of the run, the same as in training.
Datasets held_out_data(const fs::path& run, const RunConfig& config, const fs::path& checkpoint) {
  if (config.data.validation == 0)
    throw CheckpointError(
        fmt::format("{}: nothing is held out (data.validation is 0), and a greedy average is "
                    "never chosen on the test set; leave --greedy out",
                    run.string()));
  Datasets data = make_datasets(config.data, config.seed, config.model.image_shape());
  const std::string before = read_checkpoint(checkpoint).data_checksum;
  if (data.checksum != before)
    throw CheckpointError(fmt::format("{}: trained on data with checksum {}, data.root now holds {}",
                                      run.string(), before, data.checksum));
  return data;
}

void average_greedily(Soup& soup, std::vector<fs::path> checkpoints, const fs::path& run) {
  const RunConfig& config = *soup.model.run;
  Model& model = *soup.model.model;
  const Datasets data = held_out_data(run, config, checkpoints.back());
  const auto accuracy = [&] {
    return evaluate(model, *data.validation, config.data, config.model.vit.classes, "fp32").accuracy;
  };
  std::vector<std::pair<double, fs::path>> ranked;
  std::reverse(checkpoints.begin(), checkpoints.end());  // of equal ones the newest first
  for (const fs::path& checkpoint : checkpoints) {
    load_weights(checkpoint / "model.safetensors", model);
    ranked.emplace_back(accuracy(), checkpoint);
  }
  std::stable_sort(ranked.begin(), ranked.end(),
                   [](const auto& x, const auto& y) { return x.first > y.first; });

  Tensors kept;
  std::int64_t count = 0;
  double best = -1.0;
  for (const auto& [alone, checkpoint] : ranked) {
    Tensors candidate = plus_checkpoint(kept, model, checkpoint);
    write_mean(candidate, count + 1, model);
    const double found = accuracy();
    soup.members.push_back({step_of(checkpoint), alone, found >= best});
    if (found < best) continue;
    best = found;
    kept = std::move(candidate);
    ++count;
  }
  load_weights(checkpoints.front() / "model.safetensors", model);  // buffers are not averaged: the newest
  write_mean(kept, count, model);
  soup.validation_accuracy = best;
}

void average_uniformly(Soup& soup, const std::vector<fs::path>& checkpoints) {
  Tensors sums;
  for (const fs::path& checkpoint : checkpoints) {
    sums = plus_checkpoint(sums, *soup.model.model, checkpoint);
    soup.members.push_back({step_of(checkpoint), std::nullopt, true});
  }
  write_mean(sums, static_cast<std::int64_t>(checkpoints.size()), *soup.model.model);
}

}  // namespace

Soup average_checkpoints(const fs::path& run, std::int64_t count, bool greedy) {
  const at::NoGradGuard no_grad;
  if (!fs::is_directory(run / "checkpoints"))
    throw CheckpointError(
        fmt::format("{}: not a run (no checkpoints/); an average needs the folder of a run", run.string()));
  const std::vector<fs::path> checkpoints = last_checkpoints(run, count);
  Soup soup{.model = load_model(checkpoints.back(), "last")};
  if (greedy)
    average_greedily(soup, checkpoints, run);
  else
    average_uniformly(soup, checkpoints);
  const auto kept = std::count_if(soup.members.begin(), soup.members.end(),
                                  [](const SoupMember& member) { return member.kept; });
  if (count == 1) return soup;
  soup.model.what =
      fmt::format("{} average of {} of the last {} checkpoints", greedy ? "greedy" : "uniform", kept, count);
  soup.model.test_accuracy.reset();  // that of the last checkpoint alone
  return soup;
}

}  // namespace exfusion
