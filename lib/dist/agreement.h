// How the ranks of a run meet before they work together: who is missing, who refuses, who differs.
#pragma once
#include <chrono>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "dist/launch.h"
#include "dist/store.h"

namespace exfusion {

// Every rank hands in a text; rank 0 sees them all, by rank, and what its `answer` returns is returned on
// every rank. Throws DistributedError on every rank, in the same words, if `answer` does, if somebody calls
// refuse(), or if ranks do not come within `timeout`, which are then named. Once per topic.
std::string meet(const Store& store, const Launch& launch, const std::string& topic, const std::string& text,
                 std::chrono::milliseconds timeout,
                 const std::function<std::string(const std::vector<std::string>&)>& answer);

// Compares what must be the same everywhere (recipe, versions, seed, data ...; the byte order is added): name
// to value. Throws DistributedError on all ranks, naming rank, fields and both values; of a value of several
// lines, the first that differs.
void check_agreement(const Store& store, const Launch& launch, std::map<std::string, std::string> fields,
                     std::chrono::milliseconds timeout);

// Tells whoever meets that this rank cannot go on, and why. Never throws: the caller is about to fail anyway.
void refuse(const Store& store, const Launch& launch, const std::string& reason) noexcept;

// The last words: rank 0, which may serve the store, stays until everyone has left, 10 s at most.
void leave(const Store& store, const Launch& launch) noexcept;

// For errors of the store: who serves it, and where.
std::string no_answer_from_store(const Launch& launch);

// The name of this machine, for messages.
std::string host_name();

}  // namespace exfusion
