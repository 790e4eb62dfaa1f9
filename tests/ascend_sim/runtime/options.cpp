// Settings of the device that torch_npu makes while it starts. They are accepted and have no effect here.
#include <cstdarg>

#include "clock.h"
#include "errors.h"

using namespace ascend_sim;

extern "C" {

aclError aclrtSetDeviceSatMode(int) { return kSuccess; }
aclError aclrtGetDeviceSatMode(int* mode) {
  *mode = 1;  // ACL_RT_OVERFLOW_MODE_INFNAN: overflow gives inf and nan, as on the host
  return kSuccess;
}
aclError aclrtSetStreamFailureMode(aclrtStream, uint64_t) { return kSuccess; }
aclError aclSetCompileopt(int, const char*) { return kSuccess; }
aclError aclrtGetSysParamOpt(int, int64_t* value) {
  *value = 0;
  return kSuccess;
}
aclError aclrtSetSysParamOpt(int, int64_t) { return kSuccess; }
aclError aclrtCtxGetSysParamOpt(int, int64_t* value) {
  *value = 0;
  return kSuccess;
}
aclError aclrtCtxSetSysParamOpt(int, int64_t) { return kSuccess; }

aclError aclGetDeviceCapability(uint32_t, int what, int64_t* value) {
  switch (what) {
    case 0: *value = 24; return kSuccess;                     // AI cores
    case 1: *value = 48; return kSuccess;                     // vector cores
    case 2: *value = int64_t(192) << 20; return kSuccess;     // bytes of L2 cache
    default: return fail(kFeatureNotSupported, "aclGetDeviceCapability: capability " + std::to_string(what) + " is not simulated");
  }
}

// The program's own log lines; the simulation keeps no log.
void aclAppLog(int, const char*, const char*, uint32_t, const char*, ...) {}

// The profiler is never on: there is nothing to report to.
int32_t MsprofRegisterCallback(uint32_t, void*) { return 0; }
int32_t MsprofReportApi(uint32_t, const void*) { return 0; }
int32_t MsprofReportCompactInfo(uint32_t, const void*, uint32_t) { return 0; }
int32_t MsprofReportAdditionalInfo(uint32_t, const void*, uint32_t) { return 0; }
uint64_t MsprofGetHashId(const char*, size_t) { return 0; }
uint64_t MsprofSysCycleTime() { return uint64_t(now_ns()); }

}  // extern "C"
