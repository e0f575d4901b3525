// Jobs of child processes, a few at a time.
#pragma once
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

namespace exfusion {

struct Command {
  std::vector<std::string> words;  // the program's path first
  std::filesystem::path output;    // takes stdout; "": the job's log does
};

struct Job {
  std::string name;
  std::vector<Command> commands;  // one after the other, until one fails
  std::filesystem::path log;      // stderr is appended
  std::string after;  // the job, earlier in the list, that must be done before; "" or not in the list: none
};

struct JobEnd {
  int exit_code = 0;      // of the last command that ran; 128 + signal when one ended it
  std::string last_line;  // of the log
  double seconds = 0.0;
};

// Runs all jobs, at most `parallel` at a time, in order as far as `after` allows, and calls `done` as each
// ends. What came after a failed job counts as failed. Ctrl-C and SIGTERM are passed on to the children,
// once, and no job starts any more; returns that signal when all have ended, else 0. The children end with
// this process: also when it is killed they get SIGTERM. Throws FileError.
int run_jobs(const std::vector<Job>& jobs, int parallel,
             const std::function<void(const Job&, const JobEnd&)>& done);

}  // namespace exfusion
