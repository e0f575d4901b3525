#include "dist/process_group.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <numeric>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <utility>

#include "core/duration.h"
#include "core/error.h"

namespace exfusion {

struct ProcessGroup::State {
  c10::intrusive_ptr<c10d::Backend> backend;  // null: alone
  std::map<std::string, Traffic> traffic;
  double waited = 0.0;  // seconds
  CollectiveObserver* observer = nullptr;

  [[noreturn]] void fail(const char* collective, const std::exception& error) {
    const auto* from_torch = dynamic_cast<const c10::Error*>(&error);
    const std::string text =
        fmt::format("{}: {}", collective, from_torch ? from_torch->what_without_backtrace() : error.what());
    throw DistributedError(observer ? observer->explain(text) : text);
  }
};

struct Pending::State {
  std::shared_ptr<ProcessGroup::State> group;
  c10::intrusive_ptr<c10d::Work> work;
  const char* collective;
  std::vector<at::Tensor> tensors;  // alive until the work is done
};

namespace {

std::int64_t bytes(const at::Tensor& tensor) {
  return static_cast<std::int64_t>(tensor.nbytes());
}

}  // namespace

void Pending::wait() {
  if (!state_) return;
  const std::shared_ptr<State> state = std::exchange(state_, nullptr);
  CollectiveObserver* observer = state->group->observer;
  if (observer) observer->waiting(state->collective);
  const auto start = std::chrono::steady_clock::now();
  try {
    state->work->wait();
  } catch (const std::exception& error) {
    state->group->fail(state->collective, error);
  }
  state->group->waited += seconds_since(start);
  if (observer) observer->done();
}

void wait_for(std::vector<Pending> all) {
  for (Pending& pending : all) pending.wait();
}

ProcessGroup::ProcessGroup() : state_(std::make_shared<State>()) {}

ProcessGroup::ProcessGroup(c10d::Backend* backend) : state_(std::make_shared<State>()) {
  state_->backend = c10::intrusive_ptr<c10d::Backend>::reclaim(backend);
}

int ProcessGroup::rank() const {
  return state_->backend ? state_->backend->getRank() : 0;
}

int ProcessGroup::world() const {
  return state_->backend ? state_->backend->getSize() : 1;
}

// Counts the collective and starts what `call` gives, which works on `tensors`.
template <class Call>
Pending ProcessGroup::start(const char* collective, std::int64_t payload, std::vector<at::Tensor> tensors,
                            const Call& call) const {
  Pending pending;
  if (alone()) return pending;
  Traffic& traffic = state_->traffic[collective];
  ++traffic.calls;
  traffic.bytes += payload;
  pending.state_ =
      std::make_shared<Pending::State>(Pending::State{state_, nullptr, collective, std::move(tensors)});
  try {
    pending.state_->work = call(*state_->backend, pending.state_->tensors);
  } catch (const std::exception& error) {
    state_->fail(collective, error);
  }
  return pending;
}

Pending ProcessGroup::start_all_reduce(const at::Tensor& tensor) const {
  return start("all_reduce", bytes(tensor), {tensor},
               [](c10d::Backend& backend, auto& tensors) { return backend.allreduce(tensors); });
}

Pending ProcessGroup::start_all_to_all(const at::Tensor& output, std::vector<std::int64_t> output_sizes,
                                       const at::Tensor& input, std::vector<std::int64_t> input_sizes) const {
  if (alone()) {
    output.copy_(input);
    return {};
  }
  const std::int64_t own = input_sizes.at(static_cast<std::size_t>(rank()));
  const std::int64_t sent = std::accumulate(input_sizes.begin(), input_sizes.end(), std::int64_t{0}) - own;
  return start("all_to_all", sent * static_cast<std::int64_t>(input.element_size()), {output, input},
               [&](c10d::Backend& backend, auto& tensors) {
                 return backend.alltoall_base(tensors[0], tensors[1], output_sizes, input_sizes);
               });
}

Pending ProcessGroup::start_broadcast(const at::Tensor& tensor, int root) const {
  return start("broadcast", rank() == root ? bytes(tensor) : 0, {tensor},
               [root](c10d::Backend& backend, auto& tensors) {
                 c10d::BroadcastOptions options;
                 options.rootRank = root;
                 return backend.broadcast(tensors, options);
               });
}

std::vector<Pending> ProcessGroup::start_all_gather(const at::Tensor& tensor,
                                                    const std::vector<std::int64_t>& cuts) const {
  std::vector<Pending> parts;
  for (int root = 0; root < world(); ++root) {
    const std::int64_t begin = cuts[static_cast<std::size_t>(root)],
                       size = cuts[static_cast<std::size_t>(root) + 1] - begin;
    if (size > 0) parts.push_back(start_broadcast(tensor.narrow(0, begin, size), root));
  }
  return parts;
}

void ProcessGroup::send(const at::Tensor& tensor, int to) const {
  start("send", bytes(tensor), {tensor}, [to](c10d::Backend& backend, auto& tensors) {
    return backend.send(tensors, to, 0);
  }).wait();
}

void ProcessGroup::receive(const at::Tensor& tensor, int from) const {
  start("receive", 0, {tensor}, [from](c10d::Backend& backend, auto& tensors) {
    return backend.recv(tensors, from, 0);
  }).wait();
}

void ProcessGroup::barrier() const {
  start("barrier", 0, {}, [](c10d::Backend& backend, auto&) { return backend.barrier(); }).wait();
}

void ProcessGroup::sum(std::vector<double>& values) const {
  if (alone() || values.empty()) return;
  const at::Tensor here =
      at::from_blob(values.data(), {static_cast<std::int64_t>(values.size())}, at::kDouble);
  const at::Tensor sums = state_->backend->getBackendName() == "nccl" ? here.to(at::kCUDA) : here;
  all_reduce(sums);
  if (!sums.is_same(here)) here.copy_(sums);
}

const std::map<std::string, Traffic>& ProcessGroup::traffic() const {
  return state_->traffic;
}

double ProcessGroup::seconds_waited() const {
  return state_->waited;
}

void ProcessGroup::observe(CollectiveObserver* observer) const {
  state_->observer = observer;
}

void ProcessGroup::close() const {
  if (state_->backend) state_->backend->abort();
}

}  // namespace exfusion
