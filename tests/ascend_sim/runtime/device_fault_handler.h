// Says what happened when host code touches device memory, then lets it die as it would have.
#pragma once
#include "device_memory.h"

namespace ascend_sim {

void install_device_fault_handler();

// Used by the handler; defined with the device memory.
bool try_find_device_block(const void* pointer, DeviceBlock* block);
bool is_device_alias(const void* pointer);
const void* device_pointer_of_alias(const void* pointer);

}  // namespace ascend_sim
