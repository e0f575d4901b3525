// A run's folder: made once, refused when it exists, held by one process at a time.
#pragma once
#include <filesystem>
#include <string>

namespace exfusion {

class RunFolder {
 public:
  // Makes the folder. One that exists is a RunFolderError naming both ways out, unless `overwrite`, which
  // sets it aside as PATH.old (only if it is empty or looks like a run's folder) until the new run has
  // started or is withdrawn.
  static RunFolder create(const std::filesystem::path& path, bool overwrite);
  // Opens the folder of an earlier run. Throws CheckpointError if it is none, RunFolderError if another
  // process has it.
  static RunFolder open(const std::filesystem::path& path);
  // The folder that another rank has made or opened: neither made nor held here.
  static RunFolder of_other_rank(const std::filesystem::path& path) { return RunFolder(path, false); }
  // Whether the folder is there and holds nothing of a run: empty, or left by one that ended before it wrote
  // its recipe. create() with `overwrite` takes it.
  static bool is_unused(const std::filesystem::path& path);
  // Throws CheckpointError if the path is no run's folder.
  static void check(const std::filesystem::path& path);
  // Throws CheckpointError naming the first line if its recipe is another than `resolved` in what a resume
  // may not change.
  static void check_recipe(const std::filesystem::path& path, const std::string& resolved);
  void started() const;   // removes what was set aside
  void withdraw() const;  // removes this folder and puts back what was set aside
  ~RunFolder();
  RunFolder(RunFolder&& other) noexcept;
  RunFolder& operator=(RunFolder&&) = delete;

  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path recipe() const { return path_ / "recipe.yaml"; }
  std::filesystem::path checkpoints() const { return path_ / "checkpoints"; }
  std::filesystem::path metrics() const { return path_ / "metrics.h5"; }
  // Writes recipe.yaml: versions and hashes as comments (the data's once it is known, not ""), then the
  // resolved recipe.
  void write_recipe(const std::string& resolved, const std::string& data_checksum) const;

 private:
  explicit RunFolder(std::filesystem::path path, bool hold = true);  // takes the lock
  std::filesystem::path path_, replaced_;                            // replaced_: "" if nothing was set aside
  int lock_ = -1;
};

}  // namespace exfusion
