#include "dist/dist_config.h"

#include <fmt/format.h>

#include <algorithm>

#include "core/duration.h"
#include "core/recipe.h"

namespace exfusion {
namespace {

// The largest divisor that is at most 8: of any power of two it is 8 itself.
std::int64_t default_leaf(std::int64_t global_batch) {
  std::int64_t leaf = std::min<std::int64_t>(8, global_batch);
  while (global_batch % leaf != 0) --leaf;
  return leaf;
}

}  // namespace

DistConfig DistConfig::parse(Section section, std::int64_t global_batch) {
  DistConfig config;
  config.backend = section.one_of("backend", config.backend, {"auto", "gloo", "nccl"});
  config.reduction = section.one_of("reduction", config.reduction, {"fast", "deterministic"});
  config.leaf_batch = section.in_range<std::int64_t>("leaf_batch", 0, 0, 1 << 20);
  if (!config.deterministic() && config.leaf_batch > 0)
    section.problem("leaf_batch", "dist.leaf_batch belongs to dist.reduction: deterministic");
  if (config.deterministic() && config.leaf_batch == 0) config.leaf_batch = default_leaf(global_batch);
  if (config.leaf_batch > 0 && global_batch % config.leaf_batch != 0)
    section.problem("leaf_batch",
                    fmt::format("dist.leaf_batch is {}, which does not divide train.global_batch {}",
                                config.leaf_batch, global_batch));
  config.shard = section.one_of("shard", config.shard, {"none", "experts", "all"});
  config.threads = section.in_range<std::int64_t>("threads", config.threads, 0, 1024);
  const std::string timeout = section.get<std::string>("timeout", "10m");
  if (const auto span = parse_duration(timeout); span && *span >= std::chrono::seconds(1))
    config.timeout = *span;
  else
    section.problem(
        "timeout",
        "dist.timeout must be a duration such as 30s, 10m or 1h, from 1s to 1000h, got '" + timeout + "'");
  return config;
}

}  // namespace exfusion
