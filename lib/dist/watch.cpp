#include "dist/watch.h"

#include <errno.h>  // program_invocation_short_name
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <optional>
#include <thread>
#include <torch/csrc/distributed/c10d/Store.hpp>
#include <vector>

#include "core/error.h"
#include "core/last_words.h"
#include "core/log.h"
#include "dist/hearts.h"

namespace exfusion {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kNobody = -1;     // the culprit of a verdict that names none
constexpr int kFreshBeats = 3;  // of a rank that is alive though it does not come to a collective

Store own_connection(const Store& store, std::chrono::milliseconds patience) {
  const Store copy = store.clone();
  return Store(c10::intrusive_ptr<c10d::Store>::reclaim_copy(&copy.native()).release(), patience);
}

// What happened, fit for the end of a line: of Gloo's errors not the source file and the advice around it.
std::string brief(std::string error) {
  const std::size_t file = error.find("[/"), after = error.find("] ", file);
  if (file != std::string::npos && after != std::string::npos) error.erase(file, after + 2 - file);
  error.erase(std::min(error.find(". This is typically"), error.size()));
  std::replace(error.begin(), error.end(), '\n', ' ');
  return error;
}

bool is_timeout(const std::string& error) {
  return error.find("imed out") != std::string::npos || error.find("imeout") != std::string::npos;
}

void end_process(const std::string& words) {
  say_last_words(program_invocation_short_name, words);
  _exit(1);
}

// What the store holds under "verdict": "RANK words".
struct Verdict {
  int culprit;
  std::string words;
};

// What the training thread wants of the watch's thread.
enum class Wish { watch, explanation, failure, finish };

}  // namespace

struct Watch::State {
  State(const Store& connection, int own_rank, int ranks, int host, WatchOptions settings)
      : rank(own_rank),
        store_host(host),
        world(ranks),
        options(std::move(settings)),
        store(own_connection(connection, options.patience)),
        hearts(store, rank, world, 2 * options.beat) {
    if (!options.end) options.end = end_process;
  }

  const int rank, store_host, world;
  WatchOptions options;
  Activity activity;
  std::thread thread;

  // Between the two threads.
  std::mutex mutex;
  std::condition_variable changed;
  Wish wish = Wish::watch;
  std::string reason;                // of an explanation or a failure: the error
  std::optional<std::string> words;  // how the run ends, if it ends by a lost rank
  bool over = false;                 // nothing more is to be found out

  // The watch's thread alone.
  Store store;
  Hearts hearts;
  Wish heard = Wish::watch;
  Clock::time_point asked, slow_checked = Clock::now(), decided;  // decided: there is a verdict

  void begin();
  void run();
  std::string last_words();
  std::optional<Verdict> turn();
  std::optional<Verdict> verdict();
  std::optional<Verdict> accuse(int culprit, const std::string& text);
  std::optional<Verdict> judge();
  bool may_end();
  void leave(int culprit);
  void warn_of_slow();
  std::string store_lost(const std::string& error);
  void guard(const std::string& last);
  void ask(Wish what, const std::string& error);
};

std::optional<Verdict> Watch::State::verdict() {
  const std::optional<std::string> text = store.get("verdict");
  if (!text) return std::nullopt;
  return Verdict{static_cast<int>(std::strtol(text->c_str(), nullptr, 10)),
                 text->substr(text->find(' ') + 1)};
}

// Writes the verdict unless another rank was first; returns the one that holds.
std::optional<Verdict> Watch::State::accuse(int culprit, const std::string& text) {
  store.compare_set("verdict", "", fmt::format("{} {}", culprit, text));
  return verdict();
}

// Who is to blame, by what the hearts show now.
std::optional<Verdict> Watch::State::judge() {
  const bool broken = heard == Wish::explanation;  // a collective has failed
  if (const auto lost = hearts.silent(broken ? options.suspicion : options.silence)) {
    const double age = std::chrono::duration<double>(hearts.peer(*lost).age).count();
    return accuse(*lost, fmt::format("{}, {:.1f} s ago{}", hearts.portrait(*lost, "last seen in"), age,
                                     broken ? ": " + brief(reason) : ""));
  }
  if (!broken || !hearts.all_fresh(kFreshBeats)) return std::nullopt;  // one may yet turn out to be silent
  const std::optional<int> last = hearts.behind();
  if (last && is_timeout(reason))
    return accuse(*last, fmt::format("{}: it hangs: {}", hearts.portrait(*last, "still in"), brief(reason)));
  if (Clock::now() - asked < 2 * options.suspicion) return std::nullopt;
  return accuse(kNobody,
                fmt::format("a connection broke, though the hearts of all ranks beat: {}", brief(reason)));
}

// One beat and one look at the others. Returns the verdict once there is one.
std::optional<Verdict> Watch::State::turn() {
  {
    const std::lock_guard lock(mutex);
    if (wish != heard) {
      heard = wish;
      asked = Clock::now();
      hearts.alarm();
    }
  }
  hearts.beat(activity, heard == Wish::explanation ? RankState::failing : RankState::running);
  if (auto found = verdict()) return found;
  if (heard == Wish::failure)
    return accuse(rank, fmt::format("{}: {}", hearts.portrait(rank, "failed in"), brief(reason)));
  if (heard == Wish::watch)
    hearts.look_at_next(store_host);
  else
    hearts.look_at_all();
  if (rank == 0 && heard == Wish::watch) warn_of_slow();
  return judge();
}

void Watch::State::warn_of_slow() {
  if (Clock::now() - slow_checked < options.slow_every) return;
  slow_checked = Clock::now();
  hearts.look_at_all();
  std::vector<Heartbeat> all = {hearts.own()};
  for (int other = 1; other < world; ++other) all.push_back(hearts.peer(other).heart.value_or(Heartbeat{}));
  if (const auto warning = slow_rank(all)) log_warning("{}", *warning);
}

bool Watch::State::may_end() {
  if (heard != Wish::finish || (rank == store_host && !hearts.all_gone(kNobody))) return false;
  hearts.beat(activity, RankState::finished);
  return true;
}

// Tells the others that this rank ends because of the verdict, and keeps the store until they have read it
// too.
void Watch::State::leave(int culprit) {
  decided = Clock::now();
  hearts.beat(activity, RankState::leaving);
  while (rank == store_host && !hearts.all_gone(culprit) && Clock::now() < decided + options.grace) {
    std::this_thread::sleep_for(options.beat / 4);
    hearts.look_at_all();
  }
}

std::string Watch::State::store_lost(const std::string& error) {
  if (store_host < 0 || store_host == rank)
    return fmt::format("the ranks' store does not answer: {}", brief(error));
  return fmt::format("{}; its store does not answer: {}", hearts.portrait(store_host, "last seen in"),
                     brief(error));
}

// Makes this rank known, and knows the store's host: once that is lost, nothing can be read any more.
void Watch::State::begin() {
  try {
    hearts.beat(activity, RankState::running);
    const Clock::time_point until = Clock::now() + options.silence;
    while (store_host >= 0 && store_host != rank && !hearts.look_at(store_host).heart && Clock::now() < until)
      std::this_thread::sleep_for(options.beat / 10);
  } catch (const DistributedError& error) {
    throw DistributedError(store_lost(error.what()));
  }
}

// Watches until the run ends in one way or another, and returns the words for a bad one, "" for a good one.
std::string Watch::State::last_words() {
  std::string last;
  try {
    std::optional<Verdict> found;
    while (!(found = turn()) && !may_end()) {
      std::unique_lock lock(mutex);
      changed.wait_for(lock, options.beat, [&] { return wish != heard; });
    }
    if (!found) return "";
    last = found->words;
    if (found->culprit == rank)
      last = heard == Wish::failure ? reason : "the other ranks take this one for lost: " + last;
    leave(found->culprit);
  } catch (const std::exception& error) {
    if (last.empty() && heard != Wish::finish) {
      decided = Clock::now();
      last = store_lost(error.what());
    }
  }
  return last;
}

void Watch::State::run() {
  const std::string last = last_words();
  {
    const std::lock_guard lock(mutex);
    if (!last.empty()) words = last;
    over = true;
  }
  changed.notify_all();
  if (!last.empty()) guard(last);
}

// Ends the process unless the training thread does. That may be in a collective which waits for the lost
// rank, in a long computation, or in a destructor that waits for a collective.
void Watch::State::guard(const std::string& last) {
  std::unique_lock lock(mutex);
  const bool unwinds = changed.wait_until(lock, decided + options.grace, [&] { return wish != Wish::watch; });
  lock.unlock();
  if (unwinds) std::this_thread::sleep_for(options.grace);
  options.end(last);
}

// Returns when there is nothing more to find out.
void Watch::State::ask(Wish what, const std::string& error) {
  std::unique_lock lock(mutex);
  wish = what;
  if (!over) reason = error;
  changed.notify_all();
  changed.wait(lock, [&] { return over; });
}

Watch::Watch(const Store& store, int rank, int world, int store_host, WatchOptions options)
    : state_(std::make_shared<State>(store, rank, world, store_host, std::move(options))) {
  state_->begin();
  state_->thread = std::thread([state = state_] { state->run(); });
}

Watch::~Watch() {
  failed("it left without a word");
  if (state_->words)
    state_->thread.detach();  // it may have to end the process yet
  else
    state_->thread.join();
}

void Watch::at(const std::string& phase, std::int64_t step) {
  state_->activity.at(phase, step);
}

void Watch::waiting(const char* collective) {
  state_->activity.waiting(collective);
}

void Watch::done() {
  state_->activity.done();
}

std::string Watch::explain(const std::string& error) {
  state_->ask(Wish::explanation, error);
  return state_->words.value_or(error);
}

void Watch::failed(const std::string& reason) {
  state_->ask(Wish::failure, reason);
}

void Watch::finish() {
  state_->ask(Wish::finish, "");
  if (state_->words) throw DistributedError(*state_->words);
}

}  // namespace exfusion
