#include "dist/watch.h"

#include <gtest/gtest.h>

#include <deque>
#include <future>
#include <mutex>
#include <thread>
#include <torch/csrc/distributed/c10d/HashStore.hpp>

#include "core/error.h"
#include "dist/heartbeat.h"
#include "dist/store.h"

namespace exfusion {
namespace {

using std::chrono::milliseconds;

Store make_store() {
  return Store(c10::make_intrusive<c10d::HashStore>().release());
}

// A tenth of the times that count in a run, and less.
WatchOptions quick(std::function<void(const std::string&)> end = [](const std::string&) {}) {
  WatchOptions options;
  options.beat = milliseconds(20);
  options.silence = milliseconds(800);
  options.suspicion = milliseconds(500);
  options.patience = milliseconds(1500);
  options.grace = milliseconds(150);
  options.end = std::move(end);
  return options;
}

// What was handed to WatchOptions::end.
class Ending {
 public:
  std::function<void(const std::string&)> take() {
    return [promise = promise_](const std::string& words) { promise->set_value(words); };
  }
  std::string words() {
    std::future<std::string> future = promise_->get_future();
    return future.wait_for(std::chrono::seconds(10)) == std::future_status::ready ? future.get() : "none";
  }

 private:
  std::shared_ptr<std::promise<std::string>> promise_ = std::make_shared<std::promise<std::string>>();
};

Heartbeat heart(const std::string& phase, std::int64_t step) {
  Heartbeat heart;
  heart.host = "n7";
  heart.pid = 123;
  heart.phase = phase;
  heart.step = step;
  heart.beat = 1;
  return heart;
}

TEST(Heartbeat, ReadsWhatItWrote) {
  Heartbeat before = heart("backward", 118);
  before.collective = 7;
  before.waiting = true;
  before.state = RankState::leaving;
  before.seconds = {{"forward", 0.25}};
  const Heartbeat after = Heartbeat::parse(before.text());
  EXPECT_EQ(after.text(), before.text());
  EXPECT_EQ(after.host, "n7");
  EXPECT_EQ(after.collective, 7);
  EXPECT_EQ(after.seconds.at("forward"), 0.25);
}

TEST(Heartbeat, RefusesWhatIsNone) {
  for (const char* text : {"", "{", "[]", "{\"host\": 1}", "{\"host\": \"a\"}"})
    EXPECT_THROW(Heartbeat::parse(text), DistributedError) << text;
  Heartbeat strange = heart("forward", 1);
  strange.state = static_cast<RankState>(9);
  EXPECT_THROW(Heartbeat::parse(strange.text()), DistributedError);
}

TEST(Activity, CountsAPhaseWithoutItsWaiting) {
  Activity activity;
  const Activity::Clock::time_point start = Activity::Clock::now();
  const auto at = [&](int ms) { return start + milliseconds(ms); };
  activity.at("forward", 1, at(0));
  activity.at("backward", 1, at(100));
  activity.waiting("all_reduce", at(150));
  activity.done(at(450));
  activity.waiting("send", at(450));  // between two ranks: not counted among those of all
  activity.done(at(460));
  activity.at("forward", 2, at(500));
  Heartbeat heart;
  activity.write(heart);
  EXPECT_EQ(heart.step, 2);
  EXPECT_EQ(heart.phase, "forward");
  EXPECT_EQ(heart.collective, 1);
  EXPECT_FALSE(heart.waiting);
  EXPECT_NEAR(heart.seconds.at("forward"), 0.1, 1e-9);
  EXPECT_NEAR(heart.seconds.at("backward"), 0.09, 1e-9);  // 400 ms, 310 of them waiting
}

TEST(SlowRank, IsNamedWithItsPhaseAndRatio) {
  std::vector<Heartbeat> hearts(4);
  for (Heartbeat& heart : hearts) heart.seconds = {{"forward", 0.1}, {"backward", 0.2}, {"logging", 0.001}};
  EXPECT_FALSE(slow_rank(hearts));
  hearts[0].seconds["logging"] = 0.01;  // ten times nearly nothing
  hearts[2].seconds["forward"] = 0.19;  // less than twice
  EXPECT_FALSE(slow_rank(hearts));
  hearts[3].seconds["backward"] = 0.48;
  EXPECT_EQ(slow_rank(hearts), "rank 3 is slow: its backward takes 2.4 x the median of the other ranks");
  hearts.resize(1);
  EXPECT_FALSE(slow_rank(hearts));
}

TEST(Watch, LetsRanksFinishOneAfterTheOther) {
  const Store store = make_store();
  std::deque<Watch> ranks;
  for (int rank = 0; rank < 3; ++rank) ranks.emplace_back(store, rank, 3, 0, quick());
  auto host = std::async(std::launch::async, [&] { ranks[0].finish(); });
  ranks[1].finish();
  // Longer than the silence after which a rank is lost, and the host stays for rank 2.
  EXPECT_EQ(host.wait_for(milliseconds(1600)), std::future_status::timeout);
  ranks[2].finish();
  EXPECT_NO_THROW(host.get());
  EXPECT_FALSE(store.get("verdict"));
}

TEST(Watch, NamesTheRankWhoseHeartStops) {
  const Store store = make_store();
  store.set("heart/2", heart("backward", 118).text());
  Ending ends[2];
  Watch first(store, 0, 3, 0, quick(ends[0].take())), second(store, 1, 3, 0, quick(ends[1].take()));
  for (Ending& end : ends) {  // though no training thread comes to a collective
    const std::string words = end.words();
    EXPECT_EQ(words.find("lost rank 2 (host n7, pid 123): last seen in backward of step 118, 0.8 s ago"), 0u)
        << words;
  }
}

TEST(Watch, WarnsOfASlowRankAndGoesOn) {
  const Store store = make_store();
  Heartbeat slow = heart("backward", 2);
  slow.seconds = {{"backward", 0.5}};
  slow.state = RankState::finished;
  store.set("heart/1", slow.text());
  WatchOptions options = quick();
  options.slow_every = milliseconds(100);
  Watch watch(store, 0, 2, 0, options);
  watch.at("backward", 1);
  watch.at("forward", 2);
  testing::internal::CaptureStderr();
  std::this_thread::sleep_for(milliseconds(300));
  const std::string log = testing::internal::GetCapturedStderr();
  EXPECT_NE(log.find("warning: rank 1 is slow: its backward takes"), std::string::npos) << log;
  EXPECT_NO_THROW(watch.finish());
}

TEST(Watch, BearsWithALateHeart) {
  const Store store = make_store();
  Heartbeat late = heart("forward", 1);
  store.set("heart/1", late.text());
  Watch watch(store, 0, 2, 0, quick());
  for (; late.beat < 6; ++late.beat) {  // half of the silence
    store.set("heart/1", late.text());
    std::this_thread::sleep_for(milliseconds(400));
  }
  EXPECT_FALSE(store.get("verdict"));
  late.state = RankState::finished;
  store.set("heart/1", late.text());
  EXPECT_NO_THROW(watch.finish());
}

TEST(Watch, DoesNotMissARankThatHasNotBegun) {
  const Store store = make_store();
  Watch watch(store, 0, 2, 0, quick());
  std::this_thread::sleep_for(milliseconds(1200));
  EXPECT_FALSE(store.get("verdict"));
  EXPECT_EQ(watch.explain("all_reduce: Connection reset by peer").find("lost rank 1, which was never seen"),
            0u);
}

TEST(Watch, PassesOnWhyARankFailed) {
  const Store store = make_store();
  Watch host(store, 0, 2, 0, quick()), other(store, 1, 2, 0, quick());
  other.at("checkpoint", 40);
  other.failed("state.json: No space left on device");
  const std::string words = host.explain("all_reduce: Connection reset by peer");
  EXPECT_EQ(words.find("lost rank 1 (host "), 0u) << words;
  EXPECT_NE(words.find("failed in checkpoint of step 40: state.json: No space left on device"),
            std::string::npos);
}

TEST(Watch, TakesARankThatLeavesWithoutAWordForFailed) {
  const Store store = make_store();
  Watch host(store, 0, 2, 0, quick());
  { const Watch other(store, 1, 2, 0, quick()); }
  EXPECT_EQ(host.explain("all_reduce: Connection reset by peer").find("lost rank 1 ("), 0u);
}

// Ranks 0 and 1 wait for collective 2, to which rank 2 does not come; its heart beats.
TEST(Watch, NamesTheRankThatHangs) {
  const Store store = make_store();
  std::deque<Watch> ranks;
  Ending hung;
  for (int rank = 0; rank < 3; ++rank)
    ranks.emplace_back(store, rank, 3, 0, quick(rank == 2 ? hung.take() : [](const std::string&) {}));
  for (Watch& watch : ranks) {
    watch.at("backward", 9);
    watch.waiting("all_reduce");
    watch.done();
  }
  for (int rank = 0; rank < 2; ++rank) ranks[static_cast<std::size_t>(rank)].waiting("all_reduce");
  const std::string error =
      "all_reduce: [/a/b.cc:78] Timed out waiting 6000ms for recv operation to complete";
  auto first = std::async(std::launch::async, [&] { return ranks[0].explain(error); });
  const std::string words =
      ranks[1].explain("all_reduce: Connection closed by peer. This is typically caused by");
  EXPECT_EQ(words.find("lost rank 2 (host "), 0u) << words;
  EXPECT_NE(words.find("still in backward of step 9: it hangs: all_reduce: Timed out waiting 6000ms"),
            std::string::npos)
      << words;
  EXPECT_EQ(first.get(), words);
  EXPECT_EQ(hung.words(), "the other ranks take this one for lost: " + words);
}

TEST(Watch, BlamesNobodyForABrokenConnectionAmongTheLiving) {
  const Store store = make_store();
  Watch host(store, 0, 2, 0, quick()), other(store, 1, 2, 0, quick());
  const std::string words = host.explain("all_reduce: Connection reset by peer");
  EXPECT_EQ(words,
            "a connection broke, though the hearts of all ranks beat: all_reduce: Connection reset by peer");
  EXPECT_EQ(other.explain("all_reduce: Connection reset by peer"), words);
}

// A HashStore that does not answer in time, as one whose host is stopped.
class StoppedStore final : public c10d::HashStore {
 public:
  std::mutex running;
  bool check(const std::vector<std::string>& keys) override {
    const std::lock_guard lock(running);
    return HashStore::check(keys);
  }
  c10::intrusive_ptr<c10d::Store> clone() override {
    return c10::intrusive_ptr<c10d::Store>::unsafe_reclaim_from_nonowning(this);
  }
};

TEST(Watch, NamesTheStoresHostWhenTheStoreIsSilent) {
  const auto stopped = c10::make_intrusive<StoppedStore>();
  const Store store(c10::intrusive_ptr<StoppedStore>(stopped).release());
  store.set("heart/0", heart("forward", 3).text());
  Watch watch(store, 1, 2, 0, quick());
  std::this_thread::sleep_for(milliseconds(200));
  const std::lock_guard stop(stopped->running);
  const std::string words = watch.explain("all_reduce: Connection reset by peer");
  EXPECT_EQ(
      words.find("lost rank 0 (host n7, pid 123): last seen in forward of step 3; its store does not answer"),
      0u)
      << words;
}

}  // namespace
}  // namespace exfusion
