// The folder of a run's checkpoints.
#include <fmt/format.h>

#include <algorithm>

#include "core/error.h"
#include "core/log.h"
#include "io/files.h"
#include "train/checkpoint.h"
#include "train/state_json.h"

namespace exfusion {
namespace {
namespace fs = std::filesystem;

constexpr const char* kPruned = ".pruned";

}  // namespace

std::vector<fs::path> checkpoint_folders(const fs::path& checkpoints) {
  std::vector<fs::path> folders;
  if (!fs::is_directory(checkpoints)) return folders;
  for (const auto& entry : fs::directory_iterator(checkpoints)) {
    const std::string name = entry.path().filename().string();
    if (entry.is_directory() && !entry.is_symlink() && name.starts_with("step-") &&
        name.find('.') == std::string::npos)
      folders.push_back(entry.path());
  }
  // Newest first, by number: beyond 8 digits the names grow longer.
  std::ranges::sort(folders, std::greater{}, [](const fs::path& folder) {
    return std::pair(folder.native().size(), folder.native());
  });
  return folders;
}

void link_checkpoint(const fs::path& checkpoints, const std::string& link, std::int64_t step) {
  const std::string name = checkpoint_name(step);
  if (fs::is_directory(checkpoints / name)) replace_link(checkpoints / link, name);
}

void set_aside_newer(const fs::path& checkpoints, std::int64_t step) {
  for (const fs::path& folder : checkpoint_folders(checkpoints)) {
    if (folder.filename() == checkpoint_name(step)) return;
    fs::remove_all(folder.string() + ".damaged");
    fs::rename(folder, folder.string() + ".damaged");
    log_warning("{}: set aside under the name with .damaged", folder.string());
  }
}

void prune_checkpoints(const fs::path& checkpoints, std::int64_t keep) {
  std::error_code none;
  const std::string best = fs::read_symlink(checkpoints / "best", none).string();
  const std::vector<fs::path> folders = checkpoint_folders(checkpoints);
  for (const auto& entry : fs::directory_iterator(checkpoints)) {
    const std::string name = entry.path().filename().string();
    if (name.ends_with(kPruned) || (name.starts_with("step-") && name.ends_with(".tmp")))
      fs::remove_all(entry.path(), none);  // a kill came between
  }
  for (std::size_t i = static_cast<std::size_t>(keep); i < folders.size(); ++i) {
    if (folders[i].filename() == best) continue;
    // A folder that is being removed must not look like a checkpoint.
    std::error_code failed;
    fs::rename(folders[i], folders[i].string() + kPruned, failed);
    if (!failed) fs::remove_all(folders[i].string() + kPruned, failed);
    if (failed) log_warning("{}: cannot be removed: {}", folders[i].string(), failed.message());
  }
}

CheckpointInfo read_checkpoint(const fs::path& checkpoint) {
  return checked_state(checkpoint).info;
}

std::optional<fs::path> newest_checkpoint(const fs::path& checkpoints) {
  const std::vector<fs::path> folders = checkpoint_folders(checkpoints);
  if (folders.empty()) return std::nullopt;
  for (const fs::path& folder : folders) {
    try {
      read_checkpoint(folder);
      return folder;
    } catch (const BadInput& error) {
      log_warning("checkpoint not used: {}", error.what());
    }
  }
  throw CheckpointError(fmt::format("{}: none of its checkpoints can be used", checkpoints.string()));
}

}  // namespace exfusion
