#include "analysis/write_hdf5.h"

#include <hdf5.h>

#include <algorithm>

#include "core/error.h"
#include "io/files.h"

namespace exfusion::analysis {
namespace {

using Handle = Hdf5Handle;

[[noreturn]] void refuse_write(const std::string& what) {
  throw FileError("cannot write " + what);
}

Handle checked(hid_t id, herr_t (*close)(hid_t), const std::string& what) {
  if (id < 0) refuse_write(what);
  return {id, close};
}

Handle space_of(const std::vector<std::size_t>& sizes, const std::string& what) {
  const std::vector<hsize_t> extent(sizes.begin(), sizes.end());
  return checked(extent.empty() ? H5Screate(H5S_SCALAR)
                                : H5Screate_simple(static_cast<int>(extent.size()), extent.data(), nullptr),
                 H5Sclose, what);
}

void write_attribute(hid_t object, const std::string& name, hid_t stored, hid_t memory,
                     const std::vector<std::size_t>& sizes, const void* values) {
  const Handle space = space_of(sizes, name);
  const Handle attribute =
      checked(H5Acreate2(object, name.c_str(), stored, space, H5P_DEFAULT, H5P_DEFAULT), H5Aclose, name);
  if (H5Awrite(attribute, memory, values) < 0) refuse_write(name);
}

struct Types {
  hid_t stored, memory;
};
template <class T>
Types types() {
  if constexpr (std::is_same_v<T, std::int32_t>) return {H5T_STD_I32LE, H5T_NATIVE_INT32};
  if constexpr (std::is_same_v<T, std::int64_t>) return {H5T_STD_I64LE, H5T_NATIVE_INT64};
  if constexpr (std::is_same_v<T, float>) return {H5T_IEEE_F32LE, H5T_NATIVE_FLOAT};
  return {H5T_IEEE_F64LE, H5T_NATIVE_DOUBLE};
}

}  // namespace

void write_hdf5_file(const std::filesystem::path& file, const std::function<void(std::int64_t file)>& write) {
  const std::string temporary = file.string() + ".tmp";
  {
    H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
    const Handle created =
        checked(H5Fcreate(temporary.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT), H5Fclose, temporary);
    write(created);
    if (H5Fflush(created, H5F_SCOPE_LOCAL) < 0) refuse_write(temporary);
  }
  replace_file(temporary, file);
}

Hdf5Handle create_group(std::int64_t parent, const std::string& name) {
  return checked(H5Gcreate2(parent, name.c_str(), H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT), H5Gclose, name);
}

void write_texts(std::int64_t object, const std::string& name, const std::vector<std::string>& texts,
                 bool scalar) {
  std::size_t size = 1;
  for (const std::string& text : texts) size = std::max(size, text.size());
  std::string all;
  for (std::string text : texts) {
    text.resize(size, '\0');
    all += text;
  }
  const Handle type = checked(H5Tcopy(H5T_C_S1), H5Tclose, name);
  H5Tset_size(type, size);
  H5Tset_cset(type, H5T_CSET_UTF8);
  write_attribute(object, name, type, type, scalar ? std::vector<std::size_t>() : std::vector{texts.size()},
                  all.data());
}

void write_integer(std::int64_t object, const std::string& name, std::int64_t value) {
  write_attribute(object, name, H5T_STD_I64LE, H5T_NATIVE_INT64, {}, &value);
}

void write_number(std::int64_t object, const std::string& name, double value) {
  write_attribute(object, name, H5T_IEEE_F64LE, H5T_NATIVE_DOUBLE, {}, &value);
}

template <class T>
void write_values(std::int64_t group, const std::string& name, const std::vector<std::size_t>& sizes,
                  const std::vector<T>& values) {
  const Handle space = space_of(sizes, name);
  const Types type = types<T>();
  const Handle dataset =
      checked(H5Dcreate2(group, name.c_str(), type.stored, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT),
              H5Dclose, name);
  if (!values.empty() && H5Dwrite(dataset, type.memory, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()) < 0)
    refuse_write(name);
}
template void write_values(std::int64_t, const std::string&, const std::vector<std::size_t>&,
                           const std::vector<double>&);
template void write_values(std::int64_t, const std::string&, const std::vector<std::size_t>&,
                           const std::vector<float>&);
template void write_values(std::int64_t, const std::string&, const std::vector<std::size_t>&,
                           const std::vector<std::int32_t>&);
template void write_values(std::int64_t, const std::string&, const std::vector<std::size_t>&,
                           const std::vector<std::int64_t>&);

}  // namespace exfusion::analysis
