#include "errors.h"

#include <pthread.h>

#include <atomic>

namespace ascend_sim {
namespace {

thread_local std::string pending_message;   // newest first, cleared when read
thread_local std::string returned_message;  // what the pointer given out last points to
std::atomic<bool> forked{false};

}  // namespace

int fail(int code, const std::string& message) {
  std::string line = "[simulated Ascend] error " + std::to_string(code) + ": " + message + "\n";
  pending_message = line + pending_message;
  if (pending_message.size() > 8192) pending_message.resize(8192);
  return code;
}

bool in_forked_child() { return forked.load(std::memory_order_relaxed); }

void watch_for_fork() {
  static const bool once = [] {
    pthread_atfork(nullptr, nullptr, [] { forked = true; });
    return true;
  }();
  (void)once;
}

int usable(const char* entry_point) {
  if (!in_forked_child()) return kSuccess;
  return fail(kNoContext, std::string(entry_point) +
                              " was called in a process forked from one that had used the simulated devices; device "
                              "state does not survive fork: start such processes with spawn");
}

}  // namespace ascend_sim

extern "C" const char* aclGetRecentErrMsg() {
  using namespace ascend_sim;
  returned_message.swap(pending_message);
  pending_message.clear();
  return returned_message.c_str();
}
