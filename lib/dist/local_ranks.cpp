#include "dist/local_ranks.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <ctime>
#include <optional>
#include <utility>

#include "core/error.h"
#include "core/log.h"
#include "dist/rank_words.h"

namespace exfusion {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::seconds kTimeToEnd(20);  // survivors first find out, and say, which rank was lost
constexpr std::chrono::seconds kTimeToObey(5);  // from SIGTERM to SIGKILL

Failure system_failure(const std::string& what) {
  return Failure(fmt::format("--nproc: {}: {}", what, std::strerror(errno)));
}

struct Listener {
  int fd = -1;
  int port = 0;
};

// A socket that listens before anybody knows its port: nobody else can take it in between.
Listener listen_on_free_port() {
  Listener listener;
  listener.fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  auto* bare = reinterpret_cast<sockaddr*>(&address);
  if (listener.fd < 0 || bind(listener.fd, bare, size) != 0 || listen(listener.fd, SOMAXCONN) != 0 ||
      getsockname(listener.fd, bare, &size) != 0)
    throw system_failure("no port for the store");
  listener.port = ntohs(address.sin_port);
  return listener;
}

// This process's environment but for the variables that `ours` sets.
std::vector<std::string> environment_with(const std::vector<std::pair<std::string, std::string>>& ours) {
  std::vector<std::string> result;
  for (char** entry = environ; *entry; ++entry) {
    const std::string text = *entry, name = text.substr(0, text.find('='));
    if (std::none_of(ours.begin(), ours.end(), [&](const auto& one) { return one.first == name; }))
      result.push_back(text);
  }
  for (const auto& [name, value] : ours) result.push_back(name + "=" + value);
  return result;
}

std::vector<char*> pointers(std::vector<std::string>& texts) {
  std::vector<char*> result;
  for (std::string& text : texts) result.push_back(text.data());
  result.push_back(nullptr);
  return result;
}

struct Child {
  pid_t pid = 0;
  bool ended = false, stopped = false;
  int code = 0, signal = 0;  // how it ended
};

class LocalRanks {
 public:
  explicit LocalRanks(int count);
  ~LocalRanks();
  int run(const std::vector<std::string>& arguments);

 private:
  pid_t start(int rank, const Listener& listener, const std::vector<std::string>& arguments) const;
  void collect();
  void ended(int rank, int status);
  void pass_on(int signal);
  void enforce();
  void send(int signal) const;
  bool running() const;
  int exit_code() const;

  std::vector<Child> children_;
  RankWords words_;
  sigset_t watched_, before_;
  int passed_on_ = 0;                // the last signal passed on
  std::optional<int> first_failed_;  // with an exit code of its own
  std::optional<int> first_killed_;
  std::optional<Clock::time_point> deadline_;  // for the others
  bool told_to_end_ = false;
};

LocalRanks::LocalRanks(int count) : children_(static_cast<std::size_t>(count)) {
  sigemptyset(&watched_);
  for (const int signal : {SIGCHLD, SIGINT, SIGTERM, SIGHUP}) sigaddset(&watched_, signal);
  sigprocmask(SIG_BLOCK, &watched_, &before_);
}

LocalRanks::~LocalRanks() {
  send(SIGKILL);  // to those that an exception left
  sigprocmask(SIG_SETMASK, &before_, nullptr);
}

int LocalRanks::run(const std::vector<std::string>& arguments) {
  const Listener listener = listen_on_free_port();
  for (int rank = 0; rank < static_cast<int>(children_.size()); ++rank)
    children_[static_cast<std::size_t>(rank)].pid = start(rank, listener, arguments);
  close(listener.fd);
  while (running()) {
    const timespec pause{0, 200'000'000};
    const int signal = sigtimedwait(&watched_, nullptr, &pause);
    if (signal > 0 && signal != SIGCHLD) pass_on(signal);
    collect();
    words_.collect(!running());
    enforce();
  }
  return exit_code();
}

pid_t LocalRanks::start(int rank, const Listener& listener, const std::vector<std::string>& arguments) const {
  const auto count = std::to_string(children_.size()), number = std::to_string(rank);
  std::vector<std::pair<std::string, std::string>> ours = {
      {"RANK", number},
      {"WORLD_SIZE", count},
      {"LOCAL_RANK", number},
      {"LOCAL_WORLD_SIZE", count},
      {"MASTER_ADDR", "127.0.0.1"},
      {"MASTER_PORT", std::to_string(listener.port)},
      {"EXFUSION_STORE_FD", rank == 0 ? std::to_string(listener.fd) : ""},
      {"EXFUSION_LAST_WORDS", std::to_string(words_.socket())}};
  std::vector<std::string> environment = environment_with(ours), words = arguments;
  words.insert(words.begin(), "exfusion-train");
  const std::vector<char*> argv = pointers(words), envp = pointers(environment);
  const pid_t parent = getpid(), leader = rank == 0 ? 0 : children_[0].pid;
  const pid_t pid = fork();
  if (pid < 0) throw system_failure(fmt::format("rank {} cannot be started", rank));
  if (pid > 0) {
    setpgid(pid, leader);  // here and there: whoever is first
    return pid;
  }
  // In the child, only what is allowed after a fork.
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(1);
  setpgid(0, leader);
  sigprocmask(SIG_SETMASK, &before_, nullptr);
  const int nothing = open("/dev/null", O_RDONLY);
  if (nothing > 0) dup2(nothing, 0);
  if (rank == 0) fcntl(listener.fd, F_SETFD, 0);
  fcntl(words_.socket(), F_SETFD, 0);
  execve("/proc/self/exe", argv.data(), envp.data());
  _exit(127);
}

void LocalRanks::collect() {
  for (std::size_t rank = 0; rank < children_.size(); ++rank) {
    Child& child = children_[rank];
    int status = 0;
    while (!child.ended && waitpid(child.pid, &status, WNOHANG | WUNTRACED | WCONTINUED) == child.pid) {
      if (WIFSTOPPED(status) || WIFCONTINUED(status))
        child.stopped = WIFSTOPPED(status);
      else
        ended(static_cast<int>(rank), status);
    }
  }
}

void LocalRanks::ended(int rank, int status) {
  Child& child = children_[static_cast<std::size_t>(rank)];
  child.ended = true;
  if (told_to_end_) return;  // how it ended is our doing
  child.code = WIFEXITED(status) ? WEXITSTATUS(status) : 0;
  child.signal = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
  if (child.code == 0 && child.signal == 0) return;
  if (child.code != 0 && !first_failed_) first_failed_ = rank;
  if (child.signal != 0 && !first_killed_) first_killed_ = rank;
  const bool obeyed = passed_on_ != 0 && (child.signal == passed_on_ || child.code == 128 + passed_on_);
  if (obeyed || deadline_ || !running()) return;
  deadline_ = Clock::now() + kTimeToEnd;
  if (child.signal != 0)  // who exits has said why
    log_warning("--nproc: rank {} (pid {}) was ended by signal {}; the others have {} s to end", rank,
                child.pid, child.signal, kTimeToEnd.count());
}

void LocalRanks::pass_on(int signal) {
  passed_on_ = signal;
  send(signal);
  // Who is stopped does not hear it, and the others wait for it.
  const bool stopped =
      std::any_of(children_.begin(), children_.end(), [](const Child& c) { return !c.ended && c.stopped; });
  if (stopped && !deadline_) deadline_ = Clock::now() + kTimeToEnd;
}

void LocalRanks::enforce() {
  if (!deadline_) return;
  const bool only_stopped =
      std::all_of(children_.begin(), children_.end(), [](const Child& c) { return c.ended || c.stopped; });
  if (only_stopped) told_to_end_ = true;  // they hear nothing but SIGKILL, and nobody else is left to speak
  if (!only_stopped && Clock::now() < *deadline_) return;
  if (!only_stopped)
    log_warning("--nproc: ranks that have not ended get SIG{}", told_to_end_ ? "KILL" : "TERM");
  send(told_to_end_ ? SIGKILL : SIGTERM);
  told_to_end_ = true;
  deadline_ = Clock::now() + kTimeToObey;
}

void LocalRanks::send(int signal) const {
  for (const Child& child : children_) {
    if (child.pid > 0 && !child.ended) kill(child.pid, signal);
  }
}

bool LocalRanks::running() const {
  return std::any_of(children_.begin(), children_.end(), [](const Child& child) { return !child.ended; });
}

int LocalRanks::exit_code() const {
  if (children_[0].code != 0) return children_[0].code;
  if (first_failed_) return children_[static_cast<std::size_t>(*first_failed_)].code;
  if (first_killed_) return 128 + children_[static_cast<std::size_t>(*first_killed_)].signal;
  if (told_to_end_) return passed_on_ ? 128 + passed_on_ : 1;
  return 0;
}

}  // namespace

int run_local_ranks(int count, const std::vector<std::string>& arguments) {
  return LocalRanks(count).run(arguments);
}

}  // namespace exfusion
