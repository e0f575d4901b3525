// The folder of a comparison: plan.json, runs/ and the report. It belongs to one comparison, which may grow.
#pragma once
#include <filesystem>
#include <optional>

#include "compare/plan.h"

namespace exfusion {

class ComparisonFolder {
 public:
  // Opens the folder, or makes it. What it has already of this comparison is taken over into the plan: arms
  // and seeds that were compared before stay (the correction covers all that was looked at), threads and
  // matched steps are kept. Throws RunFolderError when it holds something else, naming what differs, or when
  // another process works in it.
  ComparisonFolder(const std::filesystem::path& path, ComparisonPlan& plan);
  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path runs() const { return path_ / "runs"; }
  void write_plan(const ComparisonPlan& plan) const;

 private:
  // Held by one process, and by the children that inherit it: until the last of them has ended.
  struct Lock {
    explicit Lock(const std::filesystem::path& path);
    ~Lock();
    Lock(const Lock&) = delete;
    Lock& operator=(const Lock&) = delete;
    int file;
  };
  std::filesystem::path path_;
  std::optional<Lock> lock_;
};

}  // namespace exfusion
