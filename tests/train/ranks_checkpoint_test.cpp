// Checkpoints of several ranks, as threads of this process: the same files for any number of them, and any
// other number goes on from them.
#include <gtest/gtest.h>

#include <atomic>
#include <mutex>

#include "dist/ranks.h"
#include "io/files.h"
#include "train/checkpoint.h"
#include "train/checkpoint_exchange.h"
#include "train/ranked_run.h"
#include "train/tiny_run.h"

namespace exfusion {
namespace {
namespace fs = std::filesystem;

const std::vector<std::string> kFusions = {
    "fusion=none",
    "fusion={experts: 3, weights: static, init: independent}",
    "fusion={experts: 3, weights: learned}",
    "fusion={experts: 3, weights: memory}",
    "fusion={experts: 2, weights: learned, state: shared_moments, layers: last:1}",
};

std::vector<std::string> settings(const std::string& fusion, const std::string& reduction,
                                  const std::string& shard) {
  const bool nothing = shard == "experts" && fusion == "fusion=none";  // to share out
  return {fusion, "train.ema=0.9", "dist.reduction=" + reduction, "dist.shard=" + (nothing ? "none" : shard)};
}

void save(const RankedRun& run, const fs::path& checkpoints, bool shared = true) {
  CheckpointInfo info;
  info.world = run.state.group.world();
  info.threads = 1;
  info.precision = "fp32";
  info.reduction = run.config.dist.reduction;
  info.recipe = run.resolved;
  save_checkpoint(checkpoints, run.state, info, shared);
}

void load(RankedRun& run, const fs::path& checkpoint) {
  load_checkpoint(checkpoint, run.state, run.config.dist.deterministic());
}

// Trains for some steps, from a checkpoint unless that is empty, and saves. Returns the losses.
std::vector<double> train_from(const std::vector<std::string>& sets, int world, const fs::path& from,
                               int steps, const fs::path& checkpoints) {
  std::vector<double> losses;
  with_ranks(world, [&](const ProcessGroup& group) {
    RankedRun run(sets, group);
    if (!from.empty()) load(run, from);
    for (int i = 0; i < steps; ++i) {
      const double loss = run.step().loss;
      if (group.rank() == 0) losses.push_back(loss);
    }
    save(run, checkpoints);
  });
  return losses;
}

// All files but state.json, by name.
std::map<std::string, std::string> tensor_files(const fs::path& checkpoint) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::directory_iterator(checkpoint)) {
    if (entry.path().extension() == ".safetensors")
      files[entry.path().filename().string()] = read_bytes(entry.path());
  }
  return files;
}

void expect_equal_files(const fs::path& found, const fs::path& expected) {
  const auto files = tensor_files(found), wanted = tensor_files(expected);
  ASSERT_GE(wanted.size(), 3u);
  ASSERT_EQ(files.size(), wanted.size());
  for (const auto& [name, bytes] : wanted) EXPECT_TRUE(files.at(name) == bytes) << found << ": " << name;
}

TEST(RanksCheckpoint, FilesHaveTheSameBytesForAnyNumberOfRanksAndShards) {
  for (const std::string& fusion : kFusions) {
    const TestFolder folder;
    train_from(settings(fusion, "deterministic", "none"), 1, {}, 2, folder / "one");
    for (const int world : {2, 3}) {
      for (const std::string shard : {"none", "experts", "all"}) {
        SCOPED_TRACE(fusion + ", " + shard + ", " + std::to_string(world) + " ranks");
        const fs::path many = folder / (shard + std::to_string(world));
        train_from(settings(fusion, "deterministic", shard), world, {}, 2, many);
        expect_equal_files(many / "latest", folder / "one/latest");
        EXPECT_EQ(read_checkpoint(many / "latest").world, world);  // and its checksums
      }
    }
  }
}

TEST(RanksCheckpoint, FoldersThatOthersDoNotSeeHoldTheSameBytes) {
  const TestFolder folder;
  const auto sets = settings(kFusions[3], "deterministic", "all");
  train_from(sets, 1, {}, 1, folder / "one");
  with_ranks(3, [&](const ProcessGroup& group) {
    RankedRun run(sets, group);
    run.step();
    save(run, folder / ("of" + std::to_string(group.rank())), /*shared=*/false);
  });
  expect_equal_files(folder / "of0/latest", folder / "one/latest");
  EXPECT_NO_THROW(read_checkpoint(folder / "of0/latest"));
  EXPECT_FALSE(fs::exists(folder / "of1"));
  EXPECT_FALSE(fs::exists(folder / "of2"));
}

struct Change {
  int from, to;
  std::string shard_before, shard_after;
};
const std::vector<Change> kChanges = {
    {1, 2, "none", "all"}, {2, 1, "none", "none"}, {3, 2, "all", "all"}, {3, 2, "experts", "none"}};

TEST(RanksCheckpoint, DeterministicRunsGoOnBitForBitOnAnotherNumberOfRanks) {
  for (const std::string& fusion : kFusions) {
    const TestFolder folder;
    train_from(settings(fusion, "deterministic", "none"), 1, {}, 4, folder / "whole");
    for (const Change& change : kChanges) {
      SCOPED_TRACE(fusion + ", " + std::to_string(change.from) + " to " + std::to_string(change.to));
      const fs::path path = folder / "resumed";
      fs::remove_all(path);
      train_from(settings(fusion, "deterministic", change.shard_before), change.from, {}, 2, path);
      train_from(settings(fusion, "deterministic", change.shard_after), change.to, path / "step-00000002", 2,
                 path);
      expect_equal_files(path / "step-00000004", folder / "whole/step-00000004");
    }
  }
}

TEST(RanksCheckpoint, FastRunsGoOnWithTheSameLossOnAnotherNumberOfRanks) {
  for (const std::string& fusion : kFusions) {
    const TestFolder folder;
    const auto whole = train_from(settings(fusion, "fast", "none"), 1, {}, 4, folder / "whole");
    for (const Change& change : kChanges) {
      SCOPED_TRACE(fusion + ", " + std::to_string(change.from) + " to " + std::to_string(change.to));
      train_from(settings(fusion, "fast", change.shard_before), change.from, {}, 2, folder / "resumed");
      const auto losses = train_from(settings(fusion, "fast", change.shard_after), change.to,
                                     folder / "resumed/step-00000002", 2, folder / "resumed");
      for (std::size_t i = 0; i < 2; ++i) EXPECT_NEAR(losses[i], whole[2 + i], 1e-5);
    }
  }
}

// Fast reductions: each rank's Jacobian is its part of a sum, and stays that when it is saved.
TEST(RanksCheckpoint, TheRoutersJacobianIsThatOfTheGlobalBatch) {
  const TestFolder folder;
  const auto sets = settings(kFusions[3], "fast", "none");
  train_from(sets, 1, {}, 2, folder / "one");
  train_from(sets, 3, {}, 2, folder / "three");
  train_from(sets, 3, folder / "one/latest", 0, folder / "again");
  train_from(sets, 1, folder / "three/latest", 0, folder / "back");
  with_ranks(3, [&](const ProcessGroup& group) {
    RankedRun run(sets, group);
    run.step();
    const at::Tensor before = run.state.banks[0].router()->last_jacobian().clone();
    save(run, folder / "live");
    EXPECT_TRUE(at::equal(run.state.banks[0].router()->last_jacobian(), before));
    EXPECT_GT(before.norm().item<double>(), 0.0);
  });
  const auto jacobian = [&](const std::string& name) {
    return SafetensorsFile((folder / (name + "/latest/optimizer.safetensors")).string())
        .read("blocks.1.mlp.router.jacobian");
  };
  const at::Tensor one = jacobian("one"), three = jacobian("three");
  EXPECT_LE((three - one).norm().item<double>(), 1e-4 * one.norm().item<double>());
  EXPECT_TRUE(at::equal(jacobian("again"), one));
  EXPECT_TRUE(at::equal(jacobian("back"), three));
}

TEST(RanksCheckpoint, ADamagedFileIsRefusedByAllRanksInTheSameWords) {
  const TestFolder folder;
  const auto sets = settings(kFusions[2], "fast", "all");
  train_from(sets, 2, {}, 1, folder.path());
  const fs::path checkpoint = folder / "step-00000001";
  const auto expect_refused = [&](const std::string& recipe, const std::string& fragment) {
    std::atomic<int> refusals = 0;
    with_ranks(3, [&](const ProcessGroup& group) {
      RankedRun run(settings(recipe, "fast", "all"), group);
      expect_error<BadInput>([&] { load(run, checkpoint); }, {"step-00000001", fragment});
      ++refusals;
      group.barrier();  // the group still works
    });
    EXPECT_EQ(refusals, 3) << fragment;
  };
  expect_refused("fusion=none", "experts.safetensors: does not belong to this recipe");
  expect_refused("fusion={experts: 4, weights: learned}", "expected F32 [4, ");
  std::string bytes = read_bytes(checkpoint / "experts.safetensors");
  bytes[bytes.size() / 2] = static_cast<char>(~bytes[bytes.size() / 2]);
  write_bytes(checkpoint / "experts.safetensors", bytes);
  expect_refused(kFusions[2], "experts.safetensors: checksum");
  fs::remove(checkpoint / "state.json");
  expect_refused(kFusions[2], "state.json is missing");
}

TEST(RanksCheckpoint, ARankThatCannotWriteLeavesNoCheckpoint) {
  const TestFolder folder;
  std::mutex mutex;
  std::map<int, std::string> errors;
  with_ranks(3, [&](const ProcessGroup& group) {
    RankedRun run(settings(kFusions[1], "fast", "experts"), group);
    try {
      save(run, group.rank() == 2 ? folder / "elsewhere" : folder / "run");
    } catch (const Failure& error) {
      group.close();  // as the end of its process does
      const std::scoped_lock lock(mutex);
      errors[group.rank()] = error.what();
    }
  });
  EXPECT_EQ(errors.size(), 3u);
  EXPECT_NE(errors[2].find("elsewhere/step-00000000.tmp/experts.safetensors: No such file"),
            std::string::npos)
      << errors[2];
  EXPECT_TRUE(checkpoint_folders(folder / "run").empty());
}

TEST(RanksCheckpoint, AProbeTellsWhetherAllRanksSeeTheFolder) {
  const TestFolder shared, other;
  with_ranks(3, [&](const ProcessGroup& group) {
    const CheckpointRanks ranks{.group = group, .device = at::kCPU};
    EXPECT_TRUE(folder_is_shared(ranks, shared.path()));
    EXPECT_FALSE(folder_is_shared(ranks, group.rank() == 2 ? other.path() : shared.path()));
    EXPECT_FALSE(folder_is_shared(ranks, group.rank() == 0 ? other.path() : shared.path()));
    expect_error<Error>([&] { folder_is_shared(ranks, shared / "none"); }, {"none/.shared-"});
  });
  EXPECT_TRUE(fs::is_empty(shared.path()));
  EXPECT_TRUE(fs::is_empty(other.path()));
  EXPECT_TRUE(folder_is_shared({.group = ProcessGroup(), .device = at::kCPU}, shared / "none"));
}

TEST(RanksCheckpoint, ChecksumsOfBlocksDoNotDependOnTheRanksThatReadThem) {
  const TestFolder folder;
  std::string bytes(10'000, 'x');
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<char>(i * i / 7);
  write_bytes(folder / "file", bytes);
  for (const int world : {1, 2, 3}) {
    for (const std::uint64_t block : {999u, 5'000u, 10'000u, 64'000u}) {
      with_ranks(world, [&](const ProcessGroup& group) {
        const CheckpointRanks ranks{.group = group, .device = at::kCPU};
        EXPECT_EQ(crc32_text(crc32_of_ranks(ranks, folder / "file", bytes.size(), block)), text_crc32(bytes))
            << world << " ranks, blocks of " << block;
      });
    }
  }
}

}  // namespace
}  // namespace exfusion
