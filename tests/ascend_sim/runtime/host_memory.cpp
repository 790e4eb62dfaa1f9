#include "host_memory.h"

#include <sys/mman.h>

#include <cstring>
#include <map>
#include <mutex>
#include <string>

#include "errors.h"
#include "faults.h"
#include "ledger.h"
#include "settings.h"

namespace ascend_sim {
namespace {

struct Registry {
  std::mutex mutex;
  std::map<uintptr_t, std::shared_ptr<HostBlock>> blocks;
  size_t used = 0;
};

Registry& registry() {
  static Registry* r = new Registry;
  return *r;
}

size_t host_memory_limit() {
  size_t bytes = settings().host_memory, lowered = 0;
  if (const std::string value = fault("host_memory"); !value.empty() && parse_size(value, &lowered)) bytes = std::min(bytes, lowered);
  return bytes;
}

size_t pages(size_t bytes) { return (bytes + 4095) / 4096 * 4096; }

}  // namespace

HostBlock::~HostBlock() {
  if (!registered && address) munmap(reinterpret_cast<void*>(address), pages(bytes));
}

std::shared_ptr<HostBlock> find_pinned(const void* pointer, size_t bytes) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(pointer);
  std::lock_guard<std::mutex> lock(registry().mutex);
  auto next = registry().blocks.upper_bound(address);
  if (next == registry().blocks.begin()) return nullptr;
  const std::shared_ptr<HostBlock>& block = std::prev(next)->second;
  return address + bytes <= block->address + block->bytes ? block : nullptr;
}

}  // namespace ascend_sim

using namespace ascend_sim;

extern "C" {

aclError aclrtMallocHost(void** pointer, size_t bytes) {
  ASCEND_SIM_ENTRY();
  if (!pointer || bytes == 0) return fail(kInvalidParameter, "aclrtMallocHost: null pointer or zero bytes");
  *pointer = nullptr;
  if (fault_due("pinned_alloc_fails_at")) {
    return fail(kOutOfMemory, "aclrtMallocHost of " + std::to_string(bytes) + " bytes fails (fault pinned_alloc_fails_at=" +
                                  fault("pinned_alloc_fails_at") + ")");
  }
  std::lock_guard<std::mutex> lock(registry().mutex);
  const size_t limit = host_memory_limit();
  if (bytes > limit || registry().used > limit - bytes) {
    return fail(kOutOfMemory, "aclrtMallocHost: " + std::to_string(bytes) + " bytes asked for, " +
                                  std::to_string(registry().used) + " of " + std::to_string(limit) +
                                  " bytes of pinned memory in use (ASCEND_SIM_HOST_MEMORY or fault host_memory)");
  }
  void* memory = mmap(nullptr, pages(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return fail(kOutOfMemory, "aclrtMallocHost: the host has no memory left");
  std::memset(memory, kPoison, bytes);
  auto block = std::make_shared<HostBlock>();
  block->address = reinterpret_cast<uintptr_t>(memory);
  block->bytes = bytes;
  registry().blocks[block->address] = block;
  registry().used += bytes;
  ledger_host_allocation(bytes);
  *pointer = memory;
  return kSuccess;
}

aclError aclrtFreeHost(void* pointer) {
  if (in_forked_child()) return kSuccess;  // the child's copy goes with the child
  std::lock_guard<std::mutex> lock(registry().mutex);
  const auto found = registry().blocks.find(reinterpret_cast<uintptr_t>(pointer));
  if (found == registry().blocks.end() || found->second->registered) {
    return fail(kInvalidParameter, "aclrtFreeHost: the pointer does not come from aclrtMallocHost, or was freed before");
  }
  found->second->freed = true;
  std::memset(pointer, kPoison, found->second->bytes);
  registry().used -= found->second->bytes;
  registry().blocks.erase(found);
  ledger_host_free();
  return kSuccess;
}

aclError aclrtHostRegister(void* pointer, uint64_t bytes, int, void** device_pointer) {
  ASCEND_SIM_ENTRY();
  if (!pointer || bytes == 0) return fail(kInvalidParameter, "aclrtHostRegister: null pointer or zero bytes");
  auto block = std::make_shared<HostBlock>();
  block->address = reinterpret_cast<uintptr_t>(pointer);
  block->bytes = bytes;
  block->registered = true;
  std::lock_guard<std::mutex> lock(registry().mutex);
  registry().blocks[block->address] = block;
  if (device_pointer) *device_pointer = pointer;
  return kSuccess;
}

aclError aclrtHostUnregister(void* pointer) {
  ASCEND_SIM_ENTRY();
  std::lock_guard<std::mutex> lock(registry().mutex);
  const auto found = registry().blocks.find(reinterpret_cast<uintptr_t>(pointer));
  if (found == registry().blocks.end() || !found->second->registered) {
    return fail(kInvalidParameter, "aclrtHostUnregister: the pointer is not registered");
  }
  found->second->freed = true;
  registry().blocks.erase(found);
  return kSuccess;
}

}  // extern "C"
