// Copies and fills, by direction. Pinned host memory: asynchronous, poisoned until the data is there. Pageable: the call waits.
#include <cstring>

#include "device_memory.h"
#include "devices.h"
#include "errors.h"
#include "host_memory.h"
#include "ledger.h"
#include "streams.h"
#include "timeline.h"

namespace ascend_sim {
namespace {

const char* kDirections[] = {"host to host", "host to device", "device to host", "device to device"};

struct Copy {
  void* to;
  const void* from;
  size_t bytes;
  int direction;
  std::shared_ptr<HostBlock> pinned;  // of the host side; null when that is pageable or there is none

  bool touches_host() const { return direction == kHostToDevice || direction == kDeviceToHost; }
};

int check_device_side(const char* entry_point, const void* pointer, size_t bytes, const char* side) {
  DeviceBlock block;
  if (find_device_block(pointer, bytes, &block) && !block.freed) return kSuccess;
  return fail(kInvalidParameter, std::string(entry_point) + ": " + std::to_string(bytes) + " bytes of the " + side + ", " +
                                     describe_device_pointer(pointer) + ", do not lie in one live allocation");
}

int check(const char* entry_point, void* to, size_t room, const void* from, size_t bytes, int kind, Copy* copy) {
  if (!to || !from) return fail(kInvalidParameter, std::string(entry_point) + ": null pointer");
  if (bytes > room) {
    return fail(kInvalidParameter, std::string(entry_point) + ": " + std::to_string(bytes) + " bytes into a destination of " +
                                       std::to_string(room));
  }
  const int direction = (is_device_pointer(from) ? 2 : 0) + (is_device_pointer(to) ? 1 : 0);
  if (kind < kHostToHost || kind > kDefaultKind) {
    return fail(kInvalidParameter, std::string(entry_point) + ": the kind is " + std::to_string(kind) + "; allowed: 0 to 4");
  }
  if (kind != kDefaultKind && kind != direction) {
    return fail(kInvalidParameter, std::string(entry_point) + ": the kind says " + kDirections[kind] + ", the addresses are " +
                                       kDirections[direction]);
  }
  if (direction & 2) {
    if (int code = check_device_side(entry_point, from, bytes, "source")) return code;
  }
  if (direction & 1) {
    if (int code = check_device_side(entry_point, to, bytes, "destination")) return code;
  }
  *copy = {to, from, bytes, direction, nullptr};
  if (copy->touches_host()) copy->pinned = find_pinned(direction == kHostToDevice ? from : to, bytes);
  return kSuccess;
}

// Runs late: what was alive when the copy was enqueued may be gone.
void carry_out(const Copy& copy) {
  DeviceBlock block;
  if ((copy.direction & 2) && (!find_device_block(copy.from, copy.bytes, &block) || block.freed)) {
    throw DeviceError(kDmaError, "the source of a copy, " + describe_device_pointer(copy.from) + ", was freed before the copy ran");
  }
  if ((copy.direction & 1) && (!find_device_block(copy.to, copy.bytes, &block) || block.freed)) {
    throw DeviceError(kDmaError, "the destination of a copy, " + describe_device_pointer(copy.to) + ", was freed before the copy ran");
  }
  if (copy.pinned && copy.pinned->freed) {
    throw DeviceError(kDmaError, std::string("the pinned host memory of a copy ") + kDirections[copy.direction] +
                                     " was freed before the copy ran");
  }
  std::memmove(kernel_view(copy.to), kernel_view(copy.from), copy.bytes);
}

}  // namespace
}  // namespace ascend_sim

using namespace ascend_sim;

extern "C" {

aclError aclrtMemcpy(void* to, size_t room, const void* from, size_t bytes, int kind) {
  ASCEND_SIM_ENTRY();
  if (bytes == 0) return kSuccess;
  Copy copy;
  if (int code = check(__func__, to, room, from, bytes, kind, &copy)) return code;
  ledger_copy(copy.direction, false, copy.pinned != nullptr, bytes);
  const int64_t begin = now_ns();
  std::memmove(kernel_view(to), kernel_view(from), bytes);
  timeline_host(__func__, begin, now_ns());
  return kSuccess;
}

aclError aclrtMemcpyAsync(void* to, size_t room, const void* from, size_t bytes, int kind, aclrtStream stream_handle) {
  ASCEND_SIM_ENTRY();
  int code = kSuccess;
  const std::shared_ptr<Stream> stream = find_stream(stream_handle, &code);
  if (!stream) return code;
  if (bytes == 0) return kSuccess;
  Copy copy;
  if ((code = check(__func__, to, room, from, bytes, kind, &copy))) return code;
  if (copy.direction == kHostToHost) {
    return fail(kFeatureNotSupported, "aclrtMemcpyAsync: not from host to host (ACL_ERROR_RT_FEATURE_NOT_SUPPORT)");
  }
  const bool waits = copy.touches_host() && !copy.pinned;
  ledger_copy(copy.direction, true, copy.pinned != nullptr, bytes);
  if (copy.direction == kDeviceToHost) std::memset(to, kPoison, bytes);
  QueuedTask task{{Kind::copy, std::string("copy ") + kDirections[copy.direction], [copy] { carry_out(copy); }, bytes}};
  const uint64_t number = stream->push(std::move(task));
  if (!waits) return kSuccess;
  const int64_t begin = now_ns();
  code = stream->wait_until_finished(number);
  timeline_host("aclrtMemcpyAsync (pageable, waits)", begin, now_ns());
  return code;
}

aclError aclrtMemset(void* pointer, size_t room, int32_t value, size_t bytes) {
  ASCEND_SIM_ENTRY();
  if (bytes > room) return fail(kInvalidParameter, "aclrtMemset: more bytes than the memory has");
  if (is_device_pointer(pointer)) {
    if (int code = check_device_side(__func__, pointer, bytes, "memory")) return code;
  }
  ledger_memset(false, bytes);
  std::memset(kernel_view(pointer), value, bytes);
  return kSuccess;
}

aclError aclrtMemsetAsync(void* pointer, size_t room, int32_t value, size_t bytes, aclrtStream stream_handle) {
  ASCEND_SIM_ENTRY();
  int code = kSuccess;
  const std::shared_ptr<Stream> stream = find_stream(stream_handle, &code);
  if (!stream) return code;
  if (bytes > room) return fail(kInvalidParameter, "aclrtMemsetAsync: more bytes than the memory has");
  if (!is_device_pointer(pointer)) return fail(kInvalidParameter, "aclrtMemsetAsync: the memory is not on a device");
  if ((code = check_device_side(__func__, pointer, bytes, "memory"))) return code;
  ledger_memset(true, bytes);
  stream->push({{Kind::memset, __func__, [=] { std::memset(kernel_view(pointer), value, bytes); }, bytes}});
  return kSuccess;
}

// aclrtPtrAttributes: location {device number, kind}, page size, four reserved words.
struct PointerAttributes {
  uint32_t device;
  int location;  // ACL_MEM_LOCATION_TYPE: 0 pinned or registered host memory, 1 device, 2 neither
  uint32_t page_bytes;
  uint32_t reserved[4];
};

aclError aclrtPointerGetAttributes(const void* pointer, PointerAttributes* attributes) {
  ASCEND_SIM_ENTRY();
  *attributes = {0, 2, 4096, {}};
  DeviceBlock block;
  if (is_device_pointer(pointer) && find_device_block(pointer, 1, &block)) {
    attributes->location = 1;
    attributes->device = uint32_t(block.device);
  } else if (find_pinned(pointer, 1)) {
    attributes->location = 0;
  }
  return kSuccess;
}

}  // extern "C"
