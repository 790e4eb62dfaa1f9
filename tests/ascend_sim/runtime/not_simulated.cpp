// Symbols that torch_npu links and that nothing here should ever reach: each reports an error that names it.
// The code is ACL_ERROR_API_NOT_SUPPORT, because torch_npu only warns about ACL_ERROR_RT_FEATURE_NOT_SUPPORT.
#include <cstdio>

#include "errors.h"

namespace {

long not_simulated(const char* name, const char* hint) {
  const std::string message = std::string(name) + " is not simulated" + hint;
  std::fprintf(stderr, "[simulated Ascend] %s\n", message.c_str());
  return ascend_sim::fail(ascend_sim::kApiNotSupported, message);
}

}  // namespace

#define NOT_SIMULATED(name, hint) \
  extern "C" long name() { return not_simulated(#name, hint); }

// Virtual memory management.
#define EXPANDABLE " (expandable_segments in PYTORCH_NPU_ALLOC_CONF needs it: leave that out)"
NOT_SIMULATED(aclrtReserveMemAddress, EXPANDABLE)
NOT_SIMULATED(aclrtReleaseMemAddress, EXPANDABLE)
NOT_SIMULATED(aclrtMallocPhysical, EXPANDABLE)
NOT_SIMULATED(aclrtFreePhysical, EXPANDABLE)
NOT_SIMULATED(aclrtMapMem, EXPANDABLE)
NOT_SIMULATED(aclrtUnmapMem, EXPANDABLE)

// Memory shared between processes.
NOT_SIMULATED(aclrtDeviceGetBareTgid, "")
NOT_SIMULATED(aclrtMemExportToShareableHandle, "")
NOT_SIMULATED(aclrtMemImportFromShareableHandle, "")
NOT_SIMULATED(aclrtMemSetPidToShareableHandle, "")

// Kernels in the device's machine code.
NOT_SIMULATED(aclrtBinaryGetFunction, "")
NOT_SIMULATED(aclrtBinaryLoadFromData, "")
NOT_SIMULATED(aclrtGetFunctionAddr, "")
NOT_SIMULATED(rtDevBinaryRegister, "")
NOT_SIMULATED(rtFunctionRegister, "")
NOT_SIMULATED(rtKernelLaunch, "")
NOT_SIMULATED(rtGetC2cCtrlAddr, "")

// Descriptions of compiled operators, dumps, and callbacks that the program's own thread runs.
NOT_SIMULATED(aclGetTensorDescDimV2, "")
NOT_SIMULATED(aclGetTensorDescFormat, "")
NOT_SIMULATED(aclGetTensorDescNumDims, "")
NOT_SIMULATED(aclGetTensorDescType, "")
NOT_SIMULATED(aclmdlInitDump, "")
NOT_SIMULATED(aclmdlSetDump, "")
NOT_SIMULATED(aclmdlFinalizeDump, "")
NOT_SIMULATED(aclrtProcessReport, "")
