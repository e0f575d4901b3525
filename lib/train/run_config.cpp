#include "train/run_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <sstream>

#include "core/error.h"
#include "core/recipe.h"
#include "nn/layer_selection.h"

namespace exfusion {
namespace {

constexpr std::int64_t kMany = 1'000'000'000;

TrainConfig parse_train(Section section) {
  TrainConfig config;
  config.epochs = section.in_range("epochs", config.epochs, 0.0, 1e6);
  config.steps = section.optional_in_range<std::int64_t>("steps", 1, kMany).value_or(0);
  if (config.steps == 0 && config.epochs <= 0.0)
    section.problem("epochs", "train.epochs must be above 0, or train.steps be given");
  config.global_batch = section.in_range<std::int64_t>("global_batch", config.global_batch, 1, 1 << 20);
  config.micro_batch =
      section.in_range<std::int64_t>("micro_batch", config.global_batch, 1, config.global_batch);
  config.recompute = section.get<bool>("recompute", config.recompute);
  config.precision = section.one_of("precision", config.precision, {"fp32", "bf16"});
  config.device = section.one_of("device", config.device, {"cpu", "cuda"});
  config.clip = section.in_range("clip", config.clip, 0.0, 1e9);
  config.ema = section.in_range("ema", config.ema, 0.0, 0.999999999);
  config.eval_every_steps =
      section.in_range<std::int64_t>("eval_every_steps", config.eval_every_steps, 0, kMany);
  config.log_every_steps =
      section.in_range<std::int64_t>("log_every_steps", config.log_every_steps, 1, kMany);
  config.threads = section.in_range<std::int64_t>("threads", config.threads, 0, 1024);
  config.max_skipped = section.in_range<std::int64_t>("max_skipped", config.max_skipped, 1, kMany);
  return config;
}

CheckpointConfig parse_checkpoint(Section section) {
  CheckpointConfig config;
  config.every_steps = section.in_range<std::int64_t>("every_steps", config.every_steps, 0, kMany);
  config.every_epochs = section.in_range<std::int64_t>("every_epochs", config.every_epochs, 0, kMany);
  config.keep = section.in_range<std::int64_t>("keep", config.keep, 1, 1'000'000);
  return config;
}

std::string parse_name(Section& root) {
  const std::string name = root.get<std::string>("name", "run");
  const bool plain = !name.empty() && name.size() <= 128 && name.front() != '.' &&
                     std::all_of(name.begin(), name.end(), [](unsigned char c) {
                       return std::isalnum(c) || c == '_' || c == '-' || c == '.';
                     });
  if (!plain)
    root.problem("name", "name must be letters, digits, '_', '-' and '.' (it names the run folder), got '" +
                             name + "'");
  return name;
}

// What only the model and the training beside it can tell about the fusion section.
void check_fusion(Section& root, const RunConfig& config) {
  Section section = root.child("fusion");
  const std::string problem = layer_selection_problem(config.fusion->layers, config.model.vit.depth);
  if (!problem.empty()) section.problem("layers", "fusion." + problem);
  if (config.fusion->init == "split" && config.fusion->experts > config.model.vit.hidden)
    section.problem("init", fmt::format("split: {} experts cannot share {} hidden units",
                                        config.fusion->experts, config.model.vit.hidden));
  if (config.fusion->routes_in_step() && (config.dist.deterministic() || config.dist.shard != "none"))
    section.problem("forward",
                    fmt::format("forward: {} fuses inside the forward pass, which goes with neither "
                                "dist.reduction: deterministic nor dist.shard",
                                config.fusion->forward));
  else if (config.fusion->routes_in_step() && config.train.micro_batch != config.train.global_batch)
    section.problem("forward",
                    fmt::format("forward: {} needs the routing of the whole global batch before the FFN "
                                "runs, so train.micro_batch must be train.global_batch",
                                config.fusion->forward));
}

// config.fusion is what control has left of it.
void check_shard(Section& root, const RunConfig& config) {
  if (config.dist.shard != "experts" || (config.fusion && config.fusion->materialize)) return;
  const std::string& ffn = config.model.vit.ffn.name;
  root.child("dist").problem(
      "shard",
      fmt::format("dist.shard: experts shares out the fused experts, and this run has none ({}): choose all, "
                  "for the moments of the dense parameters, or none",
                  config.control.name != "none" ? "control: " + config.control.name
                  : config.fusion               ? "fusion.materialize: false"
                  : ffn != "dense"              ? "model.ffn.name: " + ffn
                                                : "fusion: none"));
}

// What computes on the host's memory has no way to a GPU yet (docs/cuda.md).
void check_device(Section& root, const RunConfig& config) {
  if (config.train.device == "cpu") return;
  Section section = root.child("train");
  if (config.fusion && config.fusion->weights == "memory")
    section.problem("device",
                    "train.device: cuda has no fusion.weights: memory, whose router runs on the CPU alone");
  if (config.analysis.on())
    section.problem("device", "train.device: cuda has no analysis, which runs on the CPU alone");
  if (config.fusion && config.fusion->shares_moments())
    section.problem("device", "train.device: cuda has no fusion.state: shared_moments, nor a kernel for it");
  if (config.model.vit.ffn.name != "dense")
    section.problem("device",
                    fmt::format("train.device: cuda has no model.ffn.name: {}, which runs on the CPU alone",
                                config.model.vit.ffn.name));
}

// Where the weights come from: fusion.from was read with its section.
void parse_start(Section& root, RunConfig& config, const std::string& upcycled_from) {
  const auto init_from = root.optional_string("init_from");
  if (init_from && init_from->empty())
    root.problem("init_from", "init_from is empty: leave it out to start from fresh values");
  config.init_from = init_from.value_or("");
  if (!config.init_from.empty() && config.model.vit.ffn.name != "dense")
    root.problem("init_from",
                 fmt::format("init_from loads a dense model, and model.ffn.name: {} has no dense FFNs "
                             "to load into",
                             config.model.vit.ffn.name));
  if (!config.init_from.empty() && config.control.name == "dense_init_scaled")
    root.problem("control", "dense_init_scaled scales fresh initial values; with init_from there are none");
  const bool upcycled = !upcycled_from.empty();
  if (upcycled && !config.init_from.empty())
    root.problem("init_from", "init_from and fusion.from both say where to start: give one of them");
  if (config.fusion && !upcycled && !config.init_from.empty())
    root.problem(
        "init_from",
        "fused FFNs start from experts, not from init_from: give fusion.from instead, or control: dense");
  if (upcycled || !config.init_from.empty())
    config.init_skip = root.words("init_skip", {});
  else
    root.without_effect("init_skip", "init_skip belongs to init_from or fusion.from");
  // A control of an upcycled recipe goes on from the same dense model.
  if (upcycled && !config.fusion) config.init_from = upcycled_from;
}

}  // namespace

RunConfig parse_run(Recipe& recipe) {
  Section root = recipe.root();
  RunConfig config;
  config.name = parse_name(root);
  config.seed = static_cast<std::uint64_t>(root.in_range<std::int64_t>("seed", 0, 0, INT64_MAX));
  config.model = ModelConfig::parse(root.child("model"));
  if (auto fusion = root.optional_child("fusion")) config.fusion = FusionConfig::parse(*fusion);
  config.data = DataConfig::parse(root.child("data"));
  config.train = parse_train(root.child("train"));
  config.optim = AdamWConfig::parse(root.child("optim"));
  config.checkpoint = parse_checkpoint(root.child("checkpoint"));
  config.analysis = AnalysisConfig::parse(root.child("analysis"));
  config.dist = DistConfig::parse(root.child("dist"), config.train.global_batch);
  if (config.fusion) check_fusion(root, config);
  const bool fused_recipe = config.fusion.has_value();
  const std::string upcycled_from = config.fusion ? config.fusion->from : "";
  config.control = parse_control(root, config.fusion, config.optim);
  parse_start(root, config, upcycled_from);
  check_device(root, config);
  check_shard(root, config);
  if (fused_recipe && config.model.vit.ffn.name != "dense" && config.control.name != "dense")
    root.child("model").child("ffn").problem(
        "name",
        fmt::format("model.ffn.name: {} keeps its experts inside the model, fusion makes dense FFNs into "
                    "experts: set fusion: none, or control: dense beside a fused recipe",
                    config.model.vit.ffn.name));
  recipe.finish();
  return config;
}

const std::vector<std::string> kMayChange = {"train.epochs",
                                             "train.steps",
                                             "train.eval_every_steps",
                                             "train.log_every_steps",
                                             "train.threads",
                                             "train.recompute",
                                             "train.max_skipped",
                                             "data.workers",
                                             "data.root",
                                             "checkpoint.every_steps",
                                             "checkpoint.every_epochs",
                                             "checkpoint.keep"};

bool may_change_on_resume(const std::string& key) {
  return key.starts_with("dist.") || std::find(kMayChange.begin(), kMayChange.end(), key) != kMayChange.end();
}

namespace {

// The lines of a resolved recipe but those of keys that may change, all of `dist` among them. A key's section
// does not matter: no two sections share such a key with one that may not change.
std::vector<std::string> fixed_lines(const std::string& resolved) {
  std::vector<std::string> lines;
  std::istringstream text(resolved);
  bool in_dist = false;
  for (std::string line; std::getline(text, line);) {
    if (!line.starts_with(" ")) in_dist = line.starts_with("dist:");
    if (in_dist) continue;
    const std::string key = line.substr(0, line.find(':')).substr(line.find_first_not_of(' '));
    const bool free = std::any_of(kMayChange.begin(), kMayChange.end(),
                                  [&](const std::string& name) { return name.ends_with("." + key); });
    if (!free) lines.push_back(line);
  }
  return lines;
}

}  // namespace

std::string changed_line(const std::string& before, const std::string& now) {
  Recipe old = Recipe::parse(before, "the recipe of the checkpoint", {});
  parse_run(old);
  const std::vector<std::string> old_lines = fixed_lines(old.resolved()), new_lines = fixed_lines(now);
  for (std::size_t i = 0; i < new_lines.size(); ++i) {
    if (i >= old_lines.size() || old_lines[i] != new_lines[i]) return new_lines[i];
  }
  return new_lines.size() < old_lines.size() ? old_lines[new_lines.size()] : "";
}

std::int64_t total_steps(const TrainConfig& config, std::int64_t steps_per_epoch) {
  if (config.steps > 0) return config.steps;
  const double steps = std::llround(config.epochs * static_cast<double>(steps_per_epoch));
  return std::max<std::int64_t>(1, static_cast<std::int64_t>(steps));
}

}  // namespace exfusion
