// Streams: a queue and a worker thread each. Order between streams is what events enforce and nothing more.
#pragma once
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "ascend_sim/cann.h"
#include "ascend_sim/runtime.h"
#include "clock.h"

namespace ascend_sim {

class Stream;

// One aclrtRecordEvent: done when its stream gets there. An event points to its latest record; whoever waits keeps the one it saw.
struct Record {
  std::shared_ptr<Stream> stream;  // until done
  uint64_t number = 0;             // of the task in that stream
  bool done = false;
  int code = kSuccess;             // error the stream had when it got there
  std::string message;
  int64_t time_ns = 0;
  std::vector<std::shared_ptr<Stream>> waiters;
};

struct QueuedTask {
  Task task;
  uint64_t number = 0;  // 1 for the first task of the stream
  int64_t enqueued_ns = 0;
  std::shared_ptr<Record> records;  // completes this record
  std::shared_ptr<Record> awaits;   // waits for this record
  bool hangs = false;               // fault event_never_completes
};

class Stream : public std::enable_shared_from_this<Stream> {
 public:
  Stream(int number_, int device_) : number(number_), device(device_) {}
  const int number;  // 1 for the first stream of the process
  const int device;

  uint64_t push(QueuedTask task);         // returns the task's number
  int synchronize(int timeout_ms);        // -1: no limit; returns the error of the stream, with its message set
  int wait_until_finished(uint64_t task); // as synchronize, for the tasks up to this one
  void wait_for_what_runs();              // after a forced end: for the task that had begun
  bool idle();
  void close(bool discard);               // afterwards nothing is accepted; the worker ends when the queue is empty

 private:
  friend int wait_for_record(const std::shared_ptr<Record>&, int);
  friend void wake_everybody();
  void work();
  bool wait_for_turn(std::unique_lock<std::mutex>& lock, const QueuedTask& task);
  void await_record(std::unique_lock<std::mutex>& lock, const QueuedTask& task);
  void hang(std::unique_lock<std::mutex>& lock, const QueuedTask& task);
  void run(std::unique_lock<std::mutex>& lock, QueuedTask& task);
  void complete(QueuedTask& task);
  void set_error(int code, const std::string& message);
  void demand(uint64_t task);             // somebody waits for this task: it is held back no longer
  int error_now();

  // Everything below is guarded by the one lock of the scheduler.
  std::condition_variable wake_;
  std::deque<QueuedTask> queue_;
  uint64_t issued_ = 0, current_ = 0, finished_ = 0, demanded_ = 0;
  std::shared_ptr<Record> waiting_on_;
  bool started_ = false, closed_ = false, discarded_ = false;
  bool in_task_ = false;  // a forced end finishes what is queued, not what runs: finished_ is ahead of it then
  int error_code_ = kSuccess;
  std::string error_message_;
};

// The stream behind a handle; nullptr stands for the default stream of the current device. On failure: null, message set, *code.
std::shared_ptr<Stream> find_stream(aclrtStream handle, int* code);
// Waits on the host until the record is done (timeout_ms -1: no limit).
int wait_for_record(const std::shared_ptr<Record>& record, int timeout_ms);
bool is_done(const std::shared_ptr<Record>& record);

// Name of the task that runs on this thread, "" when none does.
const char* running_task_name();

// Limits that torch_npu sets with aclrtSetOpExecuteTimeOut and aclrtSetOpWaitTimeout; seconds, 0 for none.
void set_task_timeout(double seconds);
void set_event_wait_timeout(double seconds);

// At the end of the process: takes no more work, waits for tasks that run. False when one does not end within 5 seconds.
bool stop_workers();

}  // namespace ascend_sim
