#include "dist/node_list.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "core/error.h"

namespace exfusion {
namespace {

using Hosts = std::vector<std::string>;

Hosts parse(const std::string& list) {
  return parse_node_list("SLURM_STEP_NODELIST", list);
}

std::string list_complaint(const std::string& list) {
  try {
    parse(list);
  } catch (const UsageError& error) {
    return error.what();
  }
  return "";
}

// As `scontrol show hostnames` of SLURM 22.05 expands them.
TEST(NodeList, ExpandsRangesAsSlurmDoes) {
  EXPECT_EQ(parse("login"), (Hosts{"login"}));
  EXPECT_EQ(parse("n[01-03,07]"), (Hosts{"n01", "n02", "n03", "n07"}));
  EXPECT_EQ(parse("a1,b[2-3]c"), (Hosts{"a1", "b2c", "b3c"}));
  EXPECT_EQ(parse("gpu-[9-11].cluster.org"),
            (Hosts{"gpu-9.cluster.org", "gpu-10.cluster.org", "gpu-11.cluster.org"}));
  EXPECT_EQ(parse("rack[1-2]n[3-4]"), (Hosts{"rack1n3", "rack1n4", "rack2n3", "rack2n4"}));
  EXPECT_EQ(parse("n[098-101]"), (Hosts{"n098", "n099", "n100", "n101"}));
  EXPECT_EQ(parse("n[0-65535]").size(), 65536u);
}

TEST(NodeList, RefusesWhatIsNotWellFormed) {
  for (const char* list : {"", ",", "a,", "a,,b", "n[1-2", "n1-2]", "n[[1]]", "n[]", "n[1-]", "n[a-b]",
                           "n[3-1]", "[1-2]", "n[1,]", "a b", "a;rm", "n[1-2]]", "n[1-1-2]", "n[-1]"})
    EXPECT_NE(list_complaint(list).find("SLURM_STEP_NODELIST is '"), std::string::npos) << list;
}

TEST(NodeList, RefusesMoreHostsThanThereAreBeforeItMakesThem) {
  for (const char* list : {"n[0-65536]", "n[0-999999999]", "n[0-999]m[0-999]p[0-999]",
                           "n[0-65000],m[0-65000]", "n[0-60000,0-60000]", "n[0-99999999999999999999]"})
    EXPECT_NE(list_complaint(list), "") << list;
  EXPECT_NE(list_complaint(std::string((1 << 20) + 1, 'a')), "");
}

TEST(NodeList, CountsTasksPerNode) {
  const auto tasks = [](const std::string& list, int node) {
    return tasks_of_node("SLURM_STEP_TASKS_PER_NODE", list, node);
  };
  EXPECT_EQ(tasks("4", 0), 4);
  EXPECT_EQ(tasks("2(x3),1", 2), 2);
  EXPECT_EQ(tasks("2(x3),1", 3), 1);
  for (const char* list : {"", "2(x)", "(x2)", "a", "2(x3", "-1", "99999999"})
    EXPECT_THROW(tasks(list, 0), UsageError) << list;
  EXPECT_THROW(tasks("2(x3),1", 4), UsageError);
  EXPECT_THROW(tasks("2(x999999),2(x999999)", 2000000), UsageError);
}

}  // namespace
}  // namespace exfusion
