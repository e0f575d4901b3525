#include "train/run_folder.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "core/error.h"
#include "core/log.h"
#include "io/files.h"
#include "train/run_config.h"
#include "train/versions.h"

namespace exfusion {

namespace fs = std::filesystem;

namespace {

bool looks_like_run(const fs::path& path) {
  return RunFolder::is_unused(path) || (fs::exists(path / "recipe.yaml") && fs::exists(path / "checkpoints"));
}

}  // namespace

// Of a run that ended before it wrote its recipe there is nothing but these.
bool RunFolder::is_unused(const fs::path& path) {
  if (!fs::is_directory(path)) return false;
  for (const auto& entry : fs::directory_iterator(path)) {
    const std::string name = entry.path().filename().string();
    if (name != "train.log" && !name.starts_with("train.rank-") && name != "recipe.yaml.tmp" &&
        !(name == "checkpoints" && fs::is_empty(entry.path())))
      return false;
  }
  return true;
}

RunFolder::RunFolder(fs::path path, bool hold) : path_(std::move(path)) {
  if (!hold) return;
  lock_ = ::open(path_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (lock_ < 0)
    throw FileError(fmt::format("{}: cannot be opened: {}", path_.string(), std::strerror(errno)));
  if (::flock(lock_, LOCK_EX | LOCK_NB) != 0) {
    ::close(lock_);
    throw RunFolderError(fmt::format("{}: another process is training in this folder", path_.string()));
  }
}

RunFolder::RunFolder(RunFolder&& other) noexcept
    : path_(std::move(other.path_)),
      replaced_(std::move(other.replaced_)),
      lock_(std::exchange(other.lock_, -1)) {}

RunFolder::~RunFolder() {
  if (lock_ >= 0) ::close(lock_);
}

RunFolder RunFolder::create(const fs::path& path, bool overwrite) {
  std::error_code error;
  fs::path replaced;
  if (fs::exists(path, error)) {
    if (!overwrite)
      throw RunFolderError(fmt::format(
          "{}: exists; {}replace it with --overwrite", path.string(),
          fs::exists(path / "recipe.yaml") ? "go on with --resume " + path.string() + ", or " : ""));
    if (!looks_like_run(path))
      throw RunFolderError(fmt::format(
          "{}: not a run's folder (no recipe.yaml), so --overwrite leaves it alone", path.string()));
    const RunFolder held(path);  // nobody may be training in it
    replaced = (path.has_filename() ? path : path.parent_path()).string() + ".old";
    if (fs::exists(replaced, error))
      throw RunFolderError(
          fmt::format("{}: an earlier --overwrite set this run aside and was killed; move it away "
                      "or remove it",
                      replaced.string()));
    fs::rename(path, replaced, error);
    if (error) throw FileError(fmt::format("{}: cannot be set aside: {}", path.string(), error.message()));
  }
  fs::create_directories(path / "checkpoints", error);
  if (error) throw FileError(fmt::format("{}: cannot be made: {}", path.string(), error.message()));
  RunFolder folder(path);
  folder.replaced_ = replaced;
  return folder;
}

void RunFolder::started() const {
  std::error_code error;
  if (!replaced_.empty()) fs::remove_all(replaced_, error);
  if (error) log_warning("{}: cannot be removed: {}", replaced_.string(), error.message());
}

void RunFolder::withdraw() const {
  std::error_code error;
  fs::remove_all(path_, error);
  if (!replaced_.empty()) fs::rename(replaced_, path_, error);
  if (error) log_warning("{}: cannot be put back: {}", replaced_.string(), error.message());
}

void RunFolder::check(const fs::path& path) {
  if (!fs::is_regular_file(path / "recipe.yaml"))
    throw CheckpointError(fmt::format("{}: not a run's folder (recipe.yaml is missing)", path.string()));
}

void RunFolder::check_recipe(const fs::path& path, const std::string& resolved) {
  check(path);
  const std::string line = changed_line(read_file(path / "recipe.yaml"), resolved);
  if (!line.empty())
    throw CheckpointError(fmt::format(
        "{}: holds a run of another recipe ('{}' differs): choose another --out, or give --overwrite",
        path.string(), line.substr(line.find_first_not_of(' '))));
}

RunFolder RunFolder::open(const fs::path& path) {
  check(path);
  return RunFolder(path);
}

void RunFolder::write_recipe(const std::string& resolved, const std::string& data_checksum) const {
  const std::string data = data_checksum.empty() ? "" : ", data " + data_checksum;
  write_file(recipe(), fmt::format("# {}\n# recipe crc32 {}{}\n{}", version_text(), text_crc32(resolved),
                                   data, resolved));
}

}  // namespace exfusion
