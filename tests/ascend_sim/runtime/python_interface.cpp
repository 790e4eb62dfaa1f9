// What ledger.py and faults.py call with ctypes. Texts stay valid until the same thread calls again.
#include "errors.h"
#include "faults.h"
#include "ledger.h"
#include "settings.h"
#include "timeline.h"

namespace {

const char* keep(std::string text) {
  thread_local std::string kept;
  kept = std::move(text);
  return kept.c_str();
}

}  // namespace

extern "C" {

const char* ascend_sim_ledger() { return keep(ascend_sim::ledger_json()); }
void ascend_sim_mark() { ascend_sim::ledger_mark(); }
void ascend_sim_set_schedule(uint64_t seed, double delay_us, double hold_us) { ascend_sim::set_schedule(seed, delay_us, hold_us); }

// Each returns "" or one sentence about what is wrong.
const char* ascend_sim_check_faults(const char* specification) { return keep(ascend_sim::check_faults(specification)); }
const char* ascend_sim_set_faults(const char* specification) { return keep(ascend_sim::set_faults(specification)); }
const char* ascend_sim_write_timeline(const char* path, int since_mark) {
  return keep(ascend_sim::write_timeline(path, since_mark ? ascend_sim::ledger_marked_at_ns() : 0));
}

const char* ascend_sim_faults() { return keep(ascend_sim::faults_in_force()); }

}  // extern "C"
