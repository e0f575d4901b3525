// The short spellings of SLURM for many hosts and many numbers.
#pragma once
#include <string>
#include <vector>

namespace exfusion {

// The hosts of a list such as "n[01-03,07],login" or "rack[1-2]n[1-4]": n01 n02 n03 n07 login. `name` is the
// variable that holds it. Throws UsageError for a list that is not well formed or has over 65536 hosts.
std::vector<std::string> parse_node_list(const std::string& name, const std::string& list);

// Entry `node` of a list such as "2(x3),1": 2 2 2 1. Throws UsageError if there is none.
int tasks_of_node(const std::string& name, const std::string& list, int node);

}  // namespace exfusion
