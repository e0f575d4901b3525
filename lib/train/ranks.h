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

class Ranks {
 public:
  Ranks();  // this process alone
  // Meets the others that the environment names (dist/launch.h), sets the threads of this rank, and watches
  // the others from then on. Throws UsageError, DistributedError.
  explicit Ranks(const RunConfig& config);
  ~Ranks();  // without finish() or failed(): as failed()
  Ranks(const Ranks&) = delete;
  Ranks& operator=(const Ranks&) = delete;

  const ProcessGroup& group() const;
  bool lead() const { return group().rank() == 0; }  // writes the run's folder, speaks on the terminal
  bool restarted() const;                            // the launcher has started this job anew
  bool agree(bool lead_says) const;                  // what the lead says, on every rank

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
