// The ranks that train one run together, from the launcher's environment to the last word.
#pragma once
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>

#include "dist/process_group.h"
#include "train/run_config.h"

namespace exfusion {

// The threads of a rank that the recipe asks for: dist.threads, else train.threads; 0: none of them.
std::int64_t asked_threads(const RunConfig& config);

class Ranks {
 public:
  Ranks();  // this process alone
  // Meets the others that the environment names (dist/launch.h), who must have come for the same `purpose`
  // (dist/agreement.h), sets the threads of this rank, and watches the others from then on. Throws
  // UsageError, DistributedError.
  Ranks(const RunConfig& config, const std::map<std::string, std::string>& purpose);
  ~Ranks();  // without finish() or failed(): as failed()
  Ranks(const Ranks&) = delete;
  Ranks& operator=(const Ranks&) = delete;

  const ProcessGroup& group() const;
  bool lead() const { return group().rank() == 0; }  // writes the run's folder, speaks on the terminal
  bool restarted() const;                            // the launcher has started this job anew
  bool agree(bool lead_says) const;                  // what the lead says, on every rank
  std::string resume_command(
      const std::filesystem::path& run) const;  // as this run was started: with --nproc

  // Throws DistributedError on all ranks where a field differs, naming rank, field and both values.
  void check_same(std::map<std::string, std::string> fields) const;
  // Whether every rank sees the lead's folder `path` at that place. Those that do not get a folder of their
  // own there.
  bool share_folder(const std::filesystem::path& path) const;

  // The training thread is in step `step` (from 1) from now on; its phases are seen by the others.
  void at_step(std::int64_t step) const;
  void at(const std::string& phase) const;
  void finish() const;                                    // an orderly end: waits for the others
  void failed(const std::string& reason) const noexcept;  // tells the others why this rank ends

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace exfusion
