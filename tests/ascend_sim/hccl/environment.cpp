// Settings of the collectives that come from the environment.
#include "environment.h"

#include <cstdio>
#include <cstdlib>

#include "segment.h"

namespace ascend_sim::hccl {
namespace {

constexpr double kExecTimeout = 300;           // the real one waits 1836 s; a test run should end earlier
constexpr double kConnectTimeout = 120;        // as CANN documents it
constexpr uint32_t kBufferMegabytes = 200;
constexpr uint64_t kSlotKilobytes = 256;

std::optional<double> number(const char* variable, double smallest, double largest) {
  const char* text = std::getenv(variable);
  if (text == nullptr || *text == 0) return std::nullopt;
  char* end = nullptr;
  double value = std::strtod(text, &end);
  if (end == text || *end != 0 || !(value >= smallest && value <= largest)) {
    char allowed[64];
    std::snprintf(allowed, sizeof(allowed), "a number from %g to %g", smallest, largest);
    throw HcclFailure(kBadParameter, std::string(variable) + " is \"" + text + "\", but must be " + allowed);
  }
  return value;
}

}  // namespace

std::optional<double> timeout_override() { return number("ASCEND_SIM_HCCL_TIMEOUT", 0.01, 1e6); }

double exec_timeout_seconds() { return number("HCCL_EXEC_TIMEOUT", 0, 1e9).value_or(kExecTimeout); }

double connect_timeout_seconds() {
  if (auto seconds = timeout_override()) return *seconds;
  return number("HCCL_CONNECT_TIMEOUT", 1, 1e6).value_or(kConnectTimeout);
}

uint32_t buffer_megabytes() {
  return static_cast<uint32_t>(number("HCCL_BUFFSIZE", 1, 1e6).value_or(kBufferMegabytes));
}

uint64_t slot_kilobytes() {
  return static_cast<uint64_t>(number("ASCEND_SIM_HCCL_SLOT_KB", 4, 1 << 20).value_or(kSlotKilobytes));
}

int64_t process_rank(uint32_t rank_in_communicator) {
  return static_cast<int64_t>(number("RANK", 0, 1e9).value_or(rank_in_communicator));
}

std::string short_seconds(double seconds) {
  char text[32];
  std::snprintf(text, sizeof(text), "%g", seconds);
  return text;
}

}  // namespace ascend_sim::hccl
