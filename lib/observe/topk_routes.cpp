#include "observe/topk_routes.h"

#include <ATen/ATen.h>

#include "analysis/draws.h"
#include "models/model.h"
#include "observe/intervention.h"
#include "observe/observed_blocks.h"
#include "observe/topk_virtual_scores.h"

namespace exfusion {
namespace {

constexpr std::int64_t kRows = 256;  // on which all experts run at a time

// [tokens, K] different experts each.
at::Tensor random_choice(std::int64_t tokens, const FfnConfig& config, std::uint32_t batch,
                         std::int64_t block) {
  CounterRandom random =
      analysis::draw(analysis::Purpose::random_route, batch, static_cast<std::uint32_t>(block));
  const at::Tensor drawn = at::empty({tokens, config.experts}, at::kDouble);
  for (std::int64_t i = 0; i < drawn.numel(); ++i) drawn.mutable_data_ptr<double>()[i] = random.uniform();
  return std::get<1>(drawn.topk(config.top_k, 1));
}

at::Tensor scored_choice(const TopkFfn& ffn, const at::Tensor& rows, const TopkPass& pass) {
  const std::int64_t experts = ffn.config().experts;
  std::vector<at::Tensor> chosen;
  for (std::int64_t first = 0; first < rows.size(0); first += kRows) {
    const auto part = [first](const at::Tensor& of) {
      return of.slice(0, first, std::min(first + kRows, of.size(0)));
    };
    const at::Tensor x = part(rows);
    const at::Tensor outputs = ffn.outputs(x, at::arange(experts, at::kLong).expand({x.size(0), experts}));
    const TokenScores found = output_scores(outputs, part(pass.y), part(pass.delta));
    chosen.push_back(std::get<1>(found.scores.topk(ffn.config().top_k, 1)));
  }
  return at::cat(chosen);
}

}  // namespace

std::vector<RouteChanges> change_routes(Model& model, const std::vector<HeldOutBatch>& batches,
                                        const analysis::HeldOutImages& held_out,
                                        const std::function<void(double)>& progress) {
  const std::vector<std::shared_ptr<Block>> all = find_blocks(model);
  const std::vector<TopkBlock> blocks = topk_blocks(all);
  std::vector<RouteChanges> found;
  for (const TopkBlock& block : blocks)
    found.push_back({block.number, zero_sums(held_out), zero_sums(held_out)});
  for (std::size_t b = 0; b < batches.size() && !blocks.empty(); ++b) {
    const at::Tensor& labels = batches[b].labels;
    const std::vector<TopkPass> passes = topk_passes(model, blocks, batches[b]);
    const at::NoGradGuard no_grad;
    const ObservedBlocks observed(model);  // for evaluation mode
    for (std::size_t l = 0; l < blocks.size(); ++l) {
      const TopkPass& pass = passes[l];
      const TopkFfn& ffn = *blocks[l].ffn;
      const at::Tensor rows = pass.x.reshape({-1, pass.x.size(-1)});
      const auto loss_with = [&](const at::Tensor& y) {
        return score_images(run_from(model, all, static_cast<std::size_t>(blocks[l].number), pass.stream,
                                     y.view(pass.x.sizes())),
                            labels);
      };
      const ImageScores as_it_is = loss_with(pass.y);
      const auto add = [&](const at::Tensor& chosen, analysis::ImageSums& to) {
        const ImageScores with =
            loss_with(ffn.combine(rows, {pass.routing.probabilities, chosen, pass.routing.gates}));
        add_scores({with.loss - as_it_is.loss, with.correct - as_it_is.correct}, labels, b * held_out.classes,
                   to);
      };
      add(random_choice(rows.size(0), ffn.config(), static_cast<std::uint32_t>(b), blocks[l].number),
          found[l].random);
      add(scored_choice(ffn, rows, pass), found[l].oracle);
    }
    if (progress) progress(static_cast<double>(b + 1) / static_cast<double>(batches.size()));
  }
  return found;
}

}  // namespace exfusion
