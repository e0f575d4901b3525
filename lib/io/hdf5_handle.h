// An HDF5 identifier that closes itself. HDF5's hid_t and herr_t are spelled out, so that only those who call
// HDF5 include it.
#pragma once
#include <cstdint>
#include <utility>

namespace exfusion {

class Hdf5Handle {
 public:
  Hdf5Handle() = default;                                                              // none
  Hdf5Handle(std::int64_t id, int (*close)(std::int64_t)) : id_(id), close_(close) {}  // negative: none
  Hdf5Handle(Hdf5Handle&& other) noexcept : id_(std::exchange(other.id_, -1)), close_(other.close_) {}
  Hdf5Handle& operator=(Hdf5Handle&& other) noexcept {
    std::swap(id_, other.id_);
    std::swap(close_, other.close_);
    return *this;
  }
  ~Hdf5Handle() {
    if (id_ >= 0) close_(id_);
  }
  operator std::int64_t() const { return id_; }
  explicit operator bool() const { return id_ >= 0; }

 private:
  std::int64_t id_ = -1;
  int (*close_)(std::int64_t) = nullptr;
};

}  // namespace exfusion
