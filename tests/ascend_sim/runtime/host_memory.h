// Pinned host memory: the ranges of aclrtMallocHost and aclrtHostRegister, so that a copy can tell pinned from pageable.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

namespace ascend_sim {

struct HostBlock {
  uintptr_t address = 0;
  size_t bytes = 0;
  bool registered = false;           // by aclrtHostRegister: the memory is the caller's
  std::atomic<bool> freed{false};
  ~HostBlock();                      // unmaps once no queued copy holds it any more
};

// The pinned block that holds all of [pointer, pointer + bytes), or nullptr: then the memory is pageable.
std::shared_ptr<HostBlock> find_pinned(const void* pointer, size_t bytes);

}  // namespace ascend_sim
