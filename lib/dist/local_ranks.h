// Starts the ranks of one machine: exfusion-train --nproc.
#pragma once
#include <string>
#include <vector>

namespace exfusion {

// Runs this program `count` times with `arguments`, RANK and what belongs to it in the environment, and waits
// for all. The children share a process group of their own, have no input, and are killed when this process
// dies. SIGINT, SIGTERM and SIGHUP are passed on to them, each time. When one fails, or one that is stopped
// cannot obey, the others have 20 s to end by themselves; then they get SIGTERM, and 5 s later SIGKILL, which
// ends stopped ones as soon as only they are left. What several ranks say last is said once
// (dist/rank_words.h). Returns the exit code: rank 0's, unless it is 0 or rank 0 died of a signal; else that
// of the first rank that exited with another than 0; else 128 + the signal that the first one died of; else
// 0. Throws Failure if a process or port is not to be had.
int run_local_ranks(int count, const std::vector<std::string>& arguments);

}  // namespace exfusion
