#include "core/log.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <regex>
#include <sstream>
#include <thread>
#include <vector>

#include "core/error.h"

namespace exfusion {
namespace {

namespace fs = std::filesystem;

std::string temporary_file(const std::string& name) {
  return (fs::temp_directory_path() / ("exfusion_log_" + std::to_string(getpid()) + "_" + name)).string();
}

std::vector<std::string> lines(const std::string& text) {
  std::vector<std::string> result;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) result.push_back(line);
  return result;
}

std::vector<std::string> lines_of_file(const std::string& path) {
  std::stringstream text;
  text << std::ifstream(path).rdbuf();
  return lines(text.str());
}

bool matches(const std::string& line, const std::string& pattern) {
  return std::regex_match(line, std::regex(pattern));
}

const std::string kTime = R"(\d\d:\d\d:\d\d )";
const std::string kDate = R"(\d{4}-\d\d-\d\d )";

TEST(Log, WritesTimeAndTextToStderr) {
  testing::internal::CaptureStderr();
  log_info("step {} of {}", 3, 10);
  log_warning("{}% left", 5);
  log_line_info("braces {} stay");
  const std::vector<std::string> got = lines(testing::internal::GetCapturedStderr());
  ASSERT_EQ(got.size(), 3u);
  EXPECT_TRUE(matches(got[0], kTime + "step 3 of 10")) << got[0];
  EXPECT_TRUE(matches(got[1], kTime + "warning: 5% left")) << got[1];
  EXPECT_TRUE(matches(got[2], kTime + R"(braces \{\} stay)")) << got[2];
}

TEST(Log, AppendsTheSameLinesWithTheDateToAFileAtOnce) {
  const std::string path = temporary_file("append");
  std::ofstream(path) << "kept\n";
  testing::internal::CaptureStderr();
  log_to_file(path);
  log_info("first");
  log_set_quiet(true);
  log_info("second");
  log_warning("third");
  log_set_quiet(false);
  EXPECT_EQ(lines(testing::internal::GetCapturedStderr()).size(), 2u);  // without the quiet one
  const std::vector<std::string> got = lines_of_file(path);             // while the log still has it open
  fs::remove(path);
  ASSERT_EQ(got.size(), 4u);
  EXPECT_EQ(got[0], "kept");
  EXPECT_TRUE(matches(got[1], kDate + kTime + "first")) << got[1];
  EXPECT_TRUE(matches(got[2], kDate + kTime + "second")) << got[2];
  EXPECT_TRUE(matches(got[3], kDate + kTime + "warning: third")) << got[3];
}

TEST(Log, ThrowsFileErrorForAFileThatCannotBeOpened) {
  const std::string folder = fs::temp_directory_path().string();
  try {
    log_to_file(folder);
    FAIL() << "a folder was opened as a log";
  } catch (const FileError& error) {
    EXPECT_TRUE(std::string(error.what()).starts_with(folder + ": the log cannot be opened: "))
        << error.what();
  }
}

TEST(Log, CallsTheHookBeforeEachLineOnStderr) {
  int calls = 0;
  log_before_line([&] { ++calls; });
  testing::internal::CaptureStderr();
  log_info("one");
  log_warning("two");
  log_set_quiet(true);
  log_info("not on stderr");
  log_set_quiet(false);
  log_before_line({});
  log_info("three");
  testing::internal::GetCapturedStderr();
  EXPECT_EQ(calls, 2);
}

TEST(Log, KeepsTheLinesOfManyThreadsWhole) {
  const std::string path = temporary_file("threads");
  testing::internal::CaptureStderr();
  log_to_file(path);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([] {
      for (int i = 0; i < 200; ++i) log_info("{}", std::string(100, 'x'));
    });
  for (std::thread& thread : threads) thread.join();
  const std::vector<std::string> terminal = lines(testing::internal::GetCapturedStderr());
  const std::vector<std::string> file = lines_of_file(path);
  fs::remove(path);
  EXPECT_EQ(terminal.size(), 800u);
  EXPECT_EQ(file.size(), 800u);
  for (const std::string& line : terminal) EXPECT_EQ(line.size(), 9u + 100u);
  for (const std::string& line : file) EXPECT_EQ(line.size(), 20u + 100u);
}

}  // namespace
}  // namespace exfusion
