// Files opened for reading or writing, without a buffer. Every function throws FileError with the path and
// the system's reason.
#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

namespace exfusion {

class OutputFile {
 public:
  enum class Mode { kReplace, kNew, kPart };  // kNew: must not exist; kPart: must, and stays as it is
  explicit OutputFile(std::string path, Mode mode = Mode::kReplace);
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;
  void write(const void* data, std::size_t size);
  void write(std::string_view text) { write(text.data(), text.size()); }
  void write_at(std::uint64_t place, const void* data, std::size_t size);  // does not move where write() goes
  void resize(std::uint64_t size);
  void sync();  // fsync

 private:
  std::string path_;
  int descriptor_;
};

class InputFile {
 public:
  explicit InputFile(std::filesystem::path path);
  ~InputFile();
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;
  std::size_t read(char* data, std::size_t size);  // up to `size` bytes; 0 at the end of the file
  void seek(std::uint64_t place);
  void sync();  // fsync

 private:
  std::filesystem::path path_;
  int descriptor_;
};

// Throws the FileError "cannot ACTION PATH: reason of errno's value `error`".
[[noreturn]] void refuse_file(const std::string& action, const std::filesystem::path& path, int error);

}  // namespace exfusion
