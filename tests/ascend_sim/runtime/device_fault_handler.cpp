#include "device_fault_handler.h"

#include <signal.h>
#include <unistd.h>

#include <cstdio>

#include "streams.h"

namespace ascend_sim {
namespace {

struct sigaction previous_action;

void on_fault(int number, siginfo_t* info, void* context) {
  // Raised by kill() or by another handler: no address to judge; the instruction that failed comes again.
  if (info->si_code <= 0) {
    if (previous_action.sa_flags & SA_SIGINFO) previous_action.sa_sigaction(number, info, context);
    return;
  }
  const void* address = info->si_addr;
  const bool host = is_device_pointer(address), kernel = is_device_alias(address);
  if (host || kernel) {
    // The process is about to die at this instruction: formatting with snprintf is worth its small risk here.
    char text[512];
    DeviceBlock block;
    const void* pointer = host ? address : device_pointer_of_alias(address);
    const bool known = try_find_device_block(pointer, &block);
    int length = snprintf(text, sizeof text,
                          "\n[simulated Ascend] %s%s touched device memory at %p%s\n", host ? "host code" : "the task ",
                          host ? "" : running_task_name(), pointer,
                          host ? ": the host cannot read or write it, copy it first" : ", where nothing is allocated");
    write(STDERR_FILENO, text, size_t(length));
    if (known) {
      length = snprintf(text, sizeof text, "[simulated Ascend] it is byte %zu of allocation %llu (%zu bytes on device %d, for %s)%s\n",
                        size_t(reinterpret_cast<uintptr_t>(pointer) - block.address),
                        static_cast<unsigned long long>(block.number), block.bytes, block.device, block.owner.c_str(),
                        block.freed ? ", already freed" : "");
    } else {
      length = snprintf(text, sizeof text, "[simulated Ascend] no allocation is there\n");
    }
    write(STDERR_FILENO, text, size_t(length));
  }
  // The default (or whoever was there before) acts when the instruction is tried again.
  sigaction(number, &previous_action, nullptr);
}

}  // namespace

void install_device_fault_handler() {
  struct sigaction action = {};
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigemptyset(&action.sa_mask);
  sigaction(SIGSEGV, &action, &previous_action);
}

}  // namespace ascend_sim
