// Several ranks as threads of this process: they train what one rank trains.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "dist/ranks.h"
#include "train/ranked_run.h"
#include "train/tiny_run.h"

namespace exfusion {
namespace {

struct Outcome {
  at::Tensor gradients, values;  // after the first step, and after the last
  std::vector<double> losses, norms;
  std::map<std::string, Traffic> traffic;  // of the last step
  std::map<std::string, at::Tensor> experts;
};

// The last rank's experts as whole tensors: each rank copies its part.
void collect(const TrainingState& state, std::mutex& mutex, std::map<std::string, at::Tensor>& experts) {
  const std::scoped_lock lock(mutex);
  const auto take = [&](const TensorParts& parts) {
    for (const TensorPart& part : parts) {
      if (part.shape.empty()) {
        experts[part.name] = part.values.clone();
        continue;
      }
      if (!experts.contains(part.name)) experts[part.name] = at::zeros(part.shape);
      const std::int64_t rows = part.values.size(0);
      experts[part.name]
          .view({rows, -1})
          .narrow(1, part.first_column, part.values.size(1))
          .copy_(part.values);
    }
  };
  take(state.dense->parts());
  for (const ExpertBank& bank : state.banks) {
    take(bank.expert_parts());
    take(bank.optimizer_parts());
  }
}

Outcome train(const std::vector<std::string>& sets, int world, int steps = 3) {
  Outcome outcome;
  std::mutex mutex;
  with_ranks(world, [&](const ProcessGroup& group) {
    RankedRun run(sets, group);
    for (int i = 0; i < steps; ++i) {
      const auto before = group.traffic();
      const StepResult result = run.step();
      if (group.rank() != 0) continue;
      outcome.losses.push_back(result.loss);
      outcome.norms.push_back(result.grad_norm);
      if (i == 0) outcome.gradients = run.state.parameters->gradients().clone();
      outcome.traffic = group.traffic();
      for (auto& [name, traffic] : outcome.traffic) {
        if (!before.contains(name)) continue;
        traffic.calls -= before.at(name).calls;
        traffic.bytes -= before.at(name).bytes;
      }
    }
    collect(run.state, mutex, outcome.experts);
    if (group.rank() == 0) outcome.values = run.state.parameters->values().clone();
  });
  return outcome;
}

double distance(const at::Tensor& a, const at::Tensor& b) {
  return (a.to(at::kDouble) - b.to(at::kDouble)).norm().item<double>();
}

const std::vector<std::vector<std::string>> kKinds = {
    {},
    {"fusion={experts: 3, weights: static, init: independent}"},
    {"fusion={experts: 3, weights: learned}"},
    {"fusion={experts: 3, weights: memory}"},
    {"fusion={experts: 3, weights: memory, forward: blend}"},
    {"fusion={experts: 3, weights: learned, expert_dropout: 0.5}"},
    {"model.ffn={name: topk, experts: 3, top_k: 1, balance_loss: 0.01, z_loss: 0.001, bias_balance: 0.01}"},
    {"model.ffn={name: ewa, experts: 3}"},
};

TEST(Ranks, GradientsAndLossesAreThoseOfOneRank) {
  for (const auto& kind : kKinds) {
    const std::string name = kind.empty() ? "dense" : kind[0];
    const Outcome one = train(kind, 1);
    const double norm = one.gradients.norm().item<double>();
    for (const int world : {2, 3, 4}) {
      const Outcome many = train(kind, world);
      EXPECT_LE(distance(many.gradients, one.gradients), 1e-6 * norm) << name << ", " << world << " ranks";
      for (std::size_t i = 0; i < one.losses.size(); ++i) {
        EXPECT_NEAR(many.losses[i], one.losses[i], 1e-5) << name << ", " << world << " ranks, step " << i;
        EXPECT_NEAR(many.norms[i], one.norms[i], 1e-4 * one.norms[i]) << name;
      }
      // AdamW's first steps are about the sign of a gradient: a few tiny ones may turn over.
      EXPECT_LE(distance(many.values, one.values), 2e-3 * one.values.norm().item<double>()) << name;
    }
  }
}

TEST(Ranks, MicroBatchesAndUnevenPartsChangeNothing) {
  const Outcome one = train({"train.global_batch=23"}, 1);
  for (const int world : {2, 3}) {
    const Outcome many = train({"train.global_batch=23", "train.micro_batch=5"}, world);
    EXPECT_LE(distance(many.gradients, one.gradients), 1e-6 * one.gradients.norm().item<double>());
  }
}

TEST(Ranks, DeterministicRunsHaveTheSameBitsForAnyNumberOfRanksAndShards) {
  for (const std::size_t kind : {0, 1, 2, 3, 5, 6}) {
    std::vector<std::string> sets = kKinds[kind];
    sets.insert(sets.end(), {"dist.reduction=deterministic", "dist.leaf_batch=2"});
    const Outcome one = train(sets, 1);
    for (const std::string shard : {"none", "experts", "all"}) {
      if (shard == "experts" && !sets[0].starts_with("fusion=")) continue;  // none to share out
      for (const int world : {1, 2, 3, 4}) {
        std::vector<std::string> sharded = sets;
        sharded.push_back("dist.shard=" + shard);
        const Outcome many = train(sharded, world);
        const std::string name = sets[0] + ", " + shard + ", " + std::to_string(world) + " ranks";
        EXPECT_TRUE(at::equal(many.values, one.values)) << name;
        EXPECT_EQ(many.losses, one.losses) << name;
        EXPECT_EQ(many.norms, one.norms) << name;
        expect_equal_bits(many.experts, one.experts);
      }
    }
  }
}

TEST(Ranks, FastShardsTrainWhatWholeRanksTrain) {
  for (const std::size_t kind : {1, 2, 3}) {
    const Outcome one = train(kKinds[kind], 1);
    for (const std::string shard : {"experts", "all"}) {
      std::vector<std::string> sets = kKinds[kind];
      sets.push_back("dist.shard=" + shard);
      const Outcome many = train(sets, 3);
      EXPECT_LE(distance(many.values, one.values), 2e-3 * one.values.norm().item<double>()) << sets[0];
      for (std::size_t i = 0; i < one.losses.size(); ++i) {
        EXPECT_NEAR(many.losses[i], one.losses[i], 1e-5) << sets[0] << shard;
        EXPECT_NEAR(many.norms[i], one.norms[i], 1e-4 * one.norms[i]) << sets[0] << shard;
      }
    }
  }
}

std::int64_t bytes_of_step(const std::vector<std::string>& sets, std::int64_t* calls = nullptr) {
  std::int64_t bytes = 0;
  for (const auto& [name, traffic] : train(sets, 2, 2).traffic) {
    bytes += traffic.bytes;
    if (calls) *calls += traffic.calls;
  }
  return bytes;
}

TEST(Ranks, FusionSendsTheBytesOfDenseTraining) {
  std::int64_t dense_calls = 0;
  const std::int64_t dense = bytes_of_step({}, &dense_calls);
  for (const int n : {1, 2, 4, 8, 16}) {
    const std::string experts = "experts: " + std::to_string(n);
    for (const std::string weights : {"static", "learned"}) {
      std::int64_t calls = 0;
      const std::string init = n == 1 ? "" : ", init: independent";
      EXPECT_EQ(bytes_of_step({"fusion={" + experts + ", weights: " + weights + init + "}"}, &calls), dense)
          << n << weights;
      EXPECT_EQ(calls, dense_calls) << n << weights;
    }
    // N numbers of r and N dim of the router's gradient, for each of 3 FFNs.
    EXPECT_EQ(bytes_of_step({"fusion={" + experts + ", weights: memory}"}), dense + 3 * 4 * (n + n * 48))
        << n;
  }
}

// What makes the prices of all FFNs is one sum; else sharded experts have the sums of dense training.
TEST(Ranks, PricesOfAllShardedExpertsAreOneSum) {
  for (const std::string reduction : {"fast", "deterministic"}) {
    const auto sums = [&](std::vector<std::string> sets) {
      sets.insert(sets.end(), {"dist.shard=all", "dist.reduction=" + reduction});
      return train(sets, 2, 2).traffic.at("all_reduce").calls;
    };
    const std::int64_t dense = sums({});
    for (const std::size_t kind : {1, 2}) EXPECT_EQ(sums(kKinds[kind]), dense + 1) << kKinds[kind][0];
  }
}

TEST(Ranks, AllWaitingIsInThePhaseReduce) {
  with_ranks(2, [](const ProcessGroup& group) {
    RankedRun run({"fusion={experts: 3, weights: learned}", "dist.shard=all"}, group);
    const double before = group.seconds_waited();
    const StepResult result = run.step();
    const double waited = group.seconds_waited() - before;
    EXPECT_GT(waited, 0.0);
    EXPECT_GE(result.phases[static_cast<std::size_t>(Phase::reduce)], waited - 1e-9);
    for (const double seconds : result.phases) EXPECT_GE(seconds, 0.0);
  });
}

TEST(Ranks, MoreRanksThanSamplesAreRefused) {
  const RunConfig few = RankedRun({"train.global_batch=2"}, {}).config;
  EXPECT_THROW(rows_of_rank(few, 0, 3), RecipeError);
  EXPECT_EQ(rows_of_rank(few, 1, 2), (std::pair<std::int64_t, std::int64_t>(1, 2)));
  const RunConfig leaves = RankedRun({"dist.reduction=deterministic", "dist.leaf_batch=12"}, {}).config;
  EXPECT_THROW(rows_of_rank(leaves, 0, 3), RecipeError);
  EXPECT_EQ(rows_of_rank(leaves, 1, 2), (std::pair<std::int64_t, std::int64_t>(12, 24)));
}

}  // namespace
}  // namespace exfusion
