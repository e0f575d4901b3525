#include "train/memory.h"

#include <cmath>

#include "tiny_run.h"
#include "train/cost.h"

namespace exfusion {
namespace {

namespace fs = std::filesystem;

TEST(StateMemory, IsWhatTheStateHoldsOnceItExists) {
  const std::vector<std::vector<std::string>> recipes = {
      {},
      {"train.ema=0.9"},
      {"fusion={experts: 3, weights: static}"},
      {"fusion={experts: 5, weights: learned, layers: [1]}", "train.ema=0.9"},
      {"fusion={experts: 3, weights: memory}"},
      {"fusion={experts: 4, weights: memory, forward: routed}", "train.micro_batch=32"},
      {"fusion={experts: 3, weights: static, materialize: false}"},
      {"fusion={experts: 3, weights: learned, state: shared_moments}"},
      {"fusion={experts: 3, weights: learned}", "train.precision=bf16"},
      {"model.ffn={name: topk, experts: 3}"},
      {"model.pool=avg", "model.channels=3", "model.mlp_ratio=1.5"}};
  for (const auto& sets : recipes) {
    const TinyRun run(sets);
    EXPECT_EQ(state_memory(run.config).total(), training_cost(run.config, run.state).state_bytes)
        << ::testing::PrintToString(sets);
  }
}

TEST(StateMemory, NamesItsParts) {
  const TinyRun run({"fusion={experts: 3, weights: learned}"});
  const StateMemory state = state_memory(run.config);
  const auto numbers = [](const at::Tensor& tensor) { return static_cast<double>(tensor.numel()); };
  double model = 0.0, experts = 0.0;
  for (const auto& item : run.state.model->named_parameters()) model += numbers(item.value());
  for (const ExpertBank& bank : run.state.banks) {
    for (const at::Tensor& tensor : bank.expert_tensors()) experts += numbers(tensor);
  }
  EXPECT_EQ(state.weights, 4 * model);
  EXPECT_EQ(state.gradients, 4 * model);
  EXPECT_EQ(state.experts, 12 * experts);
  EXPECT_EQ(state.moments, 8 * (model - experts / 3));
}

// A machine made of files.
struct Machine {
  TestFolder root;
  void has(const std::string& file, const std::string& text) const {
    const fs::path path = root.path() / file;
    fs::create_directories(path.parent_path());
    std::ofstream(path) << text;
  }
  double available() const { return available_memory(root.path()); }
};

TEST(AvailableMemory, IsWhatTheKernelSays) {
  const Machine machine;
  EXPECT_TRUE(std::isinf(machine.available()));
  machine.has("proc/meminfo",
              "MemTotal:  9000 kB\nMemFree:  10 kB\nMemAvailable:   1000 kB\nBuffers: 5 kB\n");
  EXPECT_EQ(machine.available(), 1024e3);
  machine.has("proc/self/cgroup", "nonsense\n0::/\n");
  EXPECT_EQ(machine.available(), 1024e3);
}

TEST(AvailableMemory, IsWhatTheControlGroupLeavesIfThatIsLess) {
  const Machine machine;
  machine.has("proc/meminfo", "MemAvailable:   1000 kB\n");
  machine.has("proc/self/cgroup", "0::/jobs/ours\n");
  machine.has("sys/fs/cgroup/jobs/ours/memory.max", "max\n");
  machine.has("sys/fs/cgroup/jobs/ours/memory.current", "100\n");
  EXPECT_EQ(machine.available(), 1024e3);
  machine.has("sys/fs/cgroup/jobs/ours/memory.max", "500000\n");
  EXPECT_EQ(machine.available(), 499900);
  machine.has("sys/fs/cgroup/jobs/memory.max", "300000\n");  // a limit of a group above counts too
  machine.has("sys/fs/cgroup/jobs/memory.current", "120000\n");
  EXPECT_EQ(machine.available(), 180000);
  machine.has("sys/fs/cgroup/jobs/memory.stat", "anon 5\ninactive_file 1000\n");  // files can be dropped
  EXPECT_EQ(machine.available(), 181000);
  machine.has("sys/fs/cgroup/jobs/memory.current", "400000\n");
  EXPECT_EQ(machine.available(), 0);
}

TEST(AvailableMemory, KnowsTheFirstVersionOfControlGroupsAndContainersThatSeeOnlyTheirOwn) {
  const Machine machine;
  machine.has("proc/meminfo", "MemAvailable:   1000 kB\n");
  machine.has("proc/self/cgroup", "7:cpu,memory:/not/seen/here\n3:cpuset:/\n0::/\n");
  machine.has("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  machine.has("sys/fs/cgroup/memory/memory.usage_in_bytes", "100\n");
  EXPECT_EQ(machine.available(), 1024e3);
  machine.has("sys/fs/cgroup/memory/memory.limit_in_bytes", "2000\n");
  machine.has("sys/fs/cgroup/memory/memory.stat", "inactive_file 3\ntotal_inactive_file 7\n");
  EXPECT_EQ(machine.available(), 1907);
}

TEST(CheckMemory, RefusesWhatCannotFitWithAdvice) {
  Recipe recipe = Recipe::parse(kTinyRecipe, "tiny.yaml",
                                {"model={arch: vit, dim: 8192, depth: 12, heads: 64, patch: 4, image: 8, "
                                 "channels: 1, classes: 4}",
                                 "fusion={experts: 64, weights: static}"});
  const RunConfig config = parse_run(recipe);
  expect_error<RecipeError>(
      [&] { check_memory(config); },
      {"5.1 TB", "available", "fusion.experts", "fusion.state: shared_moments", "fusion.materialize: false"});
  EXPECT_NO_THROW(check_memory(TinyRun().config));
}

}  // namespace
}  // namespace exfusion
