#include "train/ranks.h"

#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <optional>

#include "core/error.h"
#include "core/log.h"
#include "dist/agreement.h"
#include "dist/connect.h"
#include "dist/launch.h"
#include "dist/watch.h"
#include "train/checkpoint_exchange.h"
#include "train/device.h"
#include "train/profile.h"

namespace exfusion {

namespace fs = std::filesystem;

struct Ranks::State {
  Connection connection;
  std::chrono::milliseconds timeout{};
  c10::Device device = c10::kCPU;
  std::optional<Watch> watch;
  std::int64_t step = 0;
  bool agreed = false;  // nobody waits for this rank to agree any more
  bool ended = false;

  bool alone() const { return connection.group.alone(); }
};

std::int64_t asked_threads(const RunConfig& config) {
  return config.dist.threads > 0 ? config.dist.threads : config.train.threads;
}

Ranks::Ranks() : state_(std::make_unique<State>()) {}

Ranks::Ranks(const RunConfig& config, const std::map<std::string, std::string>& purpose)
    : state_(std::make_unique<State>()) {
  State& state = *state_;
  state.timeout = config.dist.timeout;
  state.device = training_device(config.train.device);
  state.connection = connect(launch_from_environment(), config.dist, config.train.device, purpose);
  const Launch& launch = state.connection.launch;
  const std::int64_t asked = asked_threads(config);
  if (state.alone()) {
    if (asked > 0) at::set_num_threads(static_cast<int>(asked));
    return;
  }
  log_set_quiet(!lead());
  const RankThreads threads = threads_of_rank(asked, launch);
  at::set_num_threads(threads.count);
  log_info("{} ranks over {}; each with {} threads: {}", launch.world, state.connection.backend,
           threads.count, threads.reason);
  state.watch.emplace(state.connection.store->within("watch"), launch.rank, launch.world,
                      launch.agent_store ? -1 : 0);
  state.connection.group.observe(&*state.watch);
  observe_phases([this](const char* phase) { at(phase); });
}

Ranks::~Ranks() {
  if (state_->alone()) return;
  observe_phases({});
  if (!state_->ended) failed("left without a word");
  state_->connection.group.observe(nullptr);
  leave(*state_->connection.store, state_->connection.launch);
}

const ProcessGroup& Ranks::group() const {
  return state_->connection.group;
}

bool Ranks::restarted() const {
  return state_->connection.launch.restarts > 0;
}

std::string Ranks::resume_command(const fs::path& run) const {
  const Launch& launch = state_->connection.launch;
  return fmt::format("exfusion-train --resume {}{}", run.string(),
                     launch.store_fd >= 0 ? fmt::format(" --nproc {}", launch.world) : "");
}

bool Ranks::agree(bool lead_says) const {
  const CheckpointRanks ranks{.group = group(), .device = state_->device};
  return text_of_rank_0(ranks, [&] { return std::string(lead_says ? "yes" : "no"); }) == "yes";
}

void Ranks::check_same(std::map<std::string, std::string> fields) const {
  if (!state_->alone())
    check_agreement(*state_->connection.store, state_->connection.launch, "agreement", std::move(fields),
                    state_->timeout);
  state_->agreed = true;
}

bool Ranks::share_folder(const fs::path& path) const {
  if (state_->alone()) return true;
  const CheckpointRanks ranks{.group = group(), .device = state_->device};
  if (folder_is_shared(ranks, path)) return true;
  std::error_code error;
  fs::create_directories(path / "checkpoints", error);
  if (error) throw FileError(fmt::format("{}: cannot be made: {}", path.string(), error.message()));
  log_info("{}: not all ranks see this folder of rank 0; the others send their parts of a checkpoint to it",
           path.string());
  return false;
}

void Ranks::at_step(std::int64_t step) const {
  state_->step = step;
}

void Ranks::at(const std::string& phase) const {
  if (state_->watch) state_->watch->at(phase, state_->step);
}

void Ranks::finish() const {
  if (state_->watch) state_->watch->finish();
  state_->ended = true;
}

void Ranks::failed(const std::string& reason) const noexcept {
  if (!state_->alone() && !state_->agreed && !state_->ended)
    refuse(*state_->connection.store, state_->connection.launch, reason);
  state_->ended = true;
  try {
    if (state_->watch) state_->watch->failed(reason);
  } catch (const std::exception&) {  // the others notice by themselves
  }
}

}  // namespace exfusion
