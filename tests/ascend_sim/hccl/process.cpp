// Liveness of other processes, from /proc, and the names of shared segments, which carry their maker's process id.
#include "process.h"

#include <dirent.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <fstream>
#include <sstream>
#include <string>

#include "segment.h"

namespace ascend_sim::hccl {
namespace {

constexpr const char* kPrefix = "ascend_sim_hccl_";

struct ProcessState {
  char state = 0;                                    // 0: no such process
  uint64_t start_time = 0;
};

ProcessState read_state(pid_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  std::string line;
  if (!std::getline(file, line)) return {};
  size_t after_name = line.rfind(')');               // the name may hold spaces and parentheses
  if (after_name == std::string::npos) return {};
  std::istringstream fields(line.substr(after_name + 1));
  ProcessState found;
  fields >> found.state;
  std::string skipped;
  for (int field = 4; field < 22; field++) fields >> skipped;
  fields >> found.start_time;
  return found;
}

}  // namespace

uint64_t own_pid_namespace() {
  static const uint64_t value = [] {
    struct stat about {};
    return stat("/proc/self/ns/pid", &about) == 0 ? static_cast<uint64_t>(about.st_ino) : uint64_t{0};
  }();
  return value;
}

uint64_t process_start_time(pid_t pid) { return read_state(pid).start_time; }

bool process_alive(pid_t pid, uint64_t start_time) {
  ProcessState found = read_state(pid);
  return found.state != 0 && found.state != 'Z' && found.state != 'X' && found.start_time == start_time;
}

std::string new_segment_name() {
  static std::atomic<uint64_t> made{0};
  return kPrefix + std::to_string(own_pid_namespace()) + "_" + std::to_string(getpid()) + "_" +
         std::to_string(process_start_time(getpid())) + "_" + std::to_string(made++);
}

bool is_segment_name(const std::string& name) { return name.rfind(kPrefix, 0) == 0; }

void remove_abandoned_segments() {
  DIR* folder = opendir("/dev/shm");
  if (folder == nullptr) return;
  while (dirent* entry = readdir(folder)) {
    std::string name = entry->d_name;
    if (!is_segment_name(name)) continue;
    unsigned long long space = 0, started = 0;
    int pid = 0;
    if (std::sscanf(name.c_str() + std::string(kPrefix).size(), "%llu_%d_%llu_", &space, &pid, &started) != 3) continue;
    if (space == own_pid_namespace() && !process_alive(pid, started)) shm_unlink(("/" + name).c_str());
  }
  closedir(folder);
}

}  // namespace ascend_sim::hccl
