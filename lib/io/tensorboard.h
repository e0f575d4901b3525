// TensorBoard event files: TFRecord framing with masked CRC-32C around hand-encoded Event messages, so no
// protobuf is linked.
#pragma once
#include <cstdint>
#include <memory>
#include <string>

namespace exfusion {

class EventFile {
 public:
  // Opens a new `folder`/events.out.tfevents.<seconds>.<host>.<pid>. With resumed_at >= 0 a SessionLog START
  // event tells TensorBoard to drop what earlier files of the folder hold at later steps. Throws FileError.
  explicit EventFile(const std::string& folder, std::int64_t resumed_at = -1);
  ~EventFile();
  EventFile(const EventFile&) = delete;
  EventFile& operator=(const EventFile&) = delete;
  void scalar(const std::string& tag, std::int64_t step, double value);
  void flush();

 private:
  struct Stream;
  std::unique_ptr<Stream> stream_;
};

}  // namespace exfusion
