// Whether the simulation may run in this process, and what happens when the process ends.
#pragma once

namespace ascend_sim {

// 0, or the error with which everything is refused: not asked for, a real device visible, settings or faults that do not parse.
int may_run(const char* entry_point);
void call_at_exit();

}  // namespace ascend_sim
