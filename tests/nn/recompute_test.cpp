#include "nn/recompute.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <stdexcept>

#include "bf16_scope.h"

namespace exfusion {
namespace {

// A part with two outputs and weights of its own, in the style of a router beside a network.
struct Part {
  at::Tensor first = at::linspace(-1, 1, 24).view({4, 6}).requires_grad_();
  at::Tensor second = at::linspace(1, -2, 24).view({6, 4}).requires_grad_();
  std::vector<bool> calls;  // whether each was a recomputation

  std::vector<at::Tensor> operator()(const std::vector<at::Tensor>& inputs) {
    const at::Tensor& x = inputs.at(0);
    calls.push_back(recomputing());
    const at::Tensor hidden = at::gelu(at::mm(x, first));
    return {x + at::mm(hidden, second), hidden.square().mean()};
  }
};

struct Gradients {
  at::Tensor loss, x, first, second;
};

// Of a loss in which both outputs are, with a layer before the part and the part used twice.
Gradients gradients(Part& part, bool recompute) {
  const at::Tensor x = at::linspace(-2, 2, 12).view({3, 4}).requires_grad_();
  const auto run = [&](const at::Tensor& input) {
    return recompute
               ? recomputed([&part](const std::vector<at::Tensor>& again) { return part(again); }, {input})
               : part({input});
  };
  const auto one = run(x * 1.5), two = run(one[0]);
  const at::Tensor loss =
      two[0].to(at::kFloat).sin().sum() + 0.3 * one[1].to(at::kFloat) + 0.7 * two[1].to(at::kFloat);
  loss.backward();
  return {loss.detach(), x.grad(), part.first.grad(), part.second.grad()};
}

void expect_equal_bits(const Gradients& found, const Gradients& expected) {
  EXPECT_TRUE(at::equal(found.loss, expected.loss));
  EXPECT_TRUE(at::equal(found.x, expected.x));
  EXPECT_TRUE(at::equal(found.first, expected.first));
  EXPECT_TRUE(at::equal(found.second, expected.second));
  EXPECT_GT(expected.first.norm().item<double>(), 0.0);
}

TEST(Recomputed, GradientsAreTheSameInEveryBit) {
  Part kept, again;
  expect_equal_bits(gradients(again, true), gradients(kept, false));
  EXPECT_EQ(kept.calls, (std::vector<bool>{false, false}));
  EXPECT_EQ(again.calls, (std::vector<bool>{false, false, true, true}));
  EXPECT_FALSE(recomputing());
}

TEST(Recomputed, UnderAutocastTheyAreToo) {
  Part kept, again;
  Gradients expected, found;
  {
    const Bf16Scope bf16;  // the backward pass within autocast: its cache must not hide the weights
    expected = gradients(kept, false);
    found = gradients(again, true);
  }
  expect_equal_bits(found, expected);
  Part exact;
  EXPECT_FALSE(at::equal(gradients(exact, false).first, expected.first));
}

TEST(Recomputed, ThePrecisionOfTheForwardPassComesBackOutsideOfAutocast) {
  const at::Tensor weight = at::randn({4, 4}).requires_grad_(), x = at::randn({3, 4}).requires_grad_();
  std::vector<at::ScalarType> types;
  const auto part = [&](const std::vector<at::Tensor>& inputs) -> std::vector<at::Tensor> {
    const at::Tensor y = at::mm(inputs.at(0), weight);
    types.push_back(y.scalar_type());
    return {y};
  };
  at::Tensor y;
  {
    const Bf16Scope bf16;
    y = recomputed(part, {x})[0];
  }
  y.to(at::kFloat).sum().backward();
  EXPECT_EQ(types, (std::vector<at::ScalarType>{at::kBFloat16, at::kBFloat16}));
  EXPECT_EQ(at::mm(x, weight).scalar_type(), at::kFloat);
}

TEST(Recomputed, GradientsOfTwoPassesAddUpAsTheyWould) {
  Part kept, again;
  for (const double scale : {1.0, 1.7}) {
    const at::Tensor x = (at::linspace(-2, 2, 12).view({3, 4}) * scale).requires_grad_();
    kept({x})[0].sin().sum().backward();
    recomputed([&again](const std::vector<at::Tensor>& inputs) { return again(inputs); }, {x})[0]
        .sin()
        .sum()
        .backward();
  }
  EXPECT_TRUE(at::equal(again.first.grad(), kept.first.grad()));
  EXPECT_TRUE(at::equal(again.second.grad(), kept.second.grad()));
}

// An FFN's own loss is read from the FFN, not from what the block returned.
TEST(Recomputed, WhoKeptAnOutputHasItsGraph) {
  const at::Tensor x = at::ones({2}).requires_grad_();
  at::Tensor kept;
  const at::Tensor y = recomputed(
      [&](const std::vector<at::Tensor>& inputs) -> std::vector<at::Tensor> {
        const at::Tensor& input = inputs.at(0);
        if (!recomputing()) return {input * 2, kept = input.square().sum()};
        return {input * 2, input.square().sum()};
      },
      {x})[0];
  (y.sum() + 3 * kept).backward();
  EXPECT_TRUE(at::equal(x.grad(), at::full({2}, 2.0 + 3.0 * 2.0)));
}

TEST(Recomputed, KeepsNothingOfThePart) {
  at::Tensor y;
  const at::Tensor x = at::ones({2}).requires_grad_();
  c10::weak_intrusive_ptr<c10::TensorImpl> inner(at::empty({0}).getIntrusivePtr());
  y = recomputed(
      [&](const std::vector<at::Tensor>& inputs) -> std::vector<at::Tensor> {
        const at::Tensor& input = inputs.at(0);
        const at::Tensor hidden = input.exp();
        inner = c10::weak_intrusive_ptr<c10::TensorImpl>(hidden.getIntrusivePtr());
        return {hidden.square()};
      },
      {x})[0];
  EXPECT_TRUE(inner.expired());
  y.sum().backward();
  EXPECT_TRUE(at::allclose(x.grad(), at::full({2}, 2 * std::exp(2.0))));
}

TEST(Recomputed, WithoutAGraphItIsThePart) {
  Part part;
  const at::NoGradGuard no_grad;
  const auto outputs =
      recomputed([&](const std::vector<at::Tensor>& inputs) { return part(inputs); }, {at::ones({3, 4})});
  EXPECT_FALSE(outputs[0].requires_grad());
  EXPECT_TRUE(at::equal(outputs[0], part({at::ones({3, 4})})[0]));
}

TEST(Recomputed, RefusesAnInputWithoutGradientForItWouldLoseTheWeights) {
  Part part;
  EXPECT_THROW(
      recomputed([&](const std::vector<at::Tensor>& inputs) { return part(inputs); }, {at::ones({3, 4})}),
      c10::Error);
}

TEST(Recomputed, AnErrorInTheSecondPassLeavesNoTrace) {
  const at::Tensor y = recomputed(
      [](const std::vector<at::Tensor>& inputs) -> std::vector<at::Tensor> {
        if (recomputing()) throw std::runtime_error("second pass");
        return {inputs.at(0) * 2};
      },
      {at::ones({2}).requires_grad_()})[0];
  EXPECT_THROW(y.sum().backward(), std::runtime_error);
  EXPECT_FALSE(recomputing());
}

}  // namespace
}  // namespace exfusion
