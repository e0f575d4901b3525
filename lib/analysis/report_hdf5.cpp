#include <hdf5.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "analysis/report.h"
#include "core/error.h"
#include "io/files.h"
#include "io/hdf5_handle.h"

namespace exfusion::analysis {
namespace {

using Json = nlohmann::ordered_json;

using Handle = Hdf5Handle;

Handle checked(hid_t id, herr_t (*close)(hid_t), const std::string& what) {
  if (id < 0) throw FileError("cannot write " + what);
  return {id, close};
}

bool numeric(const Json& value) {
  return value.is_number() || value.is_boolean() || value.is_null();
}

double number(const Json& value) {
  if (value.is_null()) return std::nan("");
  return value.is_boolean() ? value.get<bool>() : value.get<double>();
}

void write_text(hid_t group, const std::string& name, const std::string& text) {
  const Handle type = checked(H5Tcopy(H5T_C_S1), H5Tclose, name);
  const Handle space = checked(H5Screate(H5S_SCALAR), H5Sclose, name);
  H5Tset_size(type, text.empty() ? 1 : text.size());
  H5Tset_cset(type, H5T_CSET_UTF8);
  const Handle attribute =
      checked(H5Acreate2(group, name.c_str(), type, space, H5P_DEFAULT, H5P_DEFAULT), H5Aclose, name);
  if (H5Awrite(attribute, type, text.c_str()) < 0) throw FileError("cannot write " + name);
}

void write_numbers(hid_t group, const std::string& name, const std::vector<hsize_t>& sizes,
                   const std::vector<double>& values) {
  const Handle space =
      checked(sizes.empty() ? H5Screate(H5S_SCALAR)
                            : H5Screate_simple(static_cast<int>(sizes.size()), sizes.data(), nullptr),
              H5Sclose, name);
  const Handle dataset =
      checked(H5Dcreate2(group, name.c_str(), H5T_IEEE_F64LE, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT),
              H5Dclose, name);
  if (!values.empty() &&
      H5Dwrite(dataset, H5T_NATIVE_DOUBLE, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()) < 0)
    throw FileError("cannot write " + name);
}

void write_object(hid_t parent, const std::string& name, const Json& object);

void write_value(hid_t group, const std::string& name, const Json& value) {
  if (value.is_string()) return write_text(group, name, value.get<std::string>());
  if (value.is_object()) return write_object(group, name, value);
  if (numeric(value)) return write_numbers(group, name, {}, {number(value)});
  if (std::all_of(value.begin(), value.end(), numeric)) {
    std::vector<double> values;
    for (const Json& one : value) values.push_back(number(one));
    return write_numbers(group, name, {values.size()}, values);
  }
  const Handle rows =
      checked(H5Gcreate2(group, name.c_str(), H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT), H5Gclose, name);
  for (std::size_t i = 0; i < value.size(); ++i) write_value(rows, std::to_string(i), value[i]);
}

void write_object(hid_t parent, const std::string& name, const Json& object) {
  const Handle group =
      checked(H5Gcreate2(parent, name.c_str(), H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT), H5Gclose, name);
  for (const auto& [key, value] : object.items()) write_value(group, key, value);
}

}  // namespace

void write_report_hdf5(const Json& report, const std::filesystem::path& file) {
  const std::string temporary = file.string() + ".tmp";
  {
    H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
    const Handle created =
        checked(H5Fcreate(temporary.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT), H5Fclose, temporary);
    write_text(created, "format", "exfusion-analysis");
    for (const Json& layer : report.at("layers")) {
      const std::string number = layer.at("layer").dump();
      write_object(created, "layer_" + std::string(number.size() < 3 ? 3 - number.size() : 0, '0') + number,
                   layer);
    }
    write_object(created, "model", report.at("model"));
    if (H5Fflush(created, H5F_SCOPE_LOCAL) < 0) throw FileError("cannot write " + temporary);
  }
  replace_file(temporary, file);
}

}  // namespace exfusion::analysis
