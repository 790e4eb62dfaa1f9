#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "devices.h"
#include "errors.h"
#include "handles.h"
#include "ledger.h"
#include "lifecycle.h"
#include "settings.h"
#include "streams.h"
#include "timeline.h"

namespace ascend_sim {
namespace {

struct Registry {
  Handles<Stream> handles{0x500000000000};
  std::mutex mutex;
  std::map<int, std::shared_ptr<Stream>> default_streams;  // by device
  std::vector<std::weak_ptr<Stream>> forced;               // destroyed by force; their workers may still be in a task
  int streams = 0;
};

Registry& registry() {
  static Registry* r = new Registry;
  return *r;
}

std::shared_ptr<Stream> new_stream_locked(int device) { return std::make_shared<Stream>(++registry().streams, device); }

std::shared_ptr<Stream> default_stream(int device) {
  std::lock_guard<std::mutex> lock(registry().mutex);
  std::shared_ptr<Stream>& stream = registry().default_streams[device];
  if (!stream) stream = new_stream_locked(device);
  return stream;
}

std::vector<std::shared_ptr<Stream>> streams_of_device(int device) {
  std::vector<std::shared_ptr<Stream>> streams{default_stream(device)};
  for (const std::shared_ptr<Stream>& stream : registry().handles.all()) {
    if (stream->device == device) streams.push_back(stream);
  }
  return streams;
}

void remember_forced(const std::shared_ptr<Stream>& stream) {
  std::lock_guard<std::mutex> lock(registry().mutex);
  auto& forced = registry().forced;
  forced.erase(std::remove_if(forced.begin(), forced.end(), [](const auto& one) { return one.expired(); }), forced.end());
  forced.push_back(stream);
}

// The device has work until that is done, though no handle leads to it any more.
void wait_for_forced(int device) {
  std::vector<std::weak_ptr<Stream>> forced;
  {
    std::lock_guard<std::mutex> lock(registry().mutex);
    forced = registry().forced;
  }
  for (const std::weak_ptr<Stream>& one : forced) {
    if (const std::shared_ptr<Stream> stream = one.lock(); stream && stream->device == device) stream->wait_for_what_runs();
  }
}

int create(const char* entry_point, aclrtStream* handle) {
  int device = 0;
  if (int code = require_device(entry_point, &device)) return code;
  std::shared_ptr<Stream> stream;
  {
    std::lock_guard<std::mutex> lock(registry().mutex);
    stream = new_stream_locked(device);
  }
  *handle = registry().handles.add(std::move(stream));
  ledger_count(Counter::streams_created);
  return kSuccess;
}

int no_such_stream(const char* entry_point, aclrtStream handle) {
  char text[32];
  snprintf(text, sizeof text, "%p", handle);
  return fail(kInvalidHandle, std::string(entry_point) + ": there is no stream " + text + "; it was destroyed or never created");
}

int synchronize(const char* entry_point, aclrtStream handle, int timeout_ms) {
  int code = kSuccess;
  const std::shared_ptr<Stream> stream = find_stream(handle, &code);
  if (!stream) return code;
  ledger_count(Counter::stream_synchronizations);
  const int64_t begin = now_ns();
  code = stream->synchronize(timeout_ms);
  timeline_host(entry_point, begin, now_ns());
  return code;
}

int synchronize_device(const char* entry_point, int timeout_ms) {
  int device = 0;
  if (int code = require_device(entry_point, &device)) return code;
  ledger_count(Counter::device_synchronizations);
  const int64_t begin = now_ns();
  const Clock::time_point deadline = Clock::now() + std::chrono::milliseconds(timeout_ms);
  int first_error = kSuccess;
  for (const std::shared_ptr<Stream>& stream : streams_of_device(device)) {
    int left = -1;
    if (timeout_ms >= 0) {
      left = int(std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now()).count());
      if (left < 0) left = 0;
    }
    const int code = stream->synchronize(left);
    if (first_error == kSuccess) first_error = code;
  }
  wait_for_forced(device);
  timeline_host(entry_point, begin, now_ns());
  return first_error;
}

}  // namespace

std::shared_ptr<Stream> find_stream(aclrtStream handle, int* code) {
  if (handle) {
    std::shared_ptr<Stream> stream = registry().handles.find(handle);
    *code = stream ? int(kSuccess) : no_such_stream("stream", handle);
    return stream;
  }
  int device = 0;
  *code = require_device("default stream", &device);
  return *code == kSuccess ? default_stream(device) : nullptr;
}

void enqueue(aclrtStream handle, Task task) {
  const char* reason = nullptr;
  std::shared_ptr<Stream> stream;
  int code = usable("enqueue");
  if (code != kSuccess) reason = "in a forked process";
  else if (!(stream = find_stream(handle, &code))) reason = handle ? "on a stream that does not exist" : "with no device set";
  if (reason) throw DeviceError(code, "\"" + task.name + "\" was launched " + reason);
  static const bool once = [] {
    call_at_exit();  // again: by now the libraries that launch are loaded
    return true;
  }();
  (void)once;
  ledger_task(task);
  stream->push({std::move(task)});
}

}  // namespace ascend_sim

using namespace ascend_sim;

extern "C" {

aclError aclrtCreateStream(aclrtStream* stream) {
  ASCEND_SIM_ENTRY();
  return create(__func__, stream);
}

aclError aclrtCreateStreamWithConfig(aclrtStream* stream, uint32_t, uint32_t) {
  ASCEND_SIM_ENTRY();
  return create(__func__, stream);
}

// As documented: destroyed once its tasks are done.
aclError aclrtDestroyStream(aclrtStream handle) {
  if (in_forked_child()) return kSuccess;
  const std::shared_ptr<Stream> stream = registry().handles.remove(handle);
  if (!stream) return no_such_stream(__func__, handle);
  stream->close(false);
  return stream->synchronize(-1);
}

// As documented: what is queued is dropped.
aclError aclrtDestroyStreamForce(aclrtStream handle) {
  if (in_forked_child()) return kSuccess;
  const std::shared_ptr<Stream> stream = registry().handles.remove(handle);
  if (!stream) return no_such_stream(__func__, handle);
  stream->close(true);
  remember_forced(stream);
  return kSuccess;
}

aclError aclrtSynchronizeStream(aclrtStream stream) {
  ASCEND_SIM_ENTRY();
  return synchronize(__func__, stream, -1);
}

aclError aclrtSynchronizeStreamWithTimeout(aclrtStream stream, int32_t timeout_ms) {
  ASCEND_SIM_ENTRY();
  return synchronize(__func__, stream, timeout_ms);
}

aclError aclrtSynchronizeDevice() {
  ASCEND_SIM_ENTRY();
  return synchronize_device(__func__, -1);
}

aclError aclrtSynchronizeDeviceWithTimeout(int32_t timeout_ms) {
  ASCEND_SIM_ENTRY();
  return synchronize_device(__func__, timeout_ms);
}

aclError aclrtStreamQuery(aclrtStream handle, int* status) {
  ASCEND_SIM_ENTRY();
  int code = kSuccess;
  const std::shared_ptr<Stream> stream = find_stream(handle, &code);
  if (!stream) return code;
  ledger_count(Counter::stream_queries);
  *status = stream->idle() ? 0 : 1;  // ACL_STREAM_STATUS_COMPLETE, ACL_STREAM_STATUS_NOT_READY
  return kSuccess;
}

aclError aclrtStreamGetId(aclrtStream handle, int32_t* id) {
  ASCEND_SIM_ENTRY();
  int code = kSuccess;
  const std::shared_ptr<Stream> stream = find_stream(handle, &code);
  if (stream) *id = stream->number;
  return code;
}

aclError aclrtLaunchHostFunc(aclrtStream stream, void (*function)(void*), void* arguments) {
  ASCEND_SIM_ENTRY();
  int code = kSuccess;
  if (!find_stream(stream, &code)) return code;
  enqueue(stream, {Kind::callback, "host function", [=] { function(arguments); }});
  return kSuccess;
}

aclError aclrtSetOpExecuteTimeOut(uint32_t seconds) {
  set_task_timeout(seconds);
  return kSuccess;
}

aclError aclrtSetOpWaitTimeout(uint32_t seconds) {
  set_event_wait_timeout(seconds);
  return kSuccess;
}

}  // extern "C"
