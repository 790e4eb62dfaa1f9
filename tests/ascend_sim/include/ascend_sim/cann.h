// Constants of the CANN interface that the simulated libraries need: values are facts of the ABI, names are CANN's without the prefix.
#pragma once
#include <cstddef>
#include <cstdint>

typedef int aclError;
typedef void* aclrtStream;
typedef void* aclrtEvent;
typedef void* aclrtContext;

namespace ascend_sim {

// aclError values, as the ACL documentation lists them.
enum Code : int {
  kSuccess = 0,
  kUninitialized = 100001,         // ACL_ERROR_UNINITIALIZE
  kRepeatInitialize = 100002,      // ACL_ERROR_REPEAT_INITIALIZE
  kInvalidParameter = 107000,      // ACL_ERROR_RT_PARAM_INVALID
  kInvalidDevice = 107001,         // ACL_ERROR_RT_INVALID_DEVICEID
  kNoContext = 107002,             // ACL_ERROR_RT_CONTEXT_NULL
  kStreamNotInContext = 107003,    // ACL_ERROR_RT_STREAM_CONTEXT
  kEventTimestampInvalid = 107006, // ACL_ERROR_RT_EVENT_TIMESTAMP_INVALID
  kInvalidHandle = 107017,         // ACL_ERROR_RT_INVALID_HANDLE
  kApiNotSupported = 200001,       // ACL_ERROR_API_NOT_SUPPORT
  kFeatureNotSupported = 207000,   // ACL_ERROR_RT_FEATURE_NOT_SUPPORT
  kOutOfMemory = 207001,           // ACL_ERROR_RT_MEMORY_ALLOCATION
  kInternalError = 500000,         // ACL_ERROR_INTERNAL_ERROR
  kDmaError = 507013,              // ACL_ERROR_RT_SYS_DMA
  kKernelTimeout = 507014,         // ACL_ERROR_RT_AICORE_TIMEOUT
  kKernelException = 507015,       // ACL_ERROR_RT_AICORE_EXCEPTION
  kStreamSyncTimeout = 507046,     // ACL_ERROR_RT_STREAM_SYNC_TIMEOUT
};

// aclrtMemcpyKind
enum CopyKind : int { kHostToHost = 0, kHostToDevice = 1, kDeviceToHost = 2, kDeviceToDevice = 3, kDefaultKind = 4 };

// Event flags of aclrtCreateEventExWithFlag.
constexpr uint32_t kEventSync = 0x1;
constexpr uint32_t kEventTimeLine = 0x8;

// Byte that stands in memory whose contents nobody has written yet (or any more).
constexpr unsigned char kPoison = 0xA5;

}  // namespace ascend_sim
