#include "observe/model_pass.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <stdexcept>

#include "nn/block.h"
#include "nn/dispatch.h"
#include "nn/ffn.h"
#include "observe/observed_blocks.h"

namespace exfusion {
namespace {

// What an FFN computes inside, a row for each token, or for each choice of an expert, sorted by expert.
struct Rows {
  at::Tensor x, before, activated, y;  // before GELU
  std::vector<std::int64_t> counts;    // of each expert
};

at::Tensor products(const at::Tensor& x, const at::Tensor& weights, const at::Tensor& biases,
                    const std::vector<std::int64_t>& counts) {
  const std::vector<at::Tensor> rows = x.split_with_sizes(counts);
  std::vector<at::Tensor> found;
  for (std::size_t k = 0; k < rows.size(); ++k) {
    const auto expert = static_cast<std::int64_t>(k);
    found.push_back(at::linear(rows[k], weights.select(0, expert), biases.select(0, expert)));
  }
  return at::cat(found);
}

// Of experts [M, …], which get `counts` of the rows each.
Rows forward(const at::Tensor& x, const FfnTensors& experts, std::vector<std::int64_t> counts) {
  Rows rows{x, {}, {}, {}, std::move(counts)};
  rows.before = products(x, experts[0].detach(), experts[1].detach(), rows.counts);
  if (at::GradMode::is_enabled() && !rows.before.requires_grad()) rows.before.set_requires_grad(true);
  rows.activated = at::gelu(rows.before);
  rows.y = products(rows.activated, experts[2].detach(), experts[3].detach(), rows.counts);
  return rows;
}

// An FFN under way: what of it has a graph.
struct Open {
  Rows rows;
  at::Tensor image;  // of each row
  at::Tensor y;      // of each token; of a dense FFN the rows' own
};

Open dense_pass(const Ffn& ffn, const at::Tensor& x, const at::Tensor& image) {
  FfnTensors single = ffn.parameters_in_order();
  for (at::Tensor& tensor : single) tensor = tensor.unsqueeze(0);
  Open open{forward(x, single, {x.size(0)}), image, {}};
  open.y = open.rows.y;
  return open;
}

Open topk_pass(const TopkFfn& ffn, const at::Tensor& x, const at::Tensor& image, BlockPass& pass) {
  pass.router_logits = ffn.router_logits(x);
  pass.routing = ffn.route(pass.router_logits);
  const at::Tensor& chosen = pass.routing.chosen;
  const Dispatch dispatch = dispatch_by_expert(chosen.reshape(-1), ffn.config().experts, 0);
  const std::int64_t top_k = chosen.size(1);
  Open open{
      forward(take_rows(x, dispatch.order, dispatch.inverse, top_k), ffn.experts().tensors, dispatch.counts),
      image.index_select(0, dispatch.order.div(top_k, "floor")),
      {}};
  pass.outputs = take_rows(open.rows.y, dispatch.inverse, dispatch.order, 1).view({-1, top_k, x.size(1)});
  open.y = (pass.outputs * pass.routing.gates.unsqueeze(-1)).sum(1);
  return open;
}

std::vector<FfnTokens> tokens_of(const Open& open, const at::Tensor& delta1, const at::Tensor& delta2,
                                 const at::Tensor& labels) {
  const at::Tensor seen = delta2.ne(0).any(1), places = seen.nonzero().select(1, 0);
  const bool all = places.numel() == seen.numel();
  const auto of_experts = [&](const at::Tensor& rows) {
    return all ? rows.detach() : rows.detach().index_select(0, places);
  };
  const at::Tensor x = of_experts(open.rows.x), activated = of_experts(open.rows.activated),
                   gradient1 = of_experts(delta1), gradient2 = of_experts(delta2),
                   growth = at::linalg_vecdot(gradient1, of_experts(open.rows.before)) +
                            at::linalg_vecdot(gradient2, of_experts(open.rows.y)),
                   image = of_experts(open.image), label = labels.index_select(0, image);
  std::vector<FfnTokens> parts;
  std::int64_t row = 0, first = 0;
  for (const std::int64_t asked : open.rows.counts) {
    const std::int64_t count = all ? asked : seen.narrow(0, row, asked).sum().item<std::int64_t>();
    const auto part = [&](const at::Tensor& rows) { return rows.narrow(0, first, count); };
    parts.push_back(
        {part(x), part(activated), part(gradient1), part(gradient2), part(growth), part(image), part(label)});
    row += asked;
    first += count;
  }
  return parts;
}

void close(BlockPass& pass) {
  for (at::Tensor* one : {&pass.x, &pass.stream, &pass.y, &pass.router_logits, &pass.routing.probabilities,
                          &pass.routing.gates, &pass.outputs})
    if (one->defined()) *one = one->detach();
}

void add_gradients(const at::Tensor& logits, const at::Tensor& labels, const std::vector<Open>& open,
                   std::vector<BlockPass>& passes) {
  std::vector<at::Tensor> wanted;
  for (const Open& one : open) wanted.insert(wanted.end(), {one.rows.before, one.rows.y, one.y});
  if (wanted.empty()) return;
  const at::Tensor loss = at::cross_entropy_loss(logits, labels, {}, at::Reduction::Sum);
  const std::vector<at::Tensor> found = torch::autograd::grad({loss}, wanted);
  const at::NoGradGuard no_grad;
  for (std::size_t i = 0; i < open.size(); ++i) {
    passes[i].tokens.parts = tokens_of(open[i], found[3 * i], found[3 * i + 1], labels);
    passes[i].gradient = found[3 * i + 2];
  }
}

}  // namespace

const BlockPass& ModelPass::of_block(std::int64_t block) const {
  const auto found = std::ranges::find(blocks, block, [](const BlockPass& one) { return one.tokens.block; });
  if (found == blocks.end()) throw std::out_of_range("no FFN of this block is in the pass");
  return *found;
}

ModelPass pass_through(Model& model, const HeldOutBatch& batch, bool gradients) {
  const at::AutoGradMode grad_mode(gradients);
  const ObservedBlocks observed(model);
  ModelPass pass;
  std::vector<Open> open;
  for (std::size_t i = 0; i < observed.blocks().size(); ++i) {
    Block& block = *observed.blocks()[i];
    const auto* dense = dynamic_cast<const Ffn*>(block.ffn().get());
    const auto* sparse = dynamic_cast<const TopkFfn*>(block.ffn().get());
    if (!dense && !sparse) continue;
    block.observe_ffn([&, i, dense, sparse](const at::Tensor& x, const at::Tensor& stream) {
      BlockPass& one = pass.blocks.emplace_back();
      one.tokens.block = static_cast<std::int64_t>(i);
      const at::Tensor rows = x.reshape({-1, x.size(-1)});
      const at::Tensor image = at::arange(x.size(0)).repeat_interleave(x.size(1));
      open.push_back(dense ? dense_pass(*dense, rows, image) : topk_pass(*sparse, rows, image, one));
      one.x = x;
      one.stream = stream;
      one.y = open.back().y.view(x.sizes());
      return one.y;
    });
  }
  pass.logits = model.forward(batch.images, {});
  if (gradients) add_gradients(pass.logits, batch.labels, open, pass.blocks);
  for (BlockPass& one : pass.blocks) close(one);
  pass.logits = pass.logits.detach();
  return pass;
}

at::Tensor expert_outputs(const TopkFfn& ffn, const at::Tensor& x, const at::Tensor& chosen) {
  const Dispatch dispatch = dispatch_by_expert(chosen.reshape(-1), ffn.config().experts, 0);
  const Rows rows = forward(take_rows(x, dispatch.order, dispatch.inverse, chosen.size(1)),
                            ffn.experts().tensors, dispatch.counts);
  return take_rows(rows.y, dispatch.inverse, dispatch.order, 1).view({-1, chosen.size(1), x.size(1)});
}

}  // namespace exfusion
