#include "dist/agreement.h"

#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <thread>
#include <torch/csrc/distributed/c10d/HashStore.hpp>
#include <vector>

#include "core/error.h"

namespace exfusion {
namespace {

using namespace std::chrono_literals;

// What each of `present` said: what its body returned, or the error that it threw.
std::vector<std::string> answers_of(int world, const std::vector<int>& present,
                                    const std::function<std::string(const Store&, const Launch&)>& body) {
  const auto shared = c10::make_intrusive<c10d::HashStore>();
  std::vector<std::string> said(present.size());
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < present.size(); ++i) {
    threads.emplace_back([&, i] {
      Launch launch;
      launch.world = world;
      launch.rank = present[i];
      const Store store(c10::intrusive_ptr<c10d::Store>(shared).release());
      try {
        said[i] = body(store, launch);
      } catch (const DistributedError& error) {
        said[i] = error.what();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return said;
}

TEST(Agreement, RanksThatMeetLearnTheSame) {
  const auto said = answers_of(3, {0, 1, 2}, [](const Store& store, const Launch& launch) {
    return meet(store, launch, "topic", std::to_string(launch.rank), 10s,
                [](const std::vector<std::string>& texts) { return texts[0] + texts[1] + texts[2]; });
  });
  EXPECT_EQ(said, std::vector<std::string>(3, "012"));
}

TEST(Agreement, NamesWhoDidNotCome) {
  const auto said = answers_of(5, {0, 2, 4}, [](const Store& store, const Launch& launch) {
    return meet(store, launch, "start", "", 200ms, [](const auto&) { return ""; });
  });
  for (const std::string& text : said)
    EXPECT_EQ(text.find("start: 2 of 5 ranks did not come within 0.2 s: ranks 1, 3 (rank 0 waited"), 0u)
        << text;
}

TEST(Agreement, NamesRankFieldAndBothValues) {
  const auto said = answers_of(3, {0, 1, 2}, [](const Store& store, const Launch& launch) {
    check_agreement(store, launch, "agreement", {{"seed", launch.rank == 2 ? "4" : "3"}, {"recipe", "abc"}},
                    10s);
    return std::string("agreed");
  });
  for (const std::string& text : said)
    EXPECT_EQ(text, "rank 2 on host " + host_name() + " differs in seed: it has 4, rank 0 has 3");
}

TEST(Agreement, NamesEveryFieldAndTheFirstLineThatDiffers) {
  const auto said = answers_of(2, {0, 1}, [](const Store& store, const Launch& launch) {
    const std::string seed = launch.rank == 1 ? "4" : "3";
    check_agreement(store, launch, "agreement",
                    {{"recipe", "name: x\n  seed: " + seed + "\nlr: " + seed}, {"seed", seed}}, 10s);
    return std::string("agreed");
  });
  for (const std::string& text : said)
    EXPECT_EQ(text,
              "rank 1 on host " + host_name() +
                  " differs in recipe: it has seed: 4, rank 0 has seed: 3; in seed: it has 4, rank 0 has 3");
}

TEST(Agreement, AFieldOfOneRankAloneIsADifference) {
  for (const int odd : {0, 1}) {
    const auto said = answers_of(2, {0, 1}, [odd](const Store& store, const Launch& launch) {
      std::map<std::string, std::string> fields = {{"seed", "3"}};
      if (launch.rank == odd) fields["data"] = "00ff";
      check_agreement(store, launch, "agreement", fields, 10s);
      return std::string("agreed");
    });
    for (const std::string& text : said)
      EXPECT_NE(text.find(odd == 0 ? "differs in data: it has nothing, rank 0 has 00ff"
                                   : "differs in data: it has 00ff, rank 0 has nothing"),
                std::string::npos)
          << text;
  }
}

TEST(Agreement, SaysNothingWhereAllAgree) {
  const auto said = answers_of(2, {0, 1}, [](const Store& store, const Launch& launch) {
    const auto hosts = check_agreement(store, launch, "agreement", {{"seed", "3"}}, 10s);
    EXPECT_EQ(hosts, std::vector<std::string>(2, host_name()));
    return std::string("agreed");
  });
  EXPECT_EQ(said, std::vector<std::string>(2, "agreed"));
}

// Of four ranks two have come, for different things: nobody waits for the others, nor hears of seeds.
TEST(Agreement, RanksThatCameForDifferentThingsDoNotWaitForMore) {
  const auto start = std::chrono::steady_clock::now();
  const auto said = answers_of(4, {0, 2}, [](const Store& store, const Launch& launch) {
    const std::string number = std::to_string(launch.rank);
    check_agreement(store, launch, "start",
                    {{"purpose", launch.rank == 2 ? "--dry-run" : "training"}, {"seed", number}}, 60s);
    return std::string("agreed");
  });
  for (const std::string& text : said)
    EXPECT_EQ(text,
              "rank 2 on host " + host_name() + " differs in purpose: it has --dry-run, rank 0 has training");
  EXPECT_LT(std::chrono::steady_clock::now() - start, 30s);
}

// Rank 0 of two would never look for a rank 2.
TEST(Agreement, RanksCountTheSameRanks) {
  const auto shared = c10::make_intrusive<c10d::HashStore>();
  std::vector<std::string> said(3);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < 3; ++rank) {
    threads.emplace_back([&, rank] {
      Launch launch;
      launch.rank = rank;
      launch.world = rank == 2 ? 3 : 2;
      try {
        check_agreement(Store(c10::intrusive_ptr<c10d::Store>(shared).release()), launch, "start", {}, 10s);
      } catch (const DistributedError& error) {
        said[static_cast<std::size_t>(rank)] = error.what();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(said, (std::vector<std::string>{
                      "", "", "rank 2 is one of 3 ranks, rank 0 one of 2: WORLD_SIZE must be the same"}));
}

TEST(Agreement, ARankIsOneProcess) {
  const Store store(c10::make_intrusive<c10d::HashStore>().release());
  Launch launch;
  launch.world = 2;
  launch.rank = 1;
  claim_rank(store, launch);
  EXPECT_NO_THROW(claim_rank(store, launch));  // the same process
  store.set("claim/0", "host n7, process 12");
  launch.rank = 0;
  try {
    claim_rank(store, launch);
    ADD_FAILURE() << "no complaint";
  } catch (const UsageError& error) {
    EXPECT_STREQ(error.what(),
                 "rank 0 is there already (host n7, process 12): it was started twice, or another run uses "
                 "127.0.0.1:29500 (MASTER_ADDR, MASTER_PORT) too");
  }
}

// A rank that cannot read its data ends the wait of the others at once.
TEST(Agreement, ARefusalEndsTheWait) {
  for (const int culprit : {0, 2}) {
    const auto start = std::chrono::steady_clock::now();
    const auto said = answers_of(3, {0, 1, 2}, [culprit](const Store& store, const Launch& launch) {
      if (launch.rank == culprit) {
        refuse(store, launch, "no data\nnor anything else");
        return std::string();
      }
      check_agreement(store, launch, "agreement", {}, 30s);
      return std::string("agreed");
    });
    for (int rank = 0; rank < 3; ++rank) {
      if (rank == culprit) continue;
      EXPECT_EQ(said[static_cast<std::size_t>(rank)], "rank " + std::to_string(culprit) + " on host " +
                                                          host_name() +
                                                          " could not start: no data (and 1 more)");
    }
    EXPECT_LT(std::chrono::steady_clock::now() - start, 10s);
  }
}

}  // namespace
}  // namespace exfusion
