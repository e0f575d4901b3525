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

using Answer = std::function<std::string(const std::vector<std::string>& texts)>;
using Arrived = std::function<void(int rank, const std::string& text)>;

// Every rank hands in a text; rank 0 sees them all, by rank, and what its `answer` returns is returned on
// every rank. Before, rank 0 shows each text to `arrived` as it comes. Throws DistributedError on every rank,
// in the same words, if either of them does, if somebody calls refuse(), or if ranks do not come within
// `timeout`, which are then named. Rank 0 logs whom it waits for. Once per topic.
std::string meet(const Store& store, const Launch& launch, const std::string& topic, const std::string& text,
                 std::chrono::milliseconds timeout, const Answer& answer, const Arrived& arrived = {});

using Fields = std::map<std::string, std::string>;

// Compares what must be the same everywhere (recipe, versions, data ...; the byte order and the number of
// ranks are added): name to value. Throws DistributedError on all ranks as soon as one comes that differs,
// naming it, fields and both values; of a value of several lines, the first that differs. Where "purpose"
// differs, it alone is named. Returns the hosts of all ranks.
std::vector<std::string> check_agreement(const Store& store, const Launch& launch, const std::string& topic,
                                         Fields fields, std::chrono::milliseconds timeout);

// The first words of a rank in the store. Throws UsageError if another process has said that it is this rank.
void claim_rank(const Store& store, const Launch& launch);

// Tells whoever meets that this rank cannot go on, and why. Rank 0, which may serve the store, stays until
// the others have read it, `stay` at most. Never throws: the caller is about to fail anyway.
void refuse(const Store& store, const Launch& launch, const std::string& reason,
            std::chrono::seconds stay = std::chrono::seconds(1)) noexcept;

// The last words: rank 0, which may serve the store, stays until everyone but `lost` ranks has left, 10 s at
// most.
void leave(const Store& store, const Launch& launch, int lost = 0) noexcept;

// For errors of the store: who serves it, and where.
std::string no_answer_from_store(const Launch& launch);

// The name of this machine, for messages.
std::string host_name();

}  // namespace exfusion
