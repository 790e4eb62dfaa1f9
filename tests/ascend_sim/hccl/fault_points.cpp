// Where switched-on faults strike the collectives. The runtime has checked that the specification parses.
#include "fault_points.h"

#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <mutex>
#include <optional>
#include <thread>

#include "ascend_sim/runtime.h"
#include "environment.h"
#include "segment.h"

namespace ascend_sim::hccl {
namespace {

struct RankAndValue {
  int64_t rank;
  double value;
};

std::optional<RankAndValue> rank_and_value(const std::string& name) {
  long long rank = 0;
  double value = 0;
  std::string text = fault(name);
  if (text.empty() || std::sscanf(text.c_str(), "%lld:%lf", &rank, &value) != 2) return std::nullopt;
  return RankAndValue{rank, value};
}

// Counts from the moment the fault was switched on, or changed.
uint64_t count_since_set(const std::string& name) {
  static std::mutex mutex;
  static struct { std::string value; uint64_t count; } late, dies;
  std::lock_guard<std::mutex> lock(mutex);
  auto& counter = name == "rank_late" ? late : dies;
  std::string value = fault(name);
  if (counter.value != value) {
    counter.value = value;
    counter.count = 0;
  }
  return ++counter.count;
}

}  // namespace

void check_host_fault(const std::string& call) {
  if (fault_due("hccl_error_at"))
    throw HcclFailure(kRemote, "fault hccl_error_at=" + fault("hccl_error_at") + " makes this " + call + " fail");
}

FaultPlan plan_faults(uint32_t rank_in_communicator) {
  FaultPlan plan;
  int64_t rank = process_rank(rank_in_communicator);
  auto late = rank_and_value("rank_late"), dies = rank_and_value("rank_dies");
  if (late && late->rank == rank && count_since_set("rank_late") == 1) plan.late_seconds = late->value;
  if (dies && dies->rank == rank)
    plan.dies = static_cast<double>(count_since_set("rank_dies")) == dies->value;
  return plan;
}

void strike(const FaultPlan& plan) {
  if (plan.dies) {
    std::fprintf(stderr, "[ascend_sim] fault rank_dies=%s: this process ends now\n", fault("rank_dies").c_str());
    kill(getpid(), SIGKILL);
    while (true) pause();                    // until the signal has done its work
  }
  auto until = std::chrono::steady_clock::now() + std::chrono::duration<double>(plan.late_seconds);
  while (std::chrono::steady_clock::now() < until && !shutting_down())
    std::this_thread::sleep_for(std::min<std::chrono::duration<double>>(until - std::chrono::steady_clock::now(),
                                                                        std::chrono::milliseconds(100)));
}

}  // namespace ascend_sim::hccl
