// Faults that can be switched on: "hccl_error_at=3;device_memory=64MiB".
#pragma once
#include <string>

namespace ascend_sim {

// "" when `specification` is well formed, else one sentence that says what is wrong and what is allowed.
std::string check_faults(const std::string& specification);
// Replaces the faults that are on and sets their counters back; returns what check_faults returns and changes nothing on error.
std::string set_faults(const std::string& specification);
// Reads ASCEND_SIM_FAULT (once); "" or the error.
std::string set_faults_from_environment();
// The specification that is in force.
std::string faults_in_force();

}  // namespace ascend_sim
