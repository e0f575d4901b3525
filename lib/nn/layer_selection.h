// Which blocks of a model get something: the value of a recipe's `layers` keys.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace exfusion {

// all, last:k (the last k blocks), every:k (blocks k-1, 2k-1, …: every:2 is every second), or a list of
// different block numbers from 0. Returns what is wrong with `words` for a model of `blocks` blocks, "" if
// nothing is.
std::string layer_selection_problem(const std::vector<std::string>& words, std::int64_t blocks);

// [blocks]: whether each is chosen. `words` must have no problem.
std::vector<bool> select_layers(const std::vector<std::string>& words, std::int64_t blocks);

}  // namespace exfusion
