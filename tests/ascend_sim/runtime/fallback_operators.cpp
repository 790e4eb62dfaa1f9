// torch_npu sends an operator without an aclnn function to be compiled: here that is an error which names it. What it builds
// on the way there (descriptions, buffers, attributes) is never looked at.
#include <cstdio>

#include "errors.h"

using namespace ascend_sim;

namespace {

char placeholder;  // what every description, buffer and attribute set points to

int missing_operator(const char* name) {
  const std::string message = std::string("operator ") + (name ? name : "(no name)") +
                              " has no simulated aclnn function: torch_npu fell back to aclopCompileAndExecute. Add it as "
                              "tests/ascend_sim/README.md says";
  std::fprintf(stderr, "[simulated Ascend] %s\n", message.c_str());
  return fail(kApiNotSupported, message);
}

}  // namespace

extern "C" {

aclError aclopCompileAndExecute(const char* name, ...) { return missing_operator(name); }
aclError aclopCompileAndExecuteV2(const char* name, ...) { return missing_operator(name); }

void* aclCreateTensorDesc(int, int, const int64_t*, int) { return &placeholder; }
void aclDestroyTensorDesc(const void*) {}
void* aclCreateDataBuffer(void*, size_t) { return &placeholder; }
aclError aclDestroyDataBuffer(const void*) { return kSuccess; }
void* aclopCreateAttr() { return &placeholder; }
void aclopDestroyAttr(const void*) {}
void aclSetTensorDescName(void*, const char*) {}
aclError aclSetTensorFormat(void*, int) { return kSuccess; }
aclError aclSetTensorPlaceMent(void*, int) { return kSuccess; }
aclError aclSetTensorShape(void*, int, const int64_t*) { return kSuccess; }
aclError aclopSetAttrBool(void*, const char*, uint8_t) { return kSuccess; }
aclError aclopSetAttrDataType(void*, const char*, int) { return kSuccess; }
aclError aclopSetAttrFloat(void*, const char*, float) { return kSuccess; }
aclError aclopSetAttrInt(void*, const char*, int64_t) { return kSuccess; }
aclError aclopSetAttrString(void*, const char*, const char*) { return kSuccess; }
aclError aclopSetAttrListBool(void*, const char*, int, const uint8_t*) { return kSuccess; }
aclError aclopSetAttrListFloat(void*, const char*, int, const float*) { return kSuccess; }
aclError aclopSetAttrListInt(void*, const char*, int, const int64_t*) { return kSuccess; }
aclError aclopSetAttrListListInt(void*, const char*, int, const int*, const int64_t* const[]) { return kSuccess; }

}  // extern "C"
