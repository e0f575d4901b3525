#include "compare/runner.h"

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <fstream>
#include <list>
#include <map>
#include <thread>

#include "core/duration.h"
#include "core/error.h"
#include "train/interrupt.h"

namespace exfusion {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

constexpr auto kPoll = std::chrono::milliseconds(20);
constexpr int kCannotStart = 127;  // as shells say it

int open_for_child(const fs::path& path, int flags) {
  const int file = ::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | flags, 0666);
  if (file < 0) throw FileError("cannot write " + path.string() + ": " + std::strerror(errno));
  return file;
}

// Starts a command in a process group of its own: a Ctrl-C of the terminal reaches it through this process
// alone, and so once.
pid_t start(const Command& command, const fs::path& log) {
  std::vector<char*> words;
  for (const std::string& word : command.words) words.push_back(const_cast<char*>(word.c_str()));
  words.push_back(nullptr);
  const int errors = open_for_child(log, O_APPEND);
  const int output = command.output.empty() ? ::dup(errors) : open_for_child(command.output, O_TRUNC);
  const pid_t parent = ::getpid(), child = ::fork();
  if (child == 0) {
    ::setpgid(0, 0);
    ::prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (::getppid() != parent) ::_exit(kCannotStart);  // it died before it could be watched
    ::dup2(output, STDOUT_FILENO);
    ::dup2(errors, STDERR_FILENO);
    ::execv(words[0], words.data());
    ::_exit(kCannotStart);
  }
  ::close(output);
  ::close(errors);
  if (child < 0) throw FileError("cannot start " + command.words[0] + ": " + std::strerror(errno));
  return child;
}

std::string last_line_of(const fs::path& log) {
  std::ifstream file(log);
  std::string last;
  for (std::string line; std::getline(file, line);) {
    if (!line.empty()) last = line;
  }
  return last;
}

struct Running {
  const Job* job;
  std::size_t command = 0;
  pid_t child = -1;
  Clock::time_point started = Clock::now();

  double seconds() const { return seconds_since(started); }
};

// Whether the running job is over; then `code` is its exit code. Starts its next command when one has ended
// well, unless the jobs are being stopped.
bool over(Running& running, bool stopping, int& code) {
  int status = 0;
  if (::waitpid(running.child, &status, WNOHANG) == 0) return false;
  code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  running.command += 1;
  if (code != 0 || running.command == running.job->commands.size()) return true;
  if (stopping) {
    code = 128 + interrupt_signal();
    return true;
  }
  running.child = -1;  // gone: it must not be signalled should the next one not start
  running.child = start(running.job->commands[running.command], running.job->log);
  return false;
}

// However this scope is left, no child stays behind unasked.
struct RunningJobs : std::list<Running> {
  ~RunningJobs() {
    for (const Running& running : *this) {
      if (running.child > 0) ::kill(running.child, SIGTERM);
    }
  }
};

}  // namespace

int run_jobs(const std::vector<Job>& jobs, int parallel,
             const std::function<void(const Job&, const JobEnd&)>& done) {
  enum class Stage { waiting, running, good, failed };
  const InterruptScope interrupts;
  std::map<std::string, Stage> stages;
  for (const Job& job : jobs) stages[job.name] = Stage::waiting;
  const auto stage_of = [&](const std::string& name) {
    const auto found = stages.find(name);
    return found == stages.end() ? Stage::good : found->second;
  };
  const auto end = [&](const Job& job, const JobEnd& how) {
    stages[job.name] = how.exit_code == 0 ? Stage::good : Stage::failed;
    done(job, how);
  };
  RunningJobs running;
  bool told = false;
  while (true) {
    const bool stopping = interrupt_signal() != 0;
    if (stopping && !told) {
      for (const Running& one : running) ::kill(one.child, interrupt_signal());
      told = true;
    }
    for (const Job& job : jobs) {
      if (stopping || static_cast<int>(running.size()) >= parallel) break;
      if (stages[job.name] != Stage::waiting) continue;
      const Stage before = stage_of(job.after);
      if (before == Stage::failed) end(job, {1, "needs " + job.after + ", which failed", 0.0});
      if (before != Stage::good) continue;
      running.push_back({&job, 0, start(job.commands[0], job.log)});
      stages[job.name] = Stage::running;
    }
    if (running.empty()) return interrupt_signal();
    std::this_thread::sleep_for(kPoll);
    for (auto one = running.begin(); one != running.end();) {
      int code = 0;
      if (over(*one, stopping, code)) {
        const Running ended = *one;
        one = running.erase(one);
        end(*ended.job, {code, last_line_of(ended.job->log), ended.seconds()});
      } else {
        ++one;
      }
    }
  }
}

}  // namespace exfusion
