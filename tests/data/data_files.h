// Small data files for tests, written into a folder that goes with the test.
#pragma once
#include <gtest/gtest.h>
#include <zlib.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <string>
#include <vector>

#include "core/error.h"
#include "data/dataset.h"
#include "support/test_folder.h"

namespace exfusion {

inline void write_gzip(const std::filesystem::path& path, const std::string& bytes) {
  const gzFile file = gzopen(path.c_str(), "wb");
  gzwrite(file, bytes.data(), static_cast<unsigned>(bytes.size()));
  gzclose(file);
}

inline std::string big_endian(std::uint32_t value) {
  return {static_cast<char>(value >> 24), static_cast<char>(value >> 16), static_cast<char>(value >> 8),
          static_cast<char>(value)};
}

inline std::string idx_images(std::uint32_t count, std::uint32_t height, std::uint32_t width) {
  std::string bytes = big_endian(0x803) + big_endian(count) + big_endian(height) + big_endian(width);
  for (std::uint32_t pixel = 0; pixel < count * height * width; ++pixel) {
    bytes += static_cast<char>(pixel * 7 % 256);
  }
  return bytes;
}

inline std::string idx_labels(std::uint32_t count, std::uint32_t classes) {
  std::string bytes = big_endian(0x801) + big_endian(count);
  for (std::uint32_t index = 0; index < count; ++index) bytes += static_cast<char>(index % classes);
  return bytes;
}

// Runs `build`; its DataError must contain every fragment and be one line.
inline void expect_data_error(const std::function<void()>& build, const std::vector<std::string>& fragments) {
  try {
    build();
    ADD_FAILURE() << "no DataError";
  } catch (const DataError& error) {
    const std::string message = error.what();
    for (const std::string& fragment : fragments) {
      EXPECT_NE(message.find(fragment), std::string::npos) << "'" << fragment << "' is not in: " << message;
    }
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
  }
}

// Every step-th byte of `path` damaged in turn: `build` must succeed or throw DataError.
inline void damage_in_turn(const std::filesystem::path& path, std::size_t step,
                           const std::function<void()>& build) {
  const std::string whole = read_bytes(path);
  for (std::size_t position = 0; position < whole.size(); position += step) {
    std::string damaged = whole;
    damaged[position] = static_cast<char>(~damaged[position]);
    std::filesystem::remove(path);  // HDF5 may still hold the last one open and would look no further
    write_bytes(path, damaged);
    try {
      build();
    } catch (const DataError& error) {
      EXPECT_NE(std::string(error.what()).find(path.filename().string()), std::string::npos) << error.what();
    }
  }
  write_bytes(path, whole);
}

}  // namespace exfusion
