// The device and context of a thread.
#pragma once
#include "ascend_sim/runtime.h"

namespace ascend_sim {

// 0 and *device, or the error for a thread that has not set a device.
int require_device(const char* entry_point, int* device);

}  // namespace ascend_sim
