#include "io/open_files.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>
#include <utility>

#include "core/error.h"

namespace exfusion {
namespace {

int flags_of(OutputFile::Mode mode) {
  switch (mode) {
    case OutputFile::Mode::kNew:
      return O_CREAT | O_EXCL;
    case OutputFile::Mode::kPart:
      return 0;
    default:
      return O_CREAT | O_TRUNC;
  }
}

// Writes all bytes by calls of `write(data, size)`, each of which takes some.
template <class Write>
void write_all(const std::string& path, const void* data, std::size_t size, const Write& write) {
  const char* rest = static_cast<const char*>(data);
  while (size > 0) {
    const ssize_t count = write(rest, size);
    if (count < 0) {
      if (errno == EINTR) continue;
      refuse_file("write", path, errno);
    }
    rest += count;
    size -= static_cast<std::size_t>(count);
  }
}

}  // namespace

void refuse_file(const std::string& action, const std::filesystem::path& path, int error) {
  throw FileError("cannot " + action + " " + path.string() + ": " + std::generic_category().message(error));
}

OutputFile::OutputFile(std::string path, Mode mode) : path_(std::move(path)) {
  descriptor_ = ::open(path_.c_str(), O_WRONLY | O_CLOEXEC | flags_of(mode), 0666);
  if (descriptor_ < 0) refuse_file(mode == Mode::kPart ? "open" : "create", path_, errno);
}

OutputFile::~OutputFile() {
  ::close(descriptor_);
}

void OutputFile::write(const void* data, std::size_t size) {
  write_all(path_, data, size,
            [&](const char* rest, std::size_t left) { return ::write(descriptor_, rest, left); });
}

void OutputFile::write_at(std::uint64_t place, const void* data, std::size_t size) {
  const char* begin = static_cast<const char*>(data);
  write_all(path_, data, size, [&](const char* rest, std::size_t left) {
    return ::pwrite(descriptor_, rest, left, static_cast<off_t>(place) + (rest - begin));
  });
}

void OutputFile::resize(std::uint64_t size) {
  if (::ftruncate(descriptor_, static_cast<off_t>(size)) != 0) refuse_file("resize", path_, errno);
}

void OutputFile::sync() {
  if (::fsync(descriptor_) != 0) refuse_file("sync", path_, errno);
}

InputFile::InputFile(std::filesystem::path path)
    : path_(std::move(path)), descriptor_(::open(path_.c_str(), O_RDONLY | O_CLOEXEC)) {
  if (descriptor_ < 0) refuse_file("open", path_, errno);
}

InputFile::~InputFile() {
  ::close(descriptor_);
}

std::size_t InputFile::read(char* data, std::size_t size) {
  while (true) {
    const ssize_t count = ::read(descriptor_, data, size);
    if (count >= 0) return static_cast<std::size_t>(count);
    if (errno != EINTR) refuse_file("read", path_, errno);
  }
}

void InputFile::seek(std::uint64_t place) {
  if (::lseek(descriptor_, static_cast<off_t>(place), SEEK_SET) < 0) refuse_file("read", path_, errno);
}

void InputFile::sync() {
  if (::fsync(descriptor_) != 0) refuse_file("sync", path_, errno);
}

}  // namespace exfusion
