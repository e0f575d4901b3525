#include "io/files.h"

#include <zlib.h>

#include <array>
#include <atomic>
#include <charconv>
#include <csignal>
#include <cstdlib>
#include <limits>
#include <system_error>

#include "core/error.h"
#include "io/checksums.h"
#include "io/open_files.h"

namespace exfusion {
namespace fs = std::filesystem;
namespace {

void check(const std::error_code& error, const std::string& action, const fs::path& path) {
  if (error) throw FileError("cannot " + action + " " + path.string() + ": " + error.message());
}

fs::path with_suffix(fs::path path, const char* suffix) {
  return path += suffix;
}

fs::path parent_folder(const fs::path& path) {
  return path.has_parent_path() ? path.parent_path() : fs::path(".");
}

void move(const fs::path& from, const fs::path& to) {
  std::error_code error;
  fs::rename(from, to, error);
  check(error, "rename " + from.string() + " to", to);
}

void remove_whole(const fs::path& path) {
  std::error_code error;
  fs::remove_all(path, error);
  check(error, "remove", path);
}

bool present(const fs::path& path) {
  std::error_code error;
  const fs::file_status status = fs::symlink_status(path, error);
  if (status.type() == fs::file_type::not_found) return false;
  check(error, "look at", path);
  return true;
}

}  // namespace

std::string read_file(const fs::path& path, std::uint64_t limit) {
  InputFile file(path);
  std::string contents;
  std::array<char, 1 << 16> block;
  while (const std::size_t count = file.read(block.data(), block.size())) {
    if (count > limit - contents.size()) {
      throw FormatError(path.string() + ": larger than the " + std::to_string(limit) +
                        " bytes expected at most");
    }
    contents.append(block.data(), count);
  }
  return contents;
}

void write_file(const fs::path& path, const std::string& contents) {
  const fs::path temporary = with_suffix(path, ".tmp");
  try {
    OutputFile(temporary.string()).write(contents);
    replace_file(temporary, path);
  } catch (...) {
    std::error_code ignored;
    fs::remove(temporary, ignored);
    throw;
  }
}

void replace_file(const fs::path& temporary, const fs::path& path) {
  sync_path(temporary);
  fault_point("file-written");
  move(temporary, path);
  fault_point("file-renamed");
  sync_path(parent_folder(path));
}

void sync_path(const fs::path& path) {
  InputFile(path).sync();
}

std::string file_crc32(const fs::path& path) {
  return crc32_text(range_crc32(path, 0, std::numeric_limits<std::uint64_t>::max()));
}

std::string text_crc32(const std::string& text) {
  const uLong checksum =
      crc32_z(crc32_z(0, nullptr, 0), reinterpret_cast<const Bytef*>(text.data()), text.size());
  return crc32_text(static_cast<std::uint32_t>(checksum));
}

void replace_link(const fs::path& link, const std::string& target) {
  const fs::path temporary = with_suffix(link, ".tmp");
  remove_whole(temporary);
  std::error_code error;
  fs::create_symlink(target, temporary, error);
  check(error, "create the link", temporary);
  move(temporary, link);
  sync_path(parent_folder(link));
}

PendingFolder::PendingFolder(const fs::path& final_path)
    // "runs/x/" names the folder "runs/x"
    : final_(final_path.has_filename() ? final_path : final_path.parent_path()),
      temporary_(with_suffix(final_, ".tmp")) {
  // A process that died between the two renames of commit() left the older folder aside.
  const fs::path old = with_suffix(final_, ".old");
  if (!present(final_) && present(old)) move(old, final_);
  remove_whole(temporary_);
  std::error_code error;
  fs::create_directories(temporary_, error);
  check(error, "create the folder", temporary_);
}

PendingFolder::~PendingFolder() {
  if (committed_) return;
  std::error_code ignored;
  fs::remove_all(temporary_, ignored);
}

void PendingFolder::commit() {
  std::error_code error;
  fs::recursive_directory_iterator entry(temporary_, error), end;
  for (; !error && entry != end; entry.increment(error)) {
    if (!entry->is_symlink()) sync_path(entry->path());
  }
  check(error, "list", temporary_);
  sync_path(temporary_);
  fault_point("folder-synced");

  const fs::path old = with_suffix(final_, ".old");
  remove_whole(old);
  if (present(final_)) move(final_, old);
  move(temporary_, final_);
  committed_ = true;
  fault_point("folder-renamed");
  sync_path(parent_folder(final_));
  remove_whole(old);
}

namespace {

struct Fault {
  std::string name;
  std::uint64_t passage = 0;  // 0: no fault
};

Fault fault_from_environment() {
  const char* value = std::getenv("EXFUSION_FAULT");
  if (value == nullptr || *value == '\0') return {};
  const std::string text = value;
  const std::size_t colon = text.rfind(':');
  Fault fault{text.substr(0, colon), 0};
  if (colon != std::string::npos) {
    const char* end = text.data() + text.size();
    const auto [rest, error] = std::from_chars(text.data() + colon + 1, end, fault.passage);
    if (error == std::errc() && rest == end && fault.passage > 0) return fault;
  }
  throw UsageError("EXFUSION_FAULT=" + text + ": expected name:n with n >= 1");
}

}  // namespace

void fault_point(const char* name) {
  static const Fault fault = fault_from_environment();
  static std::atomic<std::uint64_t> passages = 0;
  if (fault.passage == 0 || fault.name != name) return;
  if (++passages == fault.passage) std::raise(SIGKILL);
}

}  // namespace exfusion
