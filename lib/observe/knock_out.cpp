#include "observe/knock_out.h"

#include <ATen/ATen.h>

#include <cmath>
#include <limits>

#include "models/model.h"
#include "nn/ffn.h"
#include "nn/topk_ffn.h"
#include "observe/intervention.h"
#include "observe/observed_blocks.h"
#include "observe/weight_perturbation.h"

namespace exfusion {
namespace {

using analysis::HeldOutImages;
using analysis::ImageSums;
using Blocks = std::vector<std::shared_ptr<Block>>;

// Progress over FFNs, each of which costs as much as there are blocks behind it.
class Share {
 public:
  Share(const KnockOutProgress& progress, std::size_t blocks, const std::vector<std::size_t>& chosen)
      : progress_(progress), blocks_(blocks) {
    for (const std::size_t block : chosen) all_ += cost(block);
  }
  void begin(std::size_t block) {
    done_ += current_;
    current_ = cost(block);
  }
  void operator()(double part) const {
    if (progress_) progress_((done_ + part * current_) / all_);
  }

 private:
  double cost(std::size_t block) const { return static_cast<double>(blocks_ - block); }
  const KnockOutProgress& progress_;
  std::size_t blocks_;
  double all_ = 0.0, done_ = 0.0, current_ = 0.0;
};

at::Tensor without_choice(const TopkFfn& ffn, std::int64_t expert, const at::Tensor& x, const at::Tensor& y) {
  const at::Tensor tokens = x.reshape({-1, x.size(-1)});
  const at::Tensor logits = ffn.router_logits(tokens);
  const at::Tensor users = ffn.route(logits).chosen.eq(expert).any(1).nonzero().squeeze(1);
  if (users.numel() == 0) return {};
  at::Tensor others = logits.index_select(0, users);
  others.select(1, expert).fill_(-std::numeric_limits<float>::infinity());
  const at::Tensor instead = ffn.combine(tokens.index_select(0, users), ffn.route(others));
  return y.reshape(tokens.sizes()).index_copy(0, users, instead).view(x.sizes());
}

// Why the expert cannot be left out.
std::string no_rest(const FusedSet& set, std::size_t k) {
  if (set.a.size() == 1) return "the only expert";
  return std::abs(1.0 - set.a[k]) < 1e-6 ? "the expert has all of the weight" : "";
}

FfnKnockOut knock_out_set(Model& model, const Blocks& blocks, const FusedSet& set,
                          const std::vector<HeldOutBatch>& batches, const HeldOutImages& held_out,
                          const Share& progress) {
  const auto block = static_cast<std::size_t>(set.block);
  const FfnTensors w = dynamic_cast<const Ffn&>(*blocks[block]->ffn()).parameters_in_order();
  const FfnTensors differences = offsets(set);
  const std::int64_t n = set.size();
  FfnKnockOut found{set.block};
  std::vector<Intervention> without, alone, scaled, random;
  std::vector<FfnTensors> steps;  // of the experts that can be left out
  for (std::int64_t k = 0; k < n; ++k) {
    found.undefined.push_back(no_rest(set, static_cast<std::size_t>(k)));
    const FfnTensors expert = set.expert(k);
    alone.push_back(with_weights(expert));
    scaled.push_back(with_weights(scaled_to(expert, w)));
    if (!found.undefined.back().empty()) {
      without.emplace_back([](const at::Tensor&, const at::Tensor&) { return at::Tensor(); });
      continue;
    }
    steps.push_back(step_without(differences, set.a[static_cast<std::size_t>(k)], k));
    without.push_back(with_weights(stepped(w, steps.back())));
  }
  for (std::int64_t r = 0; r < kRandomPerturbations && !steps.empty(); ++r) {
    const FfnTensors& model_step = steps[static_cast<std::size_t>(r) % steps.size()];
    random.push_back(with_weights(stepped(w, random_step_like(model_step, set.block, r))));
  }
  std::vector<Intervention> all;
  for (const auto* group : {&without, &alone, &scaled, &random})
    all.insert(all.end(), group->begin(), group->end());
  std::vector<ImageSums> changes =
      measure_interventions(model, blocks, block, batches, held_out, all, std::ref(progress));
  auto next = changes.begin();
  for (auto* group : {&found.left_out, &found.alone, &found.alone_scaled, &found.random}) {
    const auto end = group == &found.random ? changes.end() : next + n;
    group->assign(std::make_move_iterator(next), std::make_move_iterator(end));
    next = end;
  }
  for (std::size_t k = 0; k < found.undefined.size(); ++k) {
    if (!found.undefined[k].empty()) found.left_out[k] = {};
  }
  return found;
}

// Expert k in every FFN at once.
std::vector<ImageSums> measure_everywhere(Model& model, const Blocks& blocks,
                                          const std::vector<FusedSet>& sets,
                                          const std::vector<HeldOutBatch>& batches,
                                          const HeldOutImages& held_out) {
  std::vector<ImageSums> changes;
  for (std::size_t k = 0; k < sets.front().a.size(); ++k) {
    ImageSums change = zero_sums(held_out);
    for (const FusedSet& set : sets) {
      blocks[static_cast<std::size_t>(set.block)]->observe_ffn(
          [expert = set.expert(static_cast<std::int64_t>(k))](const at::Tensor& x, const at::Tensor&) {
            return ffn_output(x, expert);
          });
    }
    for (std::size_t b = 0; b < batches.size(); ++b) {
      const at::Tensor& labels = batches[b].labels;
      add_scores(score_images(model.forward(batches[b].images, {}), labels), labels, b * held_out.classes,
                 change);
    }
    for (std::size_t i = 0; i < change.loss.size(); ++i) {
      change.loss[i] -= held_out.model.loss[i];
      change.correct[i] -= held_out.model.correct[i];
    }
    changes.push_back(std::move(change));
    for (const FusedSet& set : sets) blocks[static_cast<std::size_t>(set.block)]->observe_ffn(nullptr);
  }
  return changes;
}

}  // namespace

KnockOuts knock_out_topk(Model& model, const std::vector<HeldOutBatch>& batches, std::int64_t classes,
                         const KnockOutProgress& progress) {
  const at::NoGradGuard no_grad;
  const ObservedBlocks observed(model);
  const Blocks& blocks = observed.blocks();
  KnockOuts found{unchanged_model(model, batches, classes)};
  std::vector<std::size_t> chosen;
  for (std::size_t b = 0; b < blocks.size(); ++b) {
    if (std::dynamic_pointer_cast<TopkFfn>(blocks[b]->ffn())) chosen.push_back(b);
  }
  Share share(progress, blocks.size(), chosen);
  for (const std::size_t b : chosen) {
    const auto& ffn = dynamic_cast<const TopkFfn&>(*blocks[b]->ffn());
    FfnKnockOut one{static_cast<std::int64_t>(b)};
    const std::int64_t experts = ffn.config().experts;
    one.undefined.assign(static_cast<std::size_t>(experts), experts == 1 ? "the only expert" : "");
    std::vector<Intervention> interventions;
    for (std::int64_t k = 0; k < experts && experts > 1; ++k) {
      interventions.emplace_back(
          [&ffn, k](const at::Tensor& x, const at::Tensor& y) { return without_choice(ffn, k, x, y); });
    }
    share.begin(b);
    one.left_out =
        measure_interventions(model, blocks, b, batches, found.held_out, interventions, std::ref(share));
    one.left_out.resize(static_cast<std::size_t>(experts));
    found.ffns.push_back(std::move(one));
  }
  return found;
}

KnockOuts knock_out_fused(Model& model, const std::vector<FusedSet>& sets,
                          const std::vector<HeldOutBatch>& batches, std::int64_t classes,
                          const KnockOutProgress& progress) {
  const at::NoGradGuard no_grad;
  const ObservedBlocks observed(model);
  KnockOuts found{unchanged_model(model, batches, classes)};
  std::vector<std::size_t> chosen;
  for (const FusedSet& set : sets) chosen.push_back(static_cast<std::size_t>(set.block));
  Share share(progress, observed.blocks().size(), chosen);
  for (const FusedSet& set : sets) {
    share.begin(static_cast<std::size_t>(set.block));
    found.ffns.push_back(knock_out_set(model, observed.blocks(), set, batches, found.held_out, share));
  }
  if (!sets.empty())
    found.alone_everywhere = measure_everywhere(model, observed.blocks(), sets, batches, found.held_out);
  return found;
}

}  // namespace exfusion
