// A file opened for writing, without a buffer. Internal to lib/io.
#pragma once
#include <cstddef>
#include <string>
#include <string_view>

namespace exfusion {

class OutputFile {
 public:
  enum class Mode { kReplace, kNew };  // kNew: FileError when the file exists
  // Every member throws FileError with the path and the system's reason.
  explicit OutputFile(std::string path, Mode mode = Mode::kReplace);
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;
  void write(const void* data, std::size_t size);
  void write(std::string_view text) { write(text.data(), text.size()); }
  void sync();  // fsync

 private:
  std::string path_;
  int descriptor_;
};

}  // namespace exfusion
