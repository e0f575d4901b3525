#include "io/safetensors.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cmath>
#include <cstring>

#include "core/error.h"
#include "io/files.h"
#include "test_folder.h"

namespace exfusion {
namespace {

using Safetensors = TestFolder;

bool same_bytes(const at::Tensor& a, const at::Tensor& b) {
  return a.scalar_type() == b.scalar_type() && a.sizes() == b.sizes() &&
         (a.numel() == 0 ||
          std::memcmp(a.contiguous().data_ptr(), b.contiguous().data_ptr(), a.nbytes()) == 0);
}

TEST_F(Safetensors, EveryDtypeReadsBackBitForBit) {
  NamedTensors tensors;
  for (const at::ScalarType type : {at::kDouble, at::kFloat, at::kHalf, at::kBFloat16, at::kLong, at::kInt,
                                    at::kShort, at::kChar, at::kByte, at::kBool}) {
    const at::Tensor values = at::arange(-15, 15).reshape({2, 3, 5});
    tensors.emplace_back(c10::toString(type), type == at::kBool ? values.gt(0) : values.to(type));
  }
  write_safetensors(at("file"), tensors, {{"format", "pt"}, {"note", "line\n\"quoted\" \xc3\xa9"}});
  const SafetensorsFile file(at("file"));
  EXPECT_EQ(file.tensors().size(), tensors.size());
  for (const auto& [name, tensor] : tensors) EXPECT_TRUE(same_bytes(file.read(name), tensor)) << name;
  EXPECT_EQ(file.metadata(), (Metadata{{"format", "pt"}, {"note", "line\n\"quoted\" \xc3\xa9"}}));
}

TEST_F(Safetensors, ScalarEmptyAndStridedTensorsReadBack) {
  const at::Tensor values = at::arange(12, at::kFloat).reshape({3, 4});
  const float nan = std::nanf("");
  const NamedTensors tensors = {
      {"scalar", at::scalar_tensor(2.5)},
      {"empty", at::empty({3, 0, 2})},
      {"transposed", values.t()},
      {"slice", values.slice(1, 1, 3)},
      {"special", at::tensor({nan, INFINITY, -0.0f, 1e-45f})},
      {"", at::ones({1})},
      {"\"\\/\t\xe2\x82\xac", at::ones({2})},
      {"parameter", at::ones({2}).requires_grad_(true)},
  };
  write_safetensors(at("file"), tensors);
  const SafetensorsFile file(at("file"));
  for (const auto& [name, tensor] : tensors)
    EXPECT_TRUE(same_bytes(file.read(name), tensor.detach())) << name;
}

TEST_F(Safetensors, NoTensorsAtAllReadBack) {
  write_safetensors(at("file"), {});
  EXPECT_TRUE(SafetensorsFile(at("file")).tensors().empty());
}

TEST_F(Safetensors, TheOrderGivenDoesNotChangeTheBytes) {
  const at::Tensor a = at::ones({3}), b = at::ones({2}, at::kBFloat16), c = at::ones({1}, at::kLong);
  write_safetensors(at("one"), {{"a", a}, {"b", b}, {"c", c}}, {{"x", "1"}, {"y", "2"}});
  write_safetensors(at("two"), {{"c", c}, {"b", b}, {"a", a}}, {{"y", "2"}, {"x", "1"}});
  EXPECT_EQ(read_file(at("one")), read_file(at("two")));
  const SafetensorsFile file(at("one"));
  const auto& infos = file.tensors();
  EXPECT_EQ(infos.at("c").begin, 0u);  // by alignment, descending
  EXPECT_EQ(infos.at("a").begin, 8u);
  EXPECT_EQ(infos.at("b").begin, 20u);
}

TEST_F(Safetensors, TheBytesAreThoseOfTheFormat) {
  write_safetensors(at("file"), {{"x", at::tensor({1.0f})}}, {{"k", "v"}});
  const std::string header =
      R"({"__metadata__":{"k":"v"},"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})";
  const std::string bytes = read_file(at("file"));
  const std::size_t padded = (header.size() + 7) / 8 * 8;
  ASSERT_EQ(bytes.size(), 8 + padded + 4);
  EXPECT_EQ(bytes.substr(0, 8), std::string(1, static_cast<char>(padded)) + std::string(7, '\0'));
  EXPECT_EQ(bytes.substr(8, padded), header + std::string(padded - header.size(), ' '));
  EXPECT_EQ(bytes.substr(8 + padded), std::string("\0\0\x80\x3f", 4));
}

TEST_F(Safetensors, WhatCannotBeStoredIsRefused) {
  const at::Tensor one = at::ones({1});
  const auto refusal = [&](const NamedTensors& tensors, const Metadata& metadata = {}) {
    return message_of<FormatError>([&] { write_safetensors(at("file"), tensors, metadata); });
  };
  EXPECT_TRUE(contains(refusal({{"a", one}, {"a", one}}), "\"a\": the name is given twice"));
  EXPECT_TRUE(contains(refusal({{"__metadata__", one}}), "reserves"));
  EXPECT_TRUE(contains(refusal({{std::string("a\0", 2), one}}), "NUL"));
  EXPECT_TRUE(contains(refusal({{"a", at::Tensor()}}), "not a dense tensor"));
  EXPECT_TRUE(contains(refusal({{"a", at::ones({1}, at::kComplexFloat)}}), "ComplexFloat"));
  EXPECT_TRUE(contains(refusal({{"a", at::ones(std::vector<std::int64_t>(17, 1))}}), "16 dimensions"));
  EXPECT_TRUE(contains(refusal({{"\xff", one}}), "UTF-8"));
  EXPECT_TRUE(contains(refusal({{"a", one}}, {{"k", "\xff"}}), "UTF-8"));
}

TEST_F(Safetensors, ReadingIntoATensorChecksShapeAndDtype) {
  write_safetensors(at("file"), {{"w", at::arange(6, at::kFloat).reshape({2, 3})}});
  const SafetensorsFile file(at("file"));
  at::Tensor parameter = at::zeros({2, 3}).requires_grad_(true);
  file.read_into("w", parameter);
  EXPECT_TRUE(parameter.is_leaf());
  EXPECT_TRUE(at::equal(parameter.detach(), at::arange(6, at::kFloat).reshape({2, 3})));
  at::Tensor strided = at::zeros({3, 2}).t();
  file.read_into("w", strided);
  EXPECT_EQ(strided[1][2].item<float>(), 5.0f);

  const std::string shape = message_of<FormatError>([&] { file.read_into("w", at::zeros({3, 2})); });
  EXPECT_TRUE(contains(shape, at("file")));
  EXPECT_TRUE(contains(shape, "Float [2, 3], expected Float [3, 2]"));
  EXPECT_TRUE(contains(message_of<FormatError>([&] {
                         file.read_into("w", at::zeros({2, 3}, at::kHalf));
                       }),
                       "expected Half"));
  EXPECT_TRUE(contains(message_of<FormatError>([&] { file.read("v"); }), "no tensor \"v\""));
}

TEST_F(Safetensors, ATensorOutlivesItsFile) {
  write_safetensors(at("file"), {{"w", at::full({1000}, 7.0)}});
  const at::Tensor tensor = SafetensorsFile(at("file")).read("w");
  EXPECT_EQ(tensor.sum().item<double>(), 7000.0);
}

TEST_F(Safetensors, WhatIsNoFileIsRefusedWithoutWaiting) {
  EXPECT_TRUE(contains(message_of<FileError>([&] { SafetensorsFile(at("missing")); }), "No such file"));
  EXPECT_TRUE(
      contains(message_of<FileError>([&] { SafetensorsFile(folder_.string()); }), "not a regular file"));
  ASSERT_EQ(::mkfifo(at("pipe").c_str(), 0600), 0);
  EXPECT_TRUE(contains(message_of<FileError>([&] { SafetensorsFile(at("pipe")); }), "not a regular file"));
  write_file(at("empty"), "");
  EXPECT_TRUE(contains(message_of<FormatError>([&] { SafetensorsFile(at("empty")); }), "0 bytes"));
  EXPECT_TRUE(contains(message_of<FileError>([&] { write_safetensors(at("no/file"), {}); }), "No such file"));
}

}  // namespace
}  // namespace exfusion
