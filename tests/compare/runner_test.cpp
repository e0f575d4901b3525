#include "compare/runner.h"

#include <gtest/gtest.h>

#include <csignal>
#include <map>
#include <thread>

#include "core/error.h"
#include "support/test_folder.h"

namespace exfusion {
namespace {

class Runner : public testing::Test {
 protected:
  Job shell(const std::string& name, const std::string& script, const std::string& after = "") {
    return {name, {{{"/bin/sh", "-c", script}, {}}}, folder_ / (name + ".log"), after};
  }
  int run(const std::vector<Job>& jobs, int parallel) {
    return run_jobs(jobs, parallel, [&](const Job& job, const JobEnd& end) {
      order_.push_back(job.name);
      ends_[job.name] = end;
    });
  }
  std::string path(const std::string& name) const { return (folder_ / name).string(); }

  TestFolder folder_;
  std::vector<std::string> order_;
  std::map<std::string, JobEnd> ends_;
};

TEST_F(Runner, RunsEveryJobAndReportsHowItEnded) {
  EXPECT_EQ(run({shell("good", "echo fine"), shell("bad", "echo first; echo last >&2; exit 3")}, 1), 0);
  EXPECT_EQ(order_, (std::vector<std::string>{"good", "bad"}));
  EXPECT_EQ(ends_["good"].exit_code, 0);
  EXPECT_EQ(ends_["bad"].exit_code, 3);
  EXPECT_EQ(ends_["bad"].last_line, "last");
  EXPECT_EQ(read_bytes(folder_ / "good.log"), "fine\n");
}

TEST_F(Runner, AJobThatASignalEndedSaysSo) {
  run({shell("killed", "kill -9 $$")}, 1);
  EXPECT_EQ(ends_["killed"].exit_code, 128 + SIGKILL);
}

TEST_F(Runner, AProgramThatIsNotThereFails) {
  run({{"absent", {{{path("nothing")}, {}}}, folder_ / "absent.log", ""}}, 1);
  EXPECT_EQ(ends_["absent"].exit_code, 127);
}

TEST_F(Runner, CommandsFollowEachOtherUntilOneFails) {
  Job job = shell("chain", "echo one");
  job.commands.push_back({{"/bin/sh", "-c", "echo two; echo note >&2"}, folder_ / "two.out"});
  job.commands.push_back({{"/bin/sh", "-c", "exit 4"}, {}});
  job.commands.push_back({{"/bin/sh", "-c", "echo never"}, {}});
  run({job}, 1);
  EXPECT_EQ(ends_["chain"].exit_code, 4);
  EXPECT_EQ(read_bytes(folder_ / "two.out"), "two\n");
  EXPECT_EQ(read_bytes(folder_ / "chain.log"), "one\nnote\n");
}

TEST_F(Runner, RunsNoMoreThanAskedForAtATimeButThatMany) {
  // Each notes how many are there until two have met, then stays a while, so that a third would show.
  const std::string here = path("here"), met = path("met");
  std::filesystem::create_directory(here);
  const std::string script = "touch " + here + "/$$; i=0; while [ ! -e " + met +
                             " ] && [ $i -lt 500 ]; do [ $(ls " + here + " | wc -l) -lt 2 ] || touch " + met +
                             "; i=$((i + 1)); sleep 0.02; done; sleep 0.1; ls " + here + " | wc -l; rm " +
                             here + "/$$";
  std::vector<Job> jobs;
  for (const char* name : {"a", "b", "c", "d"}) jobs.push_back(shell(name, script));
  run(jobs, 2);
  int most = 0;
  for (const Job& job : jobs) most = std::max(most, std::stoi(read_bytes(job.log)));
  EXPECT_LE(most, 2);
  EXPECT_TRUE(std::filesystem::exists(met));
}

TEST_F(Runner, AJobWaitsForTheOneThatItNeeds) {
  run({shell("slow", "sleep 0.2; echo made > " + path("made")), shell("needs", "cat " + path("made"), "slow"),
       shell("free", "true", "of an earlier day")},
      3);
  EXPECT_EQ(read_bytes(folder_ / "needs.log"), "made\n");
  EXPECT_EQ(ends_["free"].exit_code, 0);
}

TEST_F(Runner, WhatNeedsAFailedJobFailsUnstarted) {
  run({shell("bad", "exit 1"), shell("needs", "echo started", "bad"),
       shell("further", "echo started", "needs")},
      2);
  EXPECT_EQ(ends_["needs"].exit_code, 1);
  EXPECT_EQ(ends_["needs"].last_line, "needs bad, which failed");
  EXPECT_EQ(ends_["further"].last_line, "needs needs, which failed");
  EXPECT_FALSE(std::filesystem::exists(folder_ / "needs.log"));
}

TEST_F(Runner, AnInterruptIsPassedOnOnceAndNothingStartsAfterIt) {
  const std::string script = "trap 'echo told >> " + path("told") + "; exit 130' INT; echo ready > " +
                             path("ready") + "; while true; do sleep 0.02; done";
  std::thread interrupt([&] {
    for (int i = 0; i < 500 && !std::filesystem::exists(path("ready")); ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    ::kill(::getpid(), SIGINT);
  });
  const int signal = run({shell("running", script), shell("next", "echo started")}, 1);
  interrupt.join();
  EXPECT_EQ(signal, SIGINT);
  EXPECT_EQ(ends_["running"].exit_code, 130);
  EXPECT_EQ(read_bytes(folder_ / "told"), "told\n");
  EXPECT_FALSE(ends_.contains("next"));
}

TEST_F(Runner, ALogThatCannotBeWrittenIsAFailure) {
  Job job = shell("a", "true");
  job.log = folder_ / "no" / "such" / "folder.log";
  EXPECT_THROW(run({job}, 1), FileError);
}

}  // namespace
}  // namespace exfusion
