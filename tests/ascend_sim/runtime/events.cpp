// Events: a wait waits for the record that was the latest when the wait was called; an event never recorded is complete.
#include <atomic>

#include "devices.h"
#include "errors.h"
#include "faults.h"
#include "handles.h"
#include "ledger.h"
#include "streams.h"
#include "timeline.h"

namespace ascend_sim {
namespace {

struct Event {
  explicit Event(uint32_t flags_, bool resettable_) : flags(flags_), resettable(resettable_) {}
  const uint32_t flags;
  const bool resettable;  // made by aclrtCreateEventWithFlag
  std::mutex mutex;
  std::shared_ptr<Record> latest;

  std::shared_ptr<Record> get() {
    std::lock_guard<std::mutex> lock(mutex);
    return latest;
  }
};

Handles<Event>& events() {
  static Handles<Event>* handles = new Handles<Event>(0x600000000000);
  return *handles;
}

int no_such_event(const char* entry_point, aclrtEvent handle) {
  char text[32];
  snprintf(text, sizeof text, "%p", handle);
  return fail(kInvalidHandle, std::string(entry_point) + ": there is no event " + text + "; it was destroyed or never created");
}

int create(aclrtEvent* handle, uint32_t flags, bool resettable) {
  *handle = events().add(std::make_shared<Event>(flags, resettable));
  ledger_count(Counter::events_created);
  return kSuccess;
}

int time_of(const char* entry_point, aclrtEvent handle, int64_t* time_ns) {
  const std::shared_ptr<Event> event = events().find(handle);
  if (!event) return no_such_event(entry_point, handle);
  const std::shared_ptr<Record> record = event->get();
  const char* reason = nullptr;
  if (!(event->flags & kEventTimeLine)) reason = "was created without ACL_EVENT_TIME_LINE (torch: enable_timing=True)";
  else if (!record) reason = "was never recorded";
  else if (!is_done(record)) reason = "is not complete";
  if (reason) return fail(kEventTimestampInvalid, std::string(entry_point) + ": the event " + reason);
  *time_ns = record->time_ns;
  return kSuccess;
}

}  // namespace
}  // namespace ascend_sim

using namespace ascend_sim;

extern "C" {

aclError aclrtCreateEventExWithFlag(aclrtEvent* event, uint32_t flags) {
  ASCEND_SIM_ENTRY();
  return create(event, flags, false);
}

aclError aclrtCreateEventWithFlag(aclrtEvent* event, uint32_t flags) {
  ASCEND_SIM_ENTRY();
  return create(event, flags | kEventSync, true);
}

// Work that refers to one of its records goes on.
aclError aclrtDestroyEvent(aclrtEvent handle) {
  if (in_forked_child()) return kSuccess;
  return events().remove(handle) ? int(kSuccess) : no_such_event(__func__, handle);
}

aclError aclrtRecordEvent(aclrtEvent handle, aclrtStream stream_handle) {
  ASCEND_SIM_ENTRY();
  const std::shared_ptr<Event> event = events().find(handle);
  if (!event) return no_such_event(__func__, handle);
  int code = kSuccess;
  const std::shared_ptr<Stream> stream = find_stream(stream_handle, &code);
  if (!stream) return code;
  QueuedTask task{{Kind::event_record, __func__, nullptr}};
  task.records = std::make_shared<Record>();
  task.hangs = fault_due("event_never_completes");
  ledger_task(task.task);
  // Held while the task is pushed: of two records at once, the one that is latest is also the later one in the queue.
  std::lock_guard<std::mutex> lock(event->mutex);
  event->latest = task.records;
  stream->push(std::move(task));
  return kSuccess;
}

aclError aclrtResetEvent(aclrtEvent handle, aclrtStream) {
  ASCEND_SIM_ENTRY();
  const std::shared_ptr<Event> event = events().find(handle);
  if (!event) return no_such_event(__func__, handle);
  if (!event->resettable) {
    return fail(kInvalidParameter, "aclrtResetEvent: not for an event of aclrtCreateEventExWithFlag, which is recorded anew instead");
  }
  std::lock_guard<std::mutex> lock(event->mutex);
  event->latest = nullptr;
  return kSuccess;
}

aclError aclrtStreamWaitEvent(aclrtStream stream_handle, aclrtEvent handle) {
  ASCEND_SIM_ENTRY();
  const std::shared_ptr<Event> event = events().find(handle);
  if (!event) return no_such_event(__func__, handle);
  if (!(event->flags & kEventSync)) {
    return fail(kInvalidParameter, "aclrtStreamWaitEvent: the event was created without ACL_EVENT_SYNC");
  }
  int code = kSuccess;
  const std::shared_ptr<Stream> stream = find_stream(stream_handle, &code);
  if (!stream) return code;
  QueuedTask task{{Kind::event_wait, __func__, nullptr}};
  task.awaits = event->get();
  ledger_task(task.task);
  stream->push(std::move(task));
  return kSuccess;
}

aclError aclrtSynchronizeEvent(aclrtEvent handle) {
  ASCEND_SIM_ENTRY();
  const std::shared_ptr<Event> event = events().find(handle);
  if (!event) return no_such_event(__func__, handle);
  ledger_count(Counter::event_synchronizations);
  const std::shared_ptr<Record> record = event->get();
  if (!record) return kSuccess;
  const int64_t begin = now_ns();
  const int code = wait_for_record(record, -1);
  timeline_host(__func__, begin, now_ns());
  return code;
}

aclError aclrtQueryEventStatus(aclrtEvent handle, int* status) {
  ASCEND_SIM_ENTRY();
  const std::shared_ptr<Event> event = events().find(handle);
  if (!event) return no_such_event(__func__, handle);
  ledger_count(Counter::event_queries);
  const std::shared_ptr<Record> record = event->get();
  *status = !record || is_done(record);  // ACL_EVENT_RECORDED_STATUS_COMPLETE is 1
  return kSuccess;
}

aclError aclrtQueryEventWaitStatus(aclrtEvent handle, int* status) {
  ASCEND_SIM_ENTRY();
  const std::shared_ptr<Event> event = events().find(handle);
  if (!event) return no_such_event(__func__, handle);
  if (!event->resettable) return fail(kInvalidParameter, "aclrtQueryEventWaitStatus: not for an event of aclrtCreateEventExWithFlag");
  *status = 0;  // nobody holds the event itself, so it may always be destroyed
  return kSuccess;
}

aclError aclrtEventElapsedTime(float* milliseconds, aclrtEvent start, aclrtEvent end) {
  ASCEND_SIM_ENTRY();
  int64_t from = 0, to = 0;
  if (int code = time_of(__func__, start, &from)) return code;
  if (int code = time_of(__func__, end, &to)) return code;
  *milliseconds = float(double(to - from) / 1e6);
  return kSuccess;
}

aclError aclrtEventGetTimestamp(aclrtEvent event, uint64_t* microseconds) {
  ASCEND_SIM_ENTRY();
  int64_t time_ns = 0;
  if (int code = time_of(__func__, event, &time_ns)) return code;
  *microseconds = uint64_t(time_ns / 1000);
  return kSuccess;
}

}  // extern "C"
