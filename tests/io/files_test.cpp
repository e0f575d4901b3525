#include "io/files.h"

#include <gtest/gtest.h>

#include <functional>
#include <vector>

#include "core/error.h"
#include "test_folder.h"

namespace exfusion {
namespace {

namespace fs = std::filesystem;

class Files : public TestFolder {
 protected:
  void make_folder(const std::string& name, const std::string& contents) {
    PendingFolder folder(at(name));
    fs::create_directory(folder.path() / "inner");
    write_file(folder.path() / "inner" / "file", contents);
    folder.commit();
  }
  std::size_t entries() const {
    return std::distance(fs::directory_iterator(folder_), fs::directory_iterator());
  }
};

TEST_F(Files, AFileReadsBackAsWritten) {
  const std::string contents("a\0b\r\n\xff", 6);
  write_file(at("file"), "longer than what replaces it");
  write_file(at("file"), contents);
  EXPECT_EQ(read_file(at("file")), contents);
  EXPECT_EQ(entries(), 1u);  // no temporary file is left
}

TEST_F(Files, ReadingStopsAtTheLimit) {
  write_file(at("file"), std::string(100, 'x'));
  EXPECT_EQ(read_file(at("file"), 100).size(), 100u);
  EXPECT_TRUE(contains(message_of<FormatError>([&] { read_file(at("file"), 99); }), "99 bytes"));
}

TEST_F(Files, ErrorsNameThePathAndTheReason) {
  const std::string missing = at("missing/file");
  for (const auto& action : std::vector<std::function<void()>>{
           [&] { read_file(missing); }, [&] { write_file(missing, "x"); }, [&] { sync_path(missing); },
           [&] { file_crc32(missing); }, [&] { replace_link(missing, "x"); }}) {
    const std::string message = message_of<FileError>(action);
    EXPECT_TRUE(contains(message, missing));
    EXPECT_TRUE(contains(message, "No such file or directory"));
  }
  EXPECT_TRUE(contains(message_of<FileError>([&] { read_file(folder_); }), "Is a directory"));
}

TEST_F(Files, AFullDiskIsAnError) {
  if (!fs::exists("/dev/full")) GTEST_SKIP() << "no /dev/full";
  fs::create_symlink("/dev/full", at("file.tmp"));
  EXPECT_TRUE(
      contains(message_of<FileError>([&] { write_file(at("file"), "x"); }), "No space left on device"));
  EXPECT_FALSE(fs::exists(at("file")));
}

TEST_F(Files, ChecksumsAreThoseOfZlib) {
  // The check value of CRC-32/ISO-HDLC, and that of nothing.
  EXPECT_EQ(text_crc32("123456789"), "cbf43926");
  EXPECT_EQ(text_crc32(""), "00000000");
  write_file(at("file"), "123456789");
  EXPECT_EQ(file_crc32(at("file")), "cbf43926");
  std::string large;
  for (int i = 0; i < 300000; ++i) large.push_back(static_cast<char>(i * 31));
  write_file(at("file"), large);
  EXPECT_EQ(file_crc32(at("file")), text_crc32(large));
}

TEST_F(Files, ALinkIsReplacedInOneStep) {
  replace_link(at("latest"), "step-1");
  replace_link(at("latest"), "step-2");
  EXPECT_EQ(fs::read_symlink(at("latest")), "step-2");
  EXPECT_EQ(entries(), 1u);
}

TEST_F(Files, AFolderAppearsOnlyWhenCommitted) {
  {
    PendingFolder folder(at("step"));
    write_file(folder.path() / "file", "x");
    EXPECT_FALSE(fs::exists(at("step")));
    folder.commit();
  }
  EXPECT_EQ(read_file(at("step") + "/file"), "x");
  EXPECT_EQ(entries(), 1u);
}

TEST_F(Files, AnAbandonedFolderLeavesNothing) {
  {
    PendingFolder folder(at("step"));
    write_file(folder.path() / "file", "x");
  }
  EXPECT_EQ(entries(), 0u);
}

TEST_F(Files, ACommittedFolderReplacesAnOlderOne) {
  make_folder("step", "old");
  write_file(at("step") + "/only-in-old", "x");
  make_folder("step", "new");
  EXPECT_EQ(read_file(at("step") + "/inner/file"), "new");
  EXPECT_FALSE(fs::exists(at("step") + "/only-in-old"));
  EXPECT_EQ(entries(), 1u);
}

TEST_F(Files, WhatAKilledWriterLeftIsRemoved) {
  fs::create_directories(at("step.tmp"));
  write_file(at("step.tmp") + "/stale", "x");
  make_folder("step", "new");
  EXPECT_FALSE(fs::exists(at("step") + "/stale"));
}

TEST_F(Files, AFolderThatWasPutAsideComesBack) {
  make_folder("step", "old");
  fs::rename(at("step"), at("step.old"));  // as after a kill between the two renames
  { PendingFolder abandoned(at("step")); }
  EXPECT_EQ(read_file(at("step") + "/inner/file"), "old");
}

}  // namespace
}  // namespace exfusion
