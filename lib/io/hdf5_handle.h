// An HDF5 identifier that closes itself. HDF5's hid_t and herr_t are spelled out, so that only those who call
// HDF5 include it.
#pragma once
#include <cstdint>

namespace exfusion {

class Hdf5Handle {
 public:
  Hdf5Handle(std::int64_t id, int (*close)(std::int64_t)) : id_(id), close_(close) {}  // negative: none
  ~Hdf5Handle() {
    if (id_ >= 0) close_(id_);
  }
  Hdf5Handle(const Hdf5Handle&) = delete;
  Hdf5Handle& operator=(const Hdf5Handle&) = delete;
  operator std::int64_t() const { return id_; }

 private:
  std::int64_t id_;
  int (*close_)(std::int64_t);
};

}  // namespace exfusion
