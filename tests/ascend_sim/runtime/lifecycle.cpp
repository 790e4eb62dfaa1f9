// Start and end of the runtime, and when it refuses to start.
#include <dirent.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "errors.h"
#include "faults.h"
#include "lifecycle.h"
#include "settings.h"
#include "streams.h"
#include "timeline.h"

namespace ascend_sim {
namespace {

std::atomic<bool> initialised{false};

// The name of a real device's node in `directory`, or "".
std::string real_device_in(const char* directory) {
  std::string found;
  if (DIR* entries = opendir(directory)) {
    while (const dirent* entry = readdir(entries)) {
      const char* name = entry->d_name;
      if (std::strncmp(name, "davinci", 7) == 0 && name[7] >= '0' && name[7] <= '9') found = std::string(directory) + "/" + name;
    }
    closedir(entries);
  }
  return found;
}

std::string reason_to_refuse() {
  const char* wanted = std::getenv("ASCEND_SIM");
  if (!wanted || std::strcmp(wanted, "1") != 0) {
    return "the simulated libascendcl was loaded, but ASCEND_SIM is not 1: start the program with python -m tests.ascend_sim, or take "
           "the simulation's folder out of LD_LIBRARY_PATH";
  }
  std::string device = real_device_in("/dev");
  const char* also = std::getenv("ASCEND_SIM_ALSO_LOOK_FOR_DEVICES_IN");  // for the test of this refusal
  if (device.empty() && also) device = real_device_in(also);
  if (!device.empty()) return "a real Ascend device is visible (" + device + "): the simulation does not run beside it";
  if (!settings().error.empty()) return settings().error;
  return set_faults_from_environment();
}

void at_exit(int status, void*) {
  if (in_forked_child()) return;
  static std::atomic<bool> ran{false};
  if (ran.exchange(true)) return;
  const bool stopped = stop_workers();
  write_timeline_of_process();
  if (!stopped) {
    // Going on would take the libraries away under the task that still runs.
    std::fprintf(stderr, "[simulated Ascend] a task did not end within 5 s of the end of the process; leaving without it\n");
    std::fflush(nullptr);
    _exit(status);
  }
}

}  // namespace

void call_at_exit() {
  // Handlers run last one first: this one must run before the libraries that tasks use are taken down.
  on_exit(at_exit, nullptr);
}

int may_run(const char* entry_point) {
  static const std::string* reason = new std::string(reason_to_refuse());
  if (reason->empty()) return kSuccess;
  static const int once = std::fprintf(stderr, "[simulated Ascend] refuses to run: %s\n", reason->c_str());
  (void)once;
  return fail(kInternalError, std::string(entry_point) + ": the simulated runtime refuses to run: " + *reason);
}

}  // namespace ascend_sim

using namespace ascend_sim;

extern "C" {

aclError aclInit(const char*) {
  if (int code = may_run(__func__)) return code;
  if (initialised.exchange(true)) return fail(kRepeatInitialize, "aclInit was called twice");
  watch_for_fork();
  call_at_exit();
  return kSuccess;
}

aclError aclFinalize() {
  if (in_forked_child()) return kSuccess;
  if (!initialised.exchange(false)) return fail(kUninitialized, "aclFinalize without aclInit");
  return kSuccess;
}

}  // extern "C"
