// The part of HCCL's binary interface that callers see: codes, enumerations and the layout of structures.
#pragma once
#include <cstddef>
#include <cstdint>

typedef void* HcclComm;
typedef void* aclrtStream;

namespace ascend_sim::hccl {

enum Result : int {
  kSuccess = 0,
  kBadParameter = 1,
  kNullPointer = 2,
  kInternal = 4,
  kNotSupported = 5,
  kSystemCall = 8,
  kTimeout = 9,
  kRemote = 21,
  kOutOfMemory = 24,
};

// What the stream reports when a collective fails while it runs (acl runtime codes).
constexpr int kStreamInternalError = 507899;
constexpr int kStreamTaskTimeout = 107020;

enum class DataType : int {
  int8 = 0, int16 = 1, int32 = 2, fp16 = 3, fp32 = 4, int64 = 5, uint64 = 6, uint8 = 7, uint16 = 8,
  uint32 = 9, fp64 = 10, bf16 = 11, int128 = 12, hif8 = 14, fp8e4m3 = 15, fp8e5m2 = 16, fp8e8m0 = 17,
};

enum class ReduceOp : int { sum = 0, prod = 1, max = 2, min = 3 };

constexpr size_t kRootInfoBytes = 4108;
constexpr size_t kCommNameBytes = 128;       // with the terminating zero

struct SendRecvItem {
  int direction;                             // 0 send, 1 receive
  void* buffer;
  uint64_t count;
  int data_type;
  uint32_t remote_rank;
};

// Byte offsets in the configuration structure. Its first 24 bytes say how large it is and which version wrote it, so
// that a shorter structure of an older caller can be told from a full one.
namespace config_layout {
constexpr size_t kSize = 0;                  // uint64
constexpr size_t kMagic = 8;                 // uint32
constexpr size_t kBufferMegabytes = 24;      // uint32
constexpr size_t kDeterministic = 28;        // uint32
constexpr size_t kName = 32;                 // char[128]
constexpr size_t kExecTimeoutSeconds = 316;  // int32
constexpr size_t kSmallest = 32;
constexpr uint32_t kMagicWord = 0xf0f0f0f0;
constexpr uint32_t kNotSet = 0xffffffff;
}  // namespace config_layout

// The number that HcclGetCommConfigCapability returns: every field up to the buffer's name is understood.
constexpr uint32_t kConfigCapability = 12;

size_t element_bytes(DataType type);         // 0 for a type that does not exist
const char* type_name(DataType type);
const char* reduce_name(ReduceOp op);
const char* result_name(int code);

}  // namespace ascend_sim::hccl
