// Files and folders that are either whole or absent, whatever happens while they are written.
#pragma once
#include <cstdint>
#include <filesystem>
#include <string>

namespace exfusion {

// Reads a whole file of at most `limit` bytes. Throws FileError, or FormatError when it is larger.
std::string read_file(const std::filesystem::path& path, std::uint64_t limit = 1u << 30);
// Temporary file beside `path`, fsync, rename, fsync of the folder.
void write_file(const std::filesystem::path& path, const std::string& contents);
// Syncs `temporary`, which is complete, renames it to `path` in the same folder and syncs the folder.
void replace_file(const std::filesystem::path& temporary, const std::filesystem::path& path);
void sync_path(const std::filesystem::path& path);  // fsync of a file or folder
// CRC-32 (zlib) of a file's bytes, as 8 hex digits.
std::string file_crc32(const std::filesystem::path& path);
std::string text_crc32(const std::string& text);
// Points `link` at `target` (relative, in the same folder) in one step.
void replace_link(const std::filesystem::path& link, const std::string& target);

// A folder that appears under its final name only once it is complete: write into path(), then commit().
// Without commit the destructor removes what was written.
class PendingFolder {
 public:
  explicit PendingFolder(const std::filesystem::path& final_path);  // makes final_path + ".tmp" anew
  ~PendingFolder();
  PendingFolder(const PendingFolder&) = delete;
  PendingFolder& operator=(const PendingFolder&) = delete;
  const std::filesystem::path& path() const { return temporary_; }
  // Syncs files and folder, renames (replacing an older folder of that name), syncs the parent.
  // Throws FileError.
  void commit();

 private:
  std::filesystem::path final_, temporary_;
  bool committed_ = false;
};

// For drills: kills this process (SIGKILL) at the n-th passage of the point that EXFUSION_FAULT=name:n names;
// otherwise does nothing. Points here: file-written, file-renamed (replace_file), folder-synced,
// folder-renamed (commit).
void fault_point(const char* name);

}  // namespace exfusion
