// HCCL's entry points about communicators.
#include <cstring>
#include <string>

#include "communicator.h"
#include "environment.h"
#include "submit.h"

using namespace ascend_sim::hccl;

namespace {

int initialise(const char* call, uint32_t rank_count, const void* root_info, uint32_t rank, const void* config,
               HcclComm* made) {
  return guarded(call, [&] {
    if (root_info == nullptr || made == nullptr) throw HcclFailure(kNullPointer, "an argument is a null pointer");
    std::string segment(static_cast<const char*>(root_info), strnlen(static_cast<const char*>(root_info), 255));
    if (!is_segment_name(segment))
      throw HcclFailure(kBadParameter, "the root information was not made by the simulated HcclGetRootInfo");
    if (rank_count == 0 || rank >= rank_count || rank_count > 256)
      throw HcclFailure(kBadParameter, "rank " + std::to_string(rank) + " of " + std::to_string(rank_count) +
                                           " ranks; allowed: 1 to 256 ranks, counted from 0");
    *made = register_communicator(std::make_shared<Communicator>(segment, rank_count, rank, read_config(config)));
  });
}

int deterministic_setting = 0;

}  // namespace

extern "C" {

int HcclGetRootInfo(void* root_info) {
  return guarded("HcclGetRootInfo", [&] {
    if (root_info == nullptr) throw HcclFailure(kNullPointer, "the root information is a null pointer");
    remove_abandoned_segments();
    std::memset(root_info, 0, kRootInfoBytes);
    std::string name = new_segment_name();
    std::memcpy(root_info, name.c_str(), name.size() + 1);
  });
}

int HcclCommInitRootInfo(uint32_t rank_count, const void* root_info, uint32_t rank, HcclComm* made) {
  return initialise("HcclCommInitRootInfo", rank_count, root_info, rank, nullptr, made);
}

int HcclCommInitRootInfoConfig(uint32_t rank_count, const void* root_info, uint32_t rank, const void* config,
                               HcclComm* made) {
  return initialise("HcclCommInitRootInfoConfig", rank_count, root_info, rank, config, made);
}

int HcclCommDestroy(HcclComm handle) {
  return guarded("HcclCommDestroy", [&] {
    if (!forget_communicator(handle)) communicator_of(handle);   // says what is wrong with the handle
  });
}

int HcclGetCommAsyncError(HcclComm handle, int* error) {
  return guarded("HcclGetCommAsyncError", [&] {
    if (error == nullptr) throw HcclFailure(kNullPointer, "the place for the error is a null pointer");
    *error = communicator_of(handle)->async_error();
  });
}

int HcclGetCommName(HcclComm handle, char* name) {
  return guarded("HcclGetCommName", [&] {
    if (name == nullptr) throw HcclFailure(kNullPointer, "the place for the name is a null pointer");
    std::strncpy(name, communicator_of(handle)->name().c_str(), kCommNameBytes - 1);
    name[kCommNameBytes - 1] = 0;
  });
}

int HcclGetRankSize(HcclComm handle, uint32_t* count) {
  return guarded("HcclGetRankSize", [&] {
    if (count == nullptr) throw HcclFailure(kNullPointer, "the place for the rank count is a null pointer");
    *count = communicator_of(handle)->rank_count();
  });
}

int HcclGetRankId(HcclComm handle, uint32_t* rank) {
  return guarded("HcclGetRankId", [&] {
    if (rank == nullptr) throw HcclFailure(kNullPointer, "the place for the rank is a null pointer");
    *rank = communicator_of(handle)->rank();
  });
}

uint32_t HcclGetCommConfigCapability() { return kConfigCapability; }

const char* HcclGetErrorString(int code) { return result_name(code); }

// HCCL_DETERMINISTIC (0) is the only setting; the simulation is deterministic whatever it says.
int HcclSetConfig(int setting, int value) {
  return guarded("HcclSetConfig", [&] {
    if (setting != 0) throw HcclFailure(kNotSupported, "setting " + std::to_string(setting) + "; allowed: 0");
    deterministic_setting = value;
  });
}

int HcclGetConfig(int setting, int* value) {
  return guarded("HcclGetConfig", [&] {
    if (value == nullptr) throw HcclFailure(kNullPointer, "the place for the value is a null pointer");
    if (setting != 0) throw HcclFailure(kNotSupported, "setting " + std::to_string(setting) + "; allowed: 0");
    *value = deterministic_setting;
  });
}

}  // extern "C"
