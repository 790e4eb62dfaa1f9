// What the operator library (libopapi) and the collective library (libhccl) may ask of the simulated runtime (libascendcl).
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>

typedef void* aclrtStream;

namespace ascend_sim {

enum class Kind : uint8_t { kernel, copy, memset, collective, event_record, event_wait, callback };

// One piece of device work. `run` executes on the worker thread of its stream, late; it may use kernel_view().
struct Task {
  Kind kind;
  std::string name;              // the CANN entry point, e.g. "aclnnReduceSum", "HcclAllGather"
  std::function<void()> run;
  uint64_t bytes = 0;            // bytes moved (copies, collectives); 0 for kernels
  std::string scope;             // communicator name for collectives, else empty
};

// Thrown inside Task::run: the stream goes into error, every later synchronisation on it returns `code`,
// and aclGetRecentErrMsg gives the message.
struct DeviceError : std::runtime_error {
  int code;
  DeviceError(int code_, const std::string& message) : std::runtime_error(message), code(code_) {}
};

// Puts a task on the stream's queue (nullptr: the default stream of the current device) and counts it in the ledger.
void enqueue(aclrtStream stream, Task task);

// The address at which a running task can touch the bytes behind a device pointer. A pointer that is not a device
// pointer is returned as it is.
void* kernel_view(void* pointer);
inline const void* kernel_view(const void* pointer) { return kernel_view(const_cast<void*>(pointer)); }
bool is_device_pointer(const void* pointer);

// Sets what aclGetRecentErrMsg returns on this thread, and returns `code`, for `return fail(507899, "...")`.
int fail(int code, const std::string& message);

// Device memory outside torch's allocator (communicator buffers). nullptr when the device is exhausted.
// `owner` appears in the ledger ("communicator NAME").
void* device_allocate(size_t bytes, const std::string& owner);
void device_release(void* pointer);
int current_device();              // -1 when none is set on this thread

// A free counter in the ledger's section "notes", e.g. note("communicators_created").
void note(const std::string& counter, uint64_t n = 1);

// Faults (ASCEND_SIM_FAULT or Python): the value of a fault that is switched on, e.g. fault("hccl_error_at") -> "3"; "" when it is off.
std::string fault(const std::string& name);

// How often a fault's site was reached since the faults were last set: 1 at the first call. For "the n-th collective fails":
// `fault_due("hccl_error_at")` is true exactly once, at the n-th call made while that fault is switched on.
bool fault_due(const std::string& name);

// True once the process is going away. A task that waits for another process polls this and gives up (returns or throws).
bool shutting_down();

// Pseudo-random, reproducible from ASCEND_SIM_SEED: the same (site, n) gives the same value in every run.
uint64_t draw(const std::string& site, uint64_t n);

}  // namespace ascend_sim
