// Tries the connections between ranks before a run depends on them: exfusion-train --check-cluster.
#pragma once
#include <string>

#include "dist/agreement.h"
#include "dist/dist_config.h"

namespace exfusion {

// Connects the ranks of the environment, all started for this `purpose`, runs every collective at several
// sizes, and checks what arrives. Rank 0 prints host, process and threads of every rank and a table of
// bandwidths (median of several) on stdout. Waits for anybody 60 s at most, or dist.timeout if that is
// shorter. Throws DistributedError naming the ranks that do not answer or have received wrong values, and
// what connect() throws.
void check_cluster(DistConfig config, const std::string& device, const Fields& purpose);

}  // namespace exfusion
