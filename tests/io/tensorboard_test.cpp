#include "io/tensorboard.h"

#include <gtest/gtest.h>

#include <cstring>
#include <regex>

#include "core/error.h"
#include "io/crc32c.h"
#include "io/files.h"
#include "test_folder.h"

namespace exfusion {
namespace {

namespace fs = std::filesystem;

class EventFiles : public TestFolder {
 protected:
  std::vector<std::string> names() const {
    std::vector<std::string> result;
    for (const auto& entry : fs::directory_iterator(folder_))
      result.push_back(entry.path().filename().string());
    std::sort(result.begin(), result.end());
    return result;
  }
};

template <typename Number>
Number number_at(const std::string& bytes, std::size_t position) {
  Number value;
  std::memcpy(&value, bytes.data() + position, sizeof value);
  return value;
}

// The payloads of a file of TFRecords: u64 length, u32 checksum of it, payload, u32 checksum of it.
std::vector<std::string> records_of(const std::string& bytes) {
  const auto unmasked = [](std::uint32_t masked) {
    const std::uint32_t rotated = masked - 0xa282ead8u;
    return (rotated >> 17) | (rotated << 15);
  };
  std::vector<std::string> records;
  for (std::size_t position = 0; position < bytes.size();) {
    const auto length = number_at<std::uint64_t>(bytes, position);
    EXPECT_EQ(unmasked(number_at<std::uint32_t>(bytes, position + 8)), crc32c(bytes.substr(position, 8)));
    records.push_back(bytes.substr(position + 12, length));
    EXPECT_EQ(unmasked(number_at<std::uint32_t>(bytes, position + 12 + length)), crc32c(records.back()));
    position += 16 + length;
  }
  return records;
}

TEST(Crc32c, GivesThePublishedValues) {
  EXPECT_EQ(crc32c("123456789"), 0xe3069283u);
  EXPECT_EQ(crc32c(""), 0u);
  // RFC 3720, B.4
  EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8a9136aau);
  EXPECT_EQ(crc32c(std::string(32, '\xff')), 0x62a8ab43u);
  std::string rising;
  for (int i = 0; i < 32; ++i) rising.push_back(static_cast<char>(i));
  EXPECT_EQ(crc32c(rising), 0x46dd794eu);
}

TEST_F(EventFiles, AreNamedAsTensorBoardExpects) {
  EventFile file(folder_.string());
  ASSERT_EQ(names().size(), 1u);
  EXPECT_TRUE(std::regex_match(names()[0], std::regex(R"(events\.out\.tfevents\.\d{10}\..+\.\d+)")))
      << names()[0];
}

TEST_F(EventFiles, HoldFramedEvents) {
  EventFile file(folder_.string());
  file.scalar("train/loss", 300, 0.5);
  file.flush();
  const std::vector<std::string> records = records_of(read_file(at(names()[0])));
  ASSERT_EQ(records.size(), 2u);
  EXPECT_NE(records[0].find("\x1a\x0d"
                            "brain.Event:2"),
            std::string::npos);
  // step = 300 is field 2 as a varint; the summary is field 5, its value field 1, tag 1, simple_value 2.
  EXPECT_EQ(records[1].substr(9),
            std::string("\x10\xac\x02\x2a\x13\x0a\x11\x0a\x0atrain/loss\x15\0\0\0\x3f", 24));
}

TEST_F(EventFiles, AreReadableWhileTheRunLives) {
  EventFile file(folder_.string());
  for (int step = 1; step <= 3; ++step) {
    file.scalar("loss", step, 1.0);
    file.flush();
    EXPECT_EQ(records_of(read_file(at(names()[0]))).size(), 1u + static_cast<unsigned>(step));
  }
}

TEST_F(EventFiles, AreWholeWhenTheyEnd) {
  { EventFile(folder_.string()).scalar("loss", 1, 1.0); }
  EXPECT_EQ(records_of(read_file(at(names()[0]))).size(), 2u);
}

TEST_F(EventFiles, SortInTheOrderInWhichTheyWereMade) {
  for (int i = 0; i < 12; ++i) {
    EventFile(folder_.string(), i).scalar("loss", i, 1.0);
  }
  const std::vector<std::string> all = names();
  ASSERT_EQ(all.size(), 12u);
  for (std::size_t i = 0; i < all.size(); ++i) {
    const std::vector<std::string> records = records_of(read_file(at(all[i])));
    ASSERT_EQ(records.size(), 3u);
    // SessionLog START at the step after the one resumed at.
    EXPECT_EQ(records[1].substr(9), std::string("\x10") + static_cast<char>(i + 1) + "\x3a\x02\x08\x01");
  }
}

TEST_F(EventFiles, NeedAFolder) {
  EXPECT_NE(message_of<FileError>([&] { EventFile(at("missing")); }).find(at("missing")), std::string::npos);
}

}  // namespace
}  // namespace exfusion
