#include "settings.h"

#include <cerrno>
#include <cstdlib>

namespace ascend_sim {

bool parse_size(const std::string& text, size_t* bytes) {
  if (text.empty() || text[0] < '0' || text[0] > '9') return false;
  char* end = nullptr;
  errno = 0;
  const unsigned long long number = std::strtoull(text.c_str(), &end, 10);
  const std::string unit = end;
  int shift = 0;
  if (unit == "KiB") shift = 10;
  else if (unit == "MiB") shift = 20;
  else if (unit == "GiB") shift = 30;
  else if (!unit.empty() && unit != "B") return false;
  if (errno != 0 || number == 0 || number > (size_t(1) << (46 - shift))) return false;
  *bytes = size_t(number) << shift;
  return true;
}

namespace {

const char* text_of(const char* name) {
  const char* text = std::getenv(name);
  return text && *text ? text : nullptr;
}

void complain(Settings& s, const char* name, const char* allowed) {
  if (s.error.empty()) {
    s.error = std::string(name) + " is \"" + std::getenv(name) + "\"; allowed: " + allowed;
  }
}

template <typename Number, typename Setting>
void read_number(Settings& s, const char* name, Number low, Number high, const char* allowed, Setting* value) {
  const char* text = text_of(name);
  if (!text) return;
  char* end = nullptr;
  const double number = std::strtod(text, &end);
  // Written this way round so that "nan" is refused as well.
  if (*end == '\0' && number >= double(low) && number <= double(high) && number == double(Number(number))) {
    *value = Number(number);
  } else {
    complain(s, name, allowed);
  }
}

void read_size(Settings& s, const char* name, size_t* value) {
  if (const char* text = text_of(name); text && !parse_size(text, value)) {
    complain(s, name, "a positive whole number of bytes, or one with KiB, MiB or GiB, as in 64MiB");
  }
}

void read(Settings& s) {
  read_number<uint64_t>(s, "ASCEND_SIM_SEED", 0, uint64_t(1) << 53, "a whole number from 0", &s.seed);
  read_number<double>(s, "ASCEND_SIM_DELAY_US", 0, 1e7, "microseconds from 0 to 10000000", &s.delay_us);
  read_number<double>(s, "ASCEND_SIM_HOLD_US", 0, 1e7, "microseconds from 0 to 10000000", &s.hold_us);
  read_number<double>(s, "ASCEND_SIM_TASK_TIMEOUT_S", 0, 1e6, "seconds from 0 to 1000000", &s.task_timeout_s);
  read_number<int>(s, "ASCEND_SIM_NPUS", 1, 64, "a whole number from 1 to 64", &s.npus);
  read_size(s, "ASCEND_SIM_DEVICE_MEMORY", &s.device_memory);
  read_size(s, "ASCEND_SIM_HOST_MEMORY", &s.host_memory);
  if (const char* rank = text_of("RANK")) s.rank = std::atoi(rank);
  if (const char* trace = text_of("ASCEND_SIM_TRACE")) s.trace = trace;
}

Settings& the_settings() {
  static Settings* s = [] {
    auto* fresh = new Settings;  // never destroyed: workers may still read it while the process ends
    read(*fresh);
    return fresh;
  }();
  return *s;
}

}  // namespace

const Settings& settings() { return the_settings(); }

void set_schedule(uint64_t seed, double delay_us, double hold_us) {
  Settings& s = the_settings();
  s.seed = seed;
  if (delay_us >= 0) s.delay_us = delay_us;
  if (hold_us >= 0) s.hold_us = hold_us;
}

}  // namespace ascend_sim
