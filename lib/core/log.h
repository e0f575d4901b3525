// The program's log: lines `12:03:11 text` on stderr, and the same lines with the date in a file once
// `log_to_file` names it. A warning has `warning: ` before its text. Thread-safe; every line is flushed.
#pragma once
#include <fmt/format.h>

#include <functional>
#include <string>
#include <utility>

namespace exfusion {

void log_to_file(const std::string& path);  // appends; a second call changes the file; throws FileError
void log_line_info(const std::string& line);
void log_line_warning(const std::string& line);
void log_set_quiet(bool quiet);  // only warnings on stderr (the file gets all)
// Called before each line on stderr, so that a progress line can be cleared; it must not log. {}: nothing is
// called.
void log_before_line(std::function<void()> hook);

template <class... Args>
void log_info(fmt::format_string<Args...> format, Args&&... args) {
  log_line_info(fmt::format(format, std::forward<Args>(args)...));
}
template <class... Args>
void log_warning(fmt::format_string<Args...> format, Args&&... args) {
  log_line_warning(fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace exfusion
