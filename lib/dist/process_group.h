// The ranks of a run and what they say to each other: sums, exchanges and copies of flat tensors over c10d.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace c10d {
class Backend;
class Work;
}  // namespace c10d

namespace exfusion {

// What this rank has handed to collectives of one kind: calls, and the bytes of the tensors (of an exchange
// those for other ranks).
struct Traffic {
  std::int64_t calls = 0, bytes = 0;
};

// Who watches the collectives, to say which rank is to blame when one fails (dist/watch.h).
class CollectiveObserver {
 public:
  virtual ~CollectiveObserver() = default;
  virtual void waiting(const char* collective) = 0;  // the training thread begins to wait
  virtual void done() = 0;                           // and ends
  // Better words for the error of a failed collective. May take seconds.
  virtual std::string explain(const std::string& error) = 0;
};

class ProcessGroup;

// A collective under way. Its tensors must live, and not be touched, until wait() returns.
class Pending {
 public:
  Pending() = default;  // done
  void wait();          // throws DistributedError

 private:
  friend class ProcessGroup;
  struct State;
  std::shared_ptr<State> state_;
};

void wait_for(std::vector<Pending> all);

// A copy is the same group. Every rank calls the same collectives in the same order, from one thread at a
// time; tensors are contiguous. All throw DistributedError.
class ProcessGroup {
 public:
  ProcessGroup();  // this process alone: collectives do nothing
  // Takes a c10d backend (c10::intrusive_ptr released into a raw pointer); made by connect() and by tests.
  explicit ProcessGroup(c10d::Backend* backend);

  int rank() const;
  int world() const;
  bool alone() const { return world() == 1; }

  Pending start_all_reduce(const at::Tensor& tensor) const;  // sum over ranks, in place
  // Sends input[sum of sizes before q ...] to rank q; from rank r arrive output_sizes[r] elements. Both
  // tensors [n].
  Pending start_all_to_all(const at::Tensor& output, std::vector<std::int64_t> output_sizes,
                           const at::Tensor& input, std::vector<std::int64_t> input_sizes) const;
  Pending start_broadcast(const at::Tensor& tensor, int root) const;
  void all_reduce(const at::Tensor& tensor) const { start_all_reduce(tensor).wait(); }
  void broadcast(const at::Tensor& tensor, int root) const { start_broadcast(tensor, root).wait(); }
  // Rank r holds elements [cuts[r], cuts[r + 1]) of tensor [n]: afterwards everyone holds them all.
  std::vector<Pending> start_all_gather(const at::Tensor& tensor,
                                        const std::vector<std::int64_t>& cuts) const;
  void all_gather(const at::Tensor& tensor, const std::vector<std::int64_t>& cuts) const {
    wait_for(start_all_gather(tensor, cuts));
  }
  void send(const at::Tensor& tensor, int to) const;
  void receive(const at::Tensor& tensor, int from) const;
  void barrier() const;
  void sum(std::vector<double>& values) const;  // over ranks, in place

  const std::map<std::string, Traffic>& traffic() const;  // by collective, since the start
  double seconds_waited() const;  // of the calling threads, for collectives to end, since the start
  void observe(CollectiveObserver* observer) const;  // null: nobody
  void close() const;  // ends the connections: what still waits fails. The group is not used again

 private:
  friend class Pending;
  struct State;
  template <class Call>
  Pending start(const char* collective, std::int64_t payload, std::vector<at::Tensor> tensors,
                const Call& call) const;
  std::shared_ptr<State> state_;
};

}  // namespace exfusion
