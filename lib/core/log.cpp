#include "core/log.h"

#include <spdlog/logger.h>
#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/sinks/stdout_sinks.h>

#include <memory>
#include <mutex>

#include "core/error.h"

namespace exfusion {
namespace {

// One lock around the hook and both sinks keeps a line, and the clearing before it, in one piece.
struct Log {
  std::mutex mutex;
  std::function<void()> before_line;
  bool quiet = false;
  spdlog::logger terminal{"terminal", std::make_shared<spdlog::sinks::stderr_sink_st>()};
  std::unique_ptr<spdlog::logger> file;

  Log() { terminal.set_pattern("%H:%M:%S %v"); }
};

Log& program_log() {
  static Log* log = new Log;  // never destroyed: a thread may still log while the program ends
  return *log;
}

void write(const std::string& line, bool warning) {
  Log& log = program_log();
  const std::lock_guard lock(log.mutex);
  const spdlog::string_view_t text(line.data(), line.size());
  if (warning || !log.quiet) {
    if (log.before_line) log.before_line();
    log.terminal.info(text);
  }
  if (log.file) log.file->info(text);
}

}  // namespace

void log_to_file(const std::string& path) {
  std::unique_ptr<spdlog::logger> file;
  try {
    file =
        std::make_unique<spdlog::logger>("file", std::make_shared<spdlog::sinks::basic_file_sink_st>(path));
  } catch (const spdlog::spdlog_ex& error) {
    throw FileError(fmt::format("{}: the log cannot be opened: {}", path, error.what()));
  }
  file->set_pattern("%Y-%m-%d %H:%M:%S %v");
  file->flush_on(spdlog::level::info);
  Log& log = program_log();
  const std::lock_guard lock(log.mutex);
  log.file = std::move(file);
}

void log_line_info(const std::string& line) {
  write(line, false);
}

void log_line_warning(const std::string& line) {
  write("warning: " + line, true);
}

void log_set_quiet(bool quiet) {
  Log& log = program_log();
  const std::lock_guard lock(log.mutex);
  log.quiet = quiet;
}

void log_before_line(std::function<void()> hook) {
  Log& log = program_log();
  const std::lock_guard lock(log.mutex);
  log.before_line = std::move(hook);
}

}  // namespace exfusion
