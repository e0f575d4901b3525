#include "io/tensorboard.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <string_view>

#include "core/error.h"
#include "io/crc32c.h"
#include "io/open_files.h"

namespace exfusion {
namespace fs = std::filesystem;
namespace {

constexpr std::string_view kNameStart = "events.out.tfevents.";

constexpr std::array<std::uint32_t, 256> crc32c_table() {
  std::array<std::uint32_t, 256> table{};
  for (std::uint32_t byte = 0; byte < 256; ++byte) {
    std::uint32_t value = byte;
    for (int bit = 0; bit < 8; ++bit) value = (value >> 1) ^ ((value & 1u) != 0 ? 0x82f63b78u : 0u);
    table[byte] = value;
  }
  return table;
}

template <typename Number>
void append_raw(std::string& to, Number value) {
  to.append(reinterpret_cast<const char*>(&value), sizeof value);
}

// The protocol buffer wire format: a field is (number << 3 | wire type) and its value.
void append_varint(std::string& to, std::uint64_t value) {
  for (; value >= 0x80; value >>= 7) to.push_back(static_cast<char>(value | 0x80));
  to.push_back(static_cast<char>(value));
}

void append_integer(std::string& to, int field, std::int64_t value) {
  append_varint(to, static_cast<std::uint64_t>(field) << 3);
  append_varint(to, static_cast<std::uint64_t>(value));
}

void append_bytes(std::string& to, int field, std::string_view value) {
  append_varint(to, static_cast<std::uint64_t>(field) << 3 | 2);
  append_varint(to, value.size());
  to += value;
}

void append_double(std::string& to, int field, double value) {
  append_varint(to, static_cast<std::uint64_t>(field) << 3 | 1);
  append_raw(to, value);
}

void append_float(std::string& to, int field, float value) {
  append_varint(to, static_cast<std::uint64_t>(field) << 3 | 5);
  append_raw(to, value);
}

// TFRecord: checksums are rotated and shifted, since a checksum of bytes that hold checksums is weak.
std::uint32_t masked_crc32c(std::string_view bytes) {
  const std::uint32_t checksum = crc32c(bytes);
  return ((checksum >> 15) | (checksum << 17)) + 0xa282ead8u;
}

void append_record(std::string& to, std::string_view data) {
  std::string length;
  append_raw(length, static_cast<std::uint64_t>(data.size()));
  to += length;
  append_raw(to, masked_crc32c(length));
  to += data;
  append_raw(to, masked_crc32c(data));
}

// Event: wall_time = 1 (double), step = 2 (int64), file_version = 3, summary = 5, session_log = 7.
std::string event_start(std::int64_t step) {
  using Seconds = std::chrono::duration<double>;
  std::string event;
  append_double(event, 1, Seconds(std::chrono::system_clock::now().time_since_epoch()).count());
  append_integer(event, 2, step);
  return event;
}

// TensorBoard reads the files of a folder in the order of their names: a new one must sort behind all others,
// also within a second and after the clock was set back.
std::int64_t next_time(const fs::path& folder) {
  using std::chrono::duration_cast, std::chrono::seconds;
  std::int64_t next = duration_cast<seconds>(std::chrono::system_clock::now().time_since_epoch()).count();
  std::error_code error;
  fs::directory_iterator entry(folder, error), end;
  for (; !error && entry != end; entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    if (!name.starts_with(kNameStart)) continue;
    std::int64_t time = 0;
    const char* digits = name.data() + kNameStart.size();
    const auto [rest, failed] = std::from_chars(digits, name.data() + name.size(), time);
    if (failed == std::errc() && rest == digits + 10) next = std::max(next, time + 1);
  }
  if (error) throw FileError("cannot list " + folder.string() + ": " + error.message());
  return next;
}

std::string new_path(const fs::path& folder) {
  std::array<char, 256> host{};
  if (::gethostname(host.data(), host.size() - 1) != 0 || host[0] == '\0')
    std::strcpy(host.data(), "localhost");
  return (folder / (std::string(kNameStart) + std::to_string(next_time(folder)) + "." + host.data() + "." +
                    std::to_string(::getpid())))
      .string();
}

}  // namespace

std::uint32_t crc32c(std::string_view bytes) {
  static constexpr std::array<std::uint32_t, 256> table = crc32c_table();
  std::uint32_t value = 0xffffffffu;
  for (const char byte : bytes)
    value = (value >> 8) ^ table[(value ^ static_cast<unsigned char>(byte)) & 0xffu];
  return ~value;
}

struct EventFile::Stream {
  explicit Stream(const std::string& path) : file(path, OutputFile::Mode::kNew) {}
  OutputFile file;
  std::string pending;  // whole records not yet written
};

EventFile::EventFile(const std::string& folder, std::int64_t resumed_at)
    : stream_(std::make_unique<Stream>(new_path(folder))) {
  std::string version = event_start(0);
  append_bytes(version, 3, "brain.Event:2");
  append_record(stream_->pending, version);
  if (resumed_at >= 0) {
    // TensorBoard drops what it has at steps >= the step of a SessionLog whose status (1) is START (1).
    std::string session;
    append_integer(session, 1, 1);
    std::string event = event_start(resumed_at + 1);
    append_bytes(event, 7, session);
    append_record(stream_->pending, event);
  }
  flush();
}

EventFile::~EventFile() {
  try {
    flush();
  } catch (const FileError&) {  // a destructor has nobody to tell
  }
}

void EventFile::scalar(const std::string& tag, std::int64_t step, double value) {
  std::string entry;  // Summary.Value: tag = 1, simple_value = 2 (float)
  append_bytes(entry, 1, tag);
  append_float(entry, 2, static_cast<float>(value));
  std::string summary;  // Summary: value = 1
  append_bytes(summary, 1, entry);
  std::string event = event_start(step);
  append_bytes(event, 5, summary);
  append_record(stream_->pending, event);
}

void EventFile::flush() {
  if (stream_->pending.empty()) return;
  std::string records;
  records.swap(stream_->pending);
  stream_->file.write(records);
}

}  // namespace exfusion
