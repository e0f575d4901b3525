// What this layer's HDF5 files are written with. HDF5's hid_t and herr_t are spelled out, as in
// io/hdf5_handle.h.
#pragma once
#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "io/hdf5_handle.h"

namespace exfusion::analysis {

// A file that is whole or absent: `write` fills it under another name. Throws FileError.
void write_hdf5_file(const std::filesystem::path& file, const std::function<void(std::int64_t file)>& write);

// Throw FileError with the name where HDF5 does not take them.
Hdf5Handle create_group(std::int64_t parent, const std::string& name);
void write_texts(std::int64_t object, const std::string& name, const std::vector<std::string>& texts,
                 bool scalar);                                                         // attribute
void write_integer(std::int64_t object, const std::string& name, std::int64_t value);  // attribute
void write_number(std::int64_t object, const std::string& name, double value);         // attribute
// A contiguous data set, little-endian in the type of the values: double, float, int32_t or int64_t. No
// sizes: a scalar.
template <class T>
void write_values(std::int64_t group, const std::string& name, const std::vector<std::size_t>& sizes,
                  const std::vector<T>& values);

}  // namespace exfusion::analysis
