#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "core/error.h"
#include "io/files.h"
#include "io/safetensors.h"
#include "test_folder.h"

namespace exfusion {
namespace {

const std::string kOpen = "{";

std::string file_of(const std::string& header, std::size_t data_size) {
  const std::uint64_t length = header.size();
  std::string file(reinterpret_cast<const char*>(&length), sizeof length);
  return file + header + std::string(data_size, '\0');
}

struct Parsed {
  std::map<std::string, TensorInfo> tensors;
  Metadata metadata;
  std::size_t data_offset = 0;
};

Parsed parse(const std::string& file) {
  Parsed result;
  result.data_offset =
      parse_safetensors_header(std::as_bytes(std::span(file)), "FILE", result.tensors, result.metadata);
  return result;
}

std::string tensor(const std::string& name, const std::string& dtype, const std::string& shape, int begin,
                   int end) {
  return "\"" + name + "\":{\"dtype\":\"" + dtype + "\",\"shape\":" + shape + ",\"data_offsets\":[" +
         std::to_string(begin) + "," + std::to_string(end) + "]}";
}

TEST(SafetensorsHeader, WhatTheFormatAllowsIsRead) {
  const Parsed parsed =
      parse(file_of(kOpen + tensor("b", "F32", "[2,3]", 0, 24) + ", \n" + tensor("a", "F4", "[4]", 24, 26) +
                        "," + tensor("e", "U64", "[0,9]", 24, 24) + "," +
                        tensor("s", "F8_E4M3", "[]", 26, 27) + R"(,"__metadata__":{"k":"v"}}  )",
                    27));
  EXPECT_EQ(parsed.tensors.size(), 4u);
  EXPECT_EQ(parsed.tensors.at("b").shape, (std::vector<std::int64_t>{2, 3}));
  EXPECT_EQ(parsed.tensors.at("a").begin, 24u);
  EXPECT_EQ(parsed.tensors.at("s").dtype, "F8_E4M3");
  EXPECT_EQ(parsed.metadata, (Metadata{{"k", "v"}}));
  EXPECT_TRUE(parse(file_of("{}", 0)).tensors.empty());
}

struct Malformed {
  const char* name;
  std::string file;
  const char* message;
};

std::vector<Malformed> malformed_files() {
  const std::string good = tensor("a", "F32", "[2]", 0, 8);
  const auto one = [](const std::string& entry) { return file_of("{\"a\":" + entry + "}", 8); };
  std::string huge = file_of("{}", 0);
  huge.replace(0, 8, 8, '\xff');
  std::string long_header = file_of("{}", 0);
  long_header[0] = 3;
  std::string deep = file_of("{\"a\":" + std::string(100000, '[') + std::string(100000, ']') + "}", 0);
  return {
      {"Empty", "", "0 bytes"},
      {"SevenBytes", std::string(7, '\0'), "7 bytes"},
      {"NoHeader", file_of("", 0), "start with '{'"},
      {"LengthAboveLimit", huge, "above the limit"},
      {"LengthBeyondFile", long_header, "exceeds the file"},
      {"StartsWithSpace", file_of(" {}", 0), "start with '{'"},
      {"StartsWithArray", file_of("[]", 0), "start with '{'"},
      {"NulByte", file_of(std::string("{}\0garbage", 10), 0), "NUL byte"},
      {"Unclosed", file_of(kOpen + good, 8), "JSON"},
      {"Trailing", file_of(kOpen + good + "} x", 8), "JSON"},
      {"TwoObjects", file_of(kOpen + good + "}{}", 8), "JSON"},
      {"Comment", file_of("{/**/" + good + "}", 8), "JSON"},
      {"NotUtf8", file_of("{\"\xff\":1}", 0), "JSON"},
      {"DuplicateName", file_of(kOpen + good + "," + tensor("a", "F32", "[2]", 8, 16) + "}", 16),
       "given twice"},
      {"DuplicateField", one(R"({"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]})"),
       "dtype is given twice"},
      {"UnknownField", one(R"({"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":1})"), "unknown key \"x\""},
      {"MissingField", one(R"({"dtype":"F32","shape":[2]})"), "missing"},
      {"EntryIsNumber", one("3"), "a number"},
      {"EntryIsNull", one("null"), "null"},
      {"EntryIsArray", one("[]"), "an array"},
      {"EntryIsString", one("\"F32\""), "a string"},
      {"DeepNesting", deep, "an array"},
      {"ShapeIsNumber", one(R"({"dtype":"F32","shape":2,"data_offsets":[0,8]})"), "a number"},
      {"ShapeNested", one(R"({"dtype":"F32","shape":[[2]],"data_offsets":[0,8]})"), "an array"},
      {"ShapeNegative", one(R"({"dtype":"F32","shape":[-2],"data_offsets":[0,8]})"), "negative"},
      {"ShapeFraction", one(R"({"dtype":"F32","shape":[2.0],"data_offsets":[0,8]})"), "fraction"},
      {"ShapeBoolean", one(R"({"dtype":"F32","shape":[true],"data_offsets":[0,8]})"), "boolean"},
      {"ShapeAboveInt64", one(R"({"dtype":"F32","shape":[9223372036854775808],"data_offsets":[0,8]})"),
       "too large"},
      {"ShapeAboveUint64", one(R"({"dtype":"F32","shape":[99999999999999999999],"data_offsets":[0,8]})"),
       "too large"},
      {"ShapeOverflow", one(R"({"dtype":"F32","shape":[4294967296,4294967296,2],"data_offsets":[0,8]})"),
       "2^56"},
      {"EmptyOverflow", one(R"({"dtype":"F32","shape":[0,4294967296,4294967296],"data_offsets":[0,0]})"),
       "2^56"},
      {"RankAboveLimit",
       one(R"({"dtype":"F32","shape":[2,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1],"data_offsets":[0,8]})"),
       "16 dimensions"},
      {"DtypeUnknown", file_of(kOpen + tensor("a", "F99", "[2]", 0, 8) + "}", 8), "unknown dtype \"F99\""},
      {"DtypeNumber", one(R"({"dtype":32,"shape":[2],"data_offsets":[0,8]})"), "a number"},
      {"HalfByte", file_of(kOpen + tensor("a", "F4", "[3]", 0, 2) + "}", 2), "whole number of bytes"},
      {"OffsetsOfThree", one(R"({"dtype":"F32","shape":[2],"data_offsets":[0,8,8]})"), "more than 2"},
      {"OffsetsOfOne", one(R"({"dtype":"F32","shape":[2],"data_offsets":[0]})"), "fewer than 2"},
      {"OffsetsBackwards", file_of(kOpen + tensor("a", "F32", "[2]", 8, 0) + "}", 8),
       "must span the 8 bytes"},
      {"OffsetsTooShort", file_of(kOpen + tensor("a", "F32", "[2]", 0, 4) + "}", 8), "must span the 8 bytes"},
      {"Hole", file_of(kOpen + good + "," + tensor("b", "F32", "[1]", 12, 16) + "}", 16), "expected 8"},
      {"HoleAtStart", file_of(kOpen + tensor("a", "F32", "[2]", 4, 12) + "}", 12), "expected 0"},
      {"Overlap", file_of(kOpen + good + "," + tensor("b", "F32", "[2]", 4, 12) + "}", 12), "expected 8"},
      {"SameRange", file_of(kOpen + good + "," + tensor("b", "F32", "[2]", 0, 8) + "}", 8), "expected 8"},
      {"DataTooShort", file_of(kOpen + good + "}", 7), "the file holds 7"},
      {"DataTooLong", file_of(kOpen + good + "}", 9), "the file holds 9"},
      {"MetadataNumber", file_of(R"({"__metadata__":{"k":1}})", 0), "a number"},
      {"MetadataNested", file_of(R"({"__metadata__":{"k":{}}})", 0), "an object"},
      {"MetadataString", file_of(R"({"__metadata__":"x"})", 0), "a string"},
      {"MetadataTwice", file_of(R"({"__metadata__":{},"__metadata__":{}})", 0), "twice"},
      {"MetadataKeyTwice", file_of(R"({"__metadata__":{"k":"1","k":"2"}})", 0), "\"k\" twice"},
      {"NulInName", file_of(kOpen + tensor("a\\u0000b", "F32", "[2]", 0, 8) + "}", 8), "NUL"},
  };
}

TEST(SafetensorsHeader, EveryMalformedHeaderIsRefusedWithItsReason) {
  for (const Malformed& malformed : malformed_files()) {
    SCOPED_TRACE(malformed.name);
    const std::string message = message_of<FormatError>([&] { parse(malformed.file); });
    EXPECT_TRUE(contains(message, "FILE: not a well-formed safetensors file: "));
    EXPECT_TRUE(contains(message, malformed.message));
    EXPECT_LT(message.size(), 400u);
  }
}

TEST(SafetensorsHeader, NamesInMessagesAreShortAndPrintable) {
  const std::string file =
      file_of(kOpen + tensor(std::string(5000, 'n') + "\\n", "F32", "[2]", 0, 4) + "}", 4);
  const std::string message = message_of<FormatError>([&] { parse(file); });
  EXPECT_LT(message.size(), 300u);
}

class SafetensorsBytes : public TestFolder {};

TEST_F(SafetensorsBytes, ABooleanIsZeroOrOne) {
  std::string bytes = file_of(kOpen + tensor("a", "BOOL", "[2]", 0, 2) + "}", 2);
  bytes.back() = 2;
  write_file(at("file"), bytes);
  EXPECT_TRUE(contains(message_of<FormatError>([&] { SafetensorsFile(at("file")).read("a"); }), "0 or 1"));
}

TEST_F(SafetensorsBytes, ADtypeWithoutCounterpartIsRefusedWhenRead) {
  write_file(at("file"), file_of(kOpen + tensor("a", "F8_E4M3", "[2]", 0, 2) + "}", 2));
  const SafetensorsFile file(at("file"));
  EXPECT_TRUE(contains(message_of<FormatError>([&] { file.read("a"); }), "F8_E4M3 cannot be read"));
}

// Whatever single bytes change, the header is read or refused: nothing else is thrown, and all that is
// accepted can be read.
TEST_F(SafetensorsBytes, MutatedFilesAreReadOrRefused) {
  write_safetensors(at("valid"),
                    {{"blocks.0.w", at::ones({2, 3})},
                     {"flag", at::ones({3}, at::kBool)},
                     {"step", at::ones({}, at::kLong)}},
                    {{"format", "pt"}});
  const std::string valid = read_file(at("valid"));
  const std::string alphabet = "{}[]\",:0123456789-.eEFIBO\\ntu \x80\xff\x7f";
  std::mt19937 random(7);
  int accepted = 0, refused = 0;
  for (int round = 0; round < 6000; ++round) {
    std::string bytes = valid;
    for (unsigned change = 0, changes = 1 + random() % 3; change < changes; ++change) {
      const std::size_t position = random() % bytes.size();
      switch (random() % 4) {
        case 0:
          bytes[position] = static_cast<char>(random());
          break;
        case 1:
          bytes[position] = alphabet[random() % alphabet.size()];
          break;
        case 2:
          bytes.erase(position, 1 + random() % 8);
          break;
        default:
          bytes.insert(position, 1, alphabet[random() % alphabet.size()]);
          break;
      }
    }
    // The length is kept right half of the time: otherwise most files would fail there.
    if (round % 2 == 0 && bytes.size() > 8) {
      const std::uint64_t length = bytes.rfind('}') == std::string::npos ? 0 : bytes.rfind('}') + 1 - 8;
      std::memcpy(bytes.data(), &length, sizeof length);
    }
    try {
      const Parsed parsed = parse(bytes);
      ++accepted;
      for (const auto& [name, info] : parsed.tensors) ASSERT_LE(parsed.data_offset + info.end, bytes.size());
      if (round % 50 != 0) continue;
      write_file(at("mutated"), bytes);
      const SafetensorsFile file(at("mutated"));
      for (const auto& [name, info] : file.tensors()) file.read(name);
    } catch (const FormatError&) {
      ++refused;
    }
  }
  EXPECT_GT(accepted, 50);
  EXPECT_GT(refused, 1000);
}

}  // namespace
}  // namespace exfusion
