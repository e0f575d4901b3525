#include "dist/gradient_exchange.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>
#include <functional>
#include <iterator>
#include <stdexcept>
#include <utility>

#include "core/error.h"

namespace exfusion {
namespace {

using torch::autograd::variable_list;
using Accumulator = decltype(torch::autograd::impl::grad_accumulator(std::declval<at::Tensor&>()));

struct AfterAccumulation : torch::autograd::FunctionPostHook {
  explicit AfterAccumulation(std::function<void()> function) : then(std::move(function)) {}
  variable_list operator()(const variable_list& outputs, const variable_list&) override {
    then();
    return outputs;
  }
  std::function<void()> then;
};

// A unit with its parameters and what of it is under way.
struct UnitState {
  ExchangeUnit unit;
  std::size_t first_parameter = SIZE_MAX;  // the one that the backward pass completes last
  std::int64_t parameters = 0, complete = 0;
  at::Tensor arrived;  // [world x own part]: of sharded units
  Pending pending;
};

constexpr std::size_t kUnderWay =
    2;  // units whose parts may be on their way: their buffers are memory on top

std::vector<std::int64_t> part_sizes(const std::vector<std::int64_t>& cuts) {
  std::vector<std::int64_t> sizes;
  for (std::size_t i = 0; i + 1 < cuts.size(); ++i) sizes.push_back(cuts[i + 1] - cuts[i]);
  return sizes;
}

}  // namespace

struct GradientExchange::State {
  ProcessGroup group;
  at::Tensor gradients;
  std::vector<UnitState> units;  // in the order in which the backward pass completes them
  std::vector<ExchangedParameter> parameters;
  std::vector<char> reached;              // by the last backward pass, per parameter
  std::vector<Accumulator> accumulators;  // kept: a tensor holds its own weakly
  std::size_t next = 0;                   // unit to start
  bool last_pass = false;

  std::size_t rank() const { return static_cast<std::size_t>(group.rank()); }

  UnitState& unit_of(std::int64_t element) {
    const auto found = std::ranges::find_if(
        units, [&](const UnitState& s) { return element >= s.unit.begin && element < s.unit.end; });
    if (found == units.end()) throw std::logic_error("an element that lies in no exchange unit");
    return *found;
  }

  at::Tensor part(const UnitState& state, std::size_t rank_of_part) const {
    const auto& cuts = state.unit.cuts;
    return gradients.narrow(0, cuts[rank_of_part], cuts[rank_of_part + 1] - cuts[rank_of_part]);
  }

  void start(UnitState& state) {
    const at::Tensor values = gradients.narrow(0, state.unit.begin, state.unit.end - state.unit.begin);
    if (!state.unit.sharded) {
      state.pending = group.start_all_reduce(values);
      return;
    }
    const std::vector<std::int64_t> sizes = part_sizes(state.unit.cuts);
    state.arrived = at::empty({group.world() * sizes[rank()]}, gradients.options());
    state.pending = group.start_all_to_all(
        state.arrived, std::vector<std::int64_t>(static_cast<std::size_t>(group.world()), sizes[rank()]),
        values, sizes);
  }

  // Units go out in one order, whatever the order in which a rank completes them.
  void start_complete() {
    for (; next < units.size() && units[next].complete == units[next].parameters; ++next) {
      if (next >= kUnderWay && units[next - kUnderWay].unit.sharded) wait(units[next - kUnderWay]);
      start(units[next]);
    }
  }

  void hook(std::size_t parameter, UnitState& state) {
    accumulators.push_back(torch::autograd::impl::grad_accumulator(parameters[parameter].parameter));
    accumulators.back()->add_post_hook(std::make_unique<AfterAccumulation>([this, parameter, &state] {
      if (!last_pass || std::exchange(reached[parameter], char{1})) return;
      ++state.complete;
      start_complete();
    }));
  }

  void check_reached() const {
    for (std::size_t i = 0; i < parameters.size(); ++i) {
      if (!reached[i])
        throw GraphError(
            parameters[i].name +
            " received no gradient: a trainable parameter must take part in the loss of every rank");
    }
  }

  void wait(UnitState& state) {
    state.pending.wait();
    if (!state.arrived.defined()) return;  // not sharded, or done
    const at::Tensor own = part(state, rank());
    const std::int64_t size = own.numel();
    own.copy_(state.arrived.narrow(0, 0, size));
    for (std::int64_t from = 1; from < group.world(); ++from)
      own.add_(state.arrived.narrow(0, from * size, size));
    state.arrived.reset();
  }

  void sum_tree(UnitState& state, const TreeSum& own_leaves, std::int64_t leaves, float scale);
};

// Every rank sends the sums of its nodes to the owners of the parts; an owner finishes the tree over its
// part.
void GradientExchange::State::sum_tree(UnitState& state, const TreeSum& own_leaves, std::int64_t leaves,
                                       float scale) {
  const std::vector<std::int64_t> sizes = part_sizes(state.unit.cuts);
  const std::int64_t own_size = sizes[rank()];
  std::vector<at::Tensor> parts;
  std::vector<std::int64_t> sent, received;
  std::vector<LeafNode> nodes;
  for (int r = 0; r < group.world(); ++r) {
    for (const auto& [node, sum] : own_leaves.nodes())
      parts.push_back(
          sum.narrow(0, state.unit.cuts[static_cast<std::size_t>(r)], sizes[static_cast<std::size_t>(r)]));
    sent.push_back(sizes[static_cast<std::size_t>(r)] * static_cast<std::int64_t>(own_leaves.nodes().size()));
    const auto [first, last] = leaves_of_rank(leaves, r, group.world());
    const std::vector<LeafNode> of_rank = largest_nodes(leaves, first, last);
    received.push_back(own_size * static_cast<std::int64_t>(of_rank.size()));
    nodes.insert(nodes.end(), of_rank.begin(), of_rank.end());
  }
  const at::Tensor arrived =
      at::empty({own_size * static_cast<std::int64_t>(nodes.size())}, gradients.options());
  group.start_all_to_all(arrived, received, at::cat(parts), sent).wait();
  TreeSum all(leaves);
  for (std::size_t i = 0; i < nodes.size(); ++i)
    all.push(nodes[i], arrived.narrow(0, static_cast<std::int64_t>(i) * own_size, own_size));
  part(state, rank()).copy_(all.total()).mul_(scale);
}

GradientExchange::GradientExchange(ProcessGroup group, at::Tensor gradients, std::vector<ExchangeUnit> units,
                                   std::vector<ExchangedParameter> parameters)
    : state_(std::make_unique<State>()) {
  State& state = *state_;
  state.group = std::move(group);
  state.gradients = std::move(gradients);
  state.parameters = std::move(parameters);
  state.reached.resize(state.parameters.size());
  for (ExchangeUnit& unit : units) state.units.push_back({.unit = std::move(unit)});
  for (std::size_t i = 0; i < state.parameters.size(); ++i) {
    UnitState& unit = state.unit_of(state.parameters[i].begin);
    unit.first_parameter = std::min(unit.first_parameter, i);
    ++unit.parameters;
  }
  std::ranges::sort(state.units, std::greater{}, &UnitState::first_parameter);
  if (state.group.alone()) return;
  for (std::size_t i = 0; i < state.parameters.size(); ++i)
    state.hook(i, state.unit_of(state.parameters[i].begin));
}

GradientExchange::~GradientExchange() = default;

void GradientExchange::begin_last_pass() {
  State& state = *state_;
  if (state.group.alone()) return;
  state.last_pass = true;
  state.next = 0;
  std::ranges::fill(state.reached, char{0});
  for (UnitState& unit : state.units) unit.complete = 0;
}

void GradientExchange::finish() {
  State& state = *state_;
  if (state.group.alone()) return;
  state.last_pass = false;
  state.check_reached();
  for (UnitState& unit : state.units) state.wait(unit);
}

void GradientExchange::finish(const TreeSum& own_leaves, std::int64_t leaves, float scale) {
  State& state = *state_;
  if (state.group.alone()) {
    state.gradients.copy_(own_leaves.total()).mul_(scale);
    return;
  }
  state.last_pass = false;
  for (UnitState& unit : state.units) {
    state.sum_tree(unit, own_leaves, leaves, scale);
    if (!unit.unit.sharded) state.group.all_gather(state.gradients, unit.unit.cuts);
  }
}

const ProcessGroup& GradientExchange::group() const {
  return state_->group;
}

std::pair<std::int64_t, std::int64_t> GradientExchange::owned(std::int64_t begin, std::int64_t end) const {
  return owned_range(state_->unit_of(begin).unit, state_->group.rank(), begin, end);
}

bool GradientExchange::sharded(std::int64_t element) const {
  return !state_->group.alone() && state_->unit_of(element).unit.sharded;
}

std::vector<Pending> GradientExchange::start_gather(const at::Tensor& values, std::int64_t begin,
                                                    std::int64_t end) const {
  std::vector<Pending> parts;
  for (const UnitState& state : state_->units) {
    if (!state.unit.sharded || state.unit.end <= begin || state.unit.begin >= end) continue;
    std::vector<std::int64_t> cuts = state.unit.cuts;
    for (std::int64_t& cut : cuts) cut = std::clamp(cut, begin, end);
    std::ranges::move(state_->group.start_all_gather(values, cuts), std::back_inserter(parts));
  }
  return parts;
}

}  // namespace exfusion
