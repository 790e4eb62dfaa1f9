// Error reporting of the entry points.
#pragma once
#include "ascend_sim/cann.h"
#include "ascend_sim/runtime.h"

namespace ascend_sim {

// 0, or the error that every call gets that device state cannot serve: made in a process forked from one that used devices.
int usable(const char* entry_point);
// True in a child forked after the runtime was used: its worker threads do not exist there.
bool in_forked_child();
void watch_for_fork();

}  // namespace ascend_sim

// First line of each entry point that needs device state.
#define ASCEND_SIM_ENTRY() \
  if (int not_usable = ::ascend_sim::usable(__func__)) return not_usable
