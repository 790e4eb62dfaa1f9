#include "devices.h"

#include <cstring>

#include "device_memory.h"
#include "errors.h"
#include "ledger.h"
#include "lifecycle.h"
#include "settings.h"

namespace ascend_sim {
namespace {

thread_local int device_of_thread = -1;

// A context is the primary one of its device: a pointer that says which.
char context_anchor[64];

bool device_exists(int device) { return device >= 0 && device < settings().npus; }

int no_such_device(const char* entry_point, int device) {
  return fail(kInvalidDevice, std::string(entry_point) + ": there is no device " + std::to_string(device) + "; the simulation has " +
                                  std::to_string(settings().npus) + " (ASCEND_SIM_NPUS), counted from 0");
}

}  // namespace

int current_device() { return device_of_thread; }

int require_device(const char* entry_point, int* device) {
  *device = device_of_thread;
  if (device_of_thread >= 0) return kSuccess;
  return fail(kNoContext, std::string(entry_point) + ": this thread has set no device");
}

void* device_allocate(size_t bytes, const std::string& owner) {
  int device = 0;
  if (usable("device_allocate") != kSuccess || require_device("device_allocate", &device) != kSuccess) return nullptr;
  void* pointer = allocate_device_memory(device, bytes, owner);
  if (pointer) ledger_device_allocation(owner, bytes);
  return pointer;
}

void device_release(void* pointer) {
  if (in_forked_child()) return;
  if (!release_device_memory(pointer)) {
    fail(kInvalidParameter, "device_release: " + describe_device_pointer(pointer) + " is not the start of a live allocation");
  }
}

}  // namespace ascend_sim

using namespace ascend_sim;

extern "C" {

aclError aclrtGetDeviceCount(uint32_t* count) {
  if (int code = may_run(__func__)) return code;
  *count = uint32_t(settings().npus);
  return kSuccess;
}

aclError aclrtSetDevice(int32_t device) {
  ASCEND_SIM_ENTRY();
  if (!device_exists(device)) return no_such_device(__func__, device);
  device_of_thread = device;
  return kSuccess;
}

aclError aclrtGetDevice(int32_t* device) {
  ASCEND_SIM_ENTRY();
  return require_device(__func__, device);
}

aclError aclrtResetDevice(int32_t device) {
  ASCEND_SIM_ENTRY();
  if (!device_exists(device)) return no_such_device(__func__, device);
  if (device_of_thread == device) device_of_thread = -1;
  return kSuccess;
}

aclError aclrtGetCurrentContext(aclrtContext* context) {
  ASCEND_SIM_ENTRY();
  int device = 0;
  if (int code = require_device(__func__, &device)) return code;
  *context = &context_anchor[device];
  return kSuccess;
}

aclError aclrtSetCurrentContext(aclrtContext context) {
  ASCEND_SIM_ENTRY();
  const char* anchor = static_cast<const char*>(context);
  if (anchor < context_anchor || anchor >= context_anchor + settings().npus) {
    return fail(kInvalidParameter, "aclrtSetCurrentContext: the context is not one that aclrtGetCurrentContext gave");
  }
  device_of_thread = int(anchor - context_anchor);
  return kSuccess;
}

aclError aclrtGetPrimaryCtxState(int32_t device, uint32_t* flags, int32_t* active) {
  ASCEND_SIM_ENTRY();
  if (!device_exists(device)) return no_such_device(__func__, device);
  if (flags) *flags = 0;
  if (active) *active = device == device_of_thread || device_memory_used(device) > 0;
  return kSuccess;
}

aclError aclrtMalloc(void** pointer, size_t bytes, int) {
  ASCEND_SIM_ENTRY();
  int device = 0;
  if (int code = require_device(__func__, &device)) return code;
  if (!pointer || bytes == 0) return fail(kInvalidParameter, "aclrtMalloc: null pointer or zero bytes");
  *pointer = allocate_device_memory(device, bytes, "aclrtMalloc");
  if (!*pointer) return kOutOfMemory;
  ledger_device_allocation("aclrtMalloc", bytes);
  return kSuccess;
}

aclError aclrtMallocAlign32(void** pointer, size_t bytes, int policy) { return aclrtMalloc(pointer, bytes, policy); }

aclError aclrtFree(void* pointer) {
  if (in_forked_child()) return kSuccess;  // the child's copy goes with the child
  if (!release_device_memory(pointer)) {
    return fail(kInvalidParameter, "aclrtFree: " + describe_device_pointer(pointer) + " is not the start of a live allocation");
  }
  ledger_device_free();
  return kSuccess;
}

aclError aclrtGetMemInfo(int, size_t* free_bytes, size_t* total_bytes) {
  ASCEND_SIM_ENTRY();
  int device = 0;
  if (int code = require_device(__func__, &device)) return code;
  const size_t limit = device_memory_limit(), used = device_memory_used(device);
  *total_bytes = limit;
  *free_bytes = limit > used ? limit - used : 0;
  return kSuccess;
}

const char* aclrtGetSocName() { return "Ascend910B2"; }

// One machine: every device reaches every other.
aclError aclrtDeviceCanAccessPeer(int32_t* can, int32_t, int32_t) {
  *can = 1;
  return kSuccess;
}
aclError aclrtDeviceEnablePeerAccess(int32_t, uint32_t) { return kSuccess; }

}  // extern "C"
