#include "streams.h"

#include <pthread.h>
#include <signal.h>

#include <atomic>
#include <thread>

#include "errors.h"
#include "settings.h"
#include "timeline.h"

namespace ascend_sim {
namespace {

using std::chrono::nanoseconds;

// One lock for all streams: they are few, their tasks are long against the time it is held.
struct Scheduler {
  std::mutex mutex;
  std::condition_variable progress;  // a task finished, or the process is going away
  std::vector<std::weak_ptr<Stream>> streams;
  int workers_in_tasks = 0;
  double task_timeout_s = 0, event_wait_timeout_s = 0;
};

Scheduler& scheduler() {
  static Scheduler* s = new Scheduler;
  return *s;
}

std::atomic<bool> going_away{false};
thread_local const char* task_name = "";

Clock::time_point after(double seconds) { return Clock::now() + nanoseconds(int64_t(seconds * 1e9)); }

// Spread evenly over half to one and a half of the mean: late enough to be seen, different each time.
double spread(double mean, const std::string& site, uint64_t n) {
  return mean * (0.5 + double(draw(site, n) >> 11) / double(uint64_t(1) << 53));
}

void block_signals_of_the_program() {
  sigset_t all;
  sigfillset(&all);
  for (int fatal : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP}) sigdelset(&all, fatal);
  pthread_sigmask(SIG_BLOCK, &all, nullptr);
}

}  // namespace

const char* running_task_name() { return task_name; }
bool shutting_down() { return going_away.load(std::memory_order_relaxed); }

void set_task_timeout(double seconds) {
  std::lock_guard<std::mutex> lock(scheduler().mutex);
  scheduler().task_timeout_s = seconds;
}

void set_event_wait_timeout(double seconds) {
  std::lock_guard<std::mutex> lock(scheduler().mutex);
  scheduler().event_wait_timeout_s = seconds;
}

uint64_t Stream::push(QueuedTask task) {
  std::unique_lock<std::mutex> lock(scheduler().mutex);
  task.number = ++issued_;
  task.enqueued_ns = now_ns();
  const uint64_t number = task.number;
  if (task.records) {
    task.records->stream = shared_from_this();
    task.records->number = number;
  }
  if (shutting_down() || closed_) {  // nobody will run it: whoever waits for it must not wait for ever
    set_error(kInvalidHandle, "the stream was destroyed before \"" + task.task.name + "\" was put on it");
    complete(task);
    return number;
  }
  queue_.push_back(std::move(task));
  if (!started_) {  // torch_npu creates pools of streams and uses few: threads start with the first task
    started_ = true;
    scheduler().streams.push_back(weak_from_this());
    std::thread([self = shared_from_this()] { self->work(); }).detach();
  }
  wake_.notify_one();
  return number;
}

void Stream::work() {
  block_signals_of_the_program();
  pthread_setname_np(pthread_self(), ("sim-stream-" + std::to_string(number)).substr(0, 15).c_str());
  std::unique_lock<std::mutex> lock(scheduler().mutex);
  while (true) {
    wake_.wait(lock, [&] { return shutting_down() || closed_ || !queue_.empty(); });
    if (shutting_down() || queue_.empty()) return;
    QueuedTask task = std::move(queue_.front());
    queue_.pop_front();
    current_ = task.number;
    if (!wait_for_turn(lock, task)) return;
    const int64_t begin = now_ns();
    if (task.awaits) await_record(lock, task);
    else if (task.hangs) hang(lock, task);
    else if (task.task.run && error_code_ == kSuccess && !discarded_) run(lock, task);
    if (shutting_down()) return;
    timeline_task(number, device, task.task, task.enqueued_ns, begin, now_ns());
    complete(task);
  }
}

// The delay always passes; a task that nobody waits for is held back beyond it.
bool Stream::wait_for_turn(std::unique_lock<std::mutex>& lock, const QueuedTask& task) {
  const Settings& s = settings();
  const std::string site = "rank " + std::to_string(s.rank) + " stream " + std::to_string(number);
  const Clock::time_point turn = after(spread(s.delay_us, site, task.number) / 1e6);
  const Clock::time_point held_until =
      Clock::time_point(nanoseconds(task.enqueued_ns + int64_t(spread(s.hold_us, site + " hold", task.number) * 1e3)));
  while (!shutting_down() && !discarded_) {
    const Clock::time_point target = demanded_ >= task.number ? turn : std::max(turn, held_until);
    if (Clock::now() >= target) return true;
    wake_.wait_until(lock, target);
  }
  return !shutting_down();
}

void Stream::await_record(std::unique_lock<std::mutex>& lock, const QueuedTask& task) {
  const std::shared_ptr<Record>& record = task.awaits;
  if (!record->done) {
    record->waiters.push_back(shared_from_this());
    waiting_on_ = record;
    if (demanded_ >= task.number) record->stream->demand(record->number);
    const double limit = scheduler().event_wait_timeout_s;
    const auto ended = [&] { return record->done || shutting_down() || discarded_; };
    if (limit <= 0) {
      wake_.wait(lock, ended);
    } else if (!wake_.wait_until(lock, after(limit), ended)) {
      set_error(kKernelTimeout, "simulated stream " + std::to_string(number) + " waited " + std::to_string(limit) +
                                    " s for an event that did not complete (the limit of aclrtSetOpWaitTimeout)");
    }
    waiting_on_ = nullptr;
  }
  if (record->code != kSuccess) set_error(record->code, record->message);
}

void Stream::hang(std::unique_lock<std::mutex>& lock, const QueuedTask& task) {
  const double limit = settings().task_timeout_s > 0 ? settings().task_timeout_s : scheduler().task_timeout_s;
  const auto ended = [&] { return shutting_down() || discarded_; };
  if (limit <= 0) wake_.wait(lock, ended);
  else if (!wake_.wait_until(lock, after(limit), ended)) {
    set_error(kKernelTimeout, "\"" + task.task.name + "\" on simulated stream " + std::to_string(number) + " did not end within " +
                                  std::to_string(limit) + " s (fault event_never_completes)");
  }
}

void Stream::run(std::unique_lock<std::mutex>& lock, QueuedTask& task) {
  ++scheduler().workers_in_tasks;
  in_task_ = true;
  lock.unlock();
  task_name = task.task.name.c_str();
  int code = kSuccess;
  std::string message;
  try {
    task.task.run();
  } catch (const DeviceError& error) {
    code = error.code;
    message = error.what();
  } catch (const std::exception& error) {
    code = kKernelException;
    message = "\"" + task.task.name + "\" failed: " + error.what();
  }
  task.task.run = nullptr;  // what it holds goes away without the lock
  task_name = "";
  lock.lock();
  if (code != kSuccess) set_error(code, message + " (simulated stream " + std::to_string(number) + ")");
  --scheduler().workers_in_tasks;
  in_task_ = false;
  if (shutting_down()) scheduler().progress.notify_all();
}

void Stream::complete(QueuedTask& task) {
  finished_ = std::max(finished_, task.number);
  if (task.records) {
    Record& record = *task.records;
    record.done = true;
    record.time_ns = now_ns();
    record.code = error_code_;
    record.message = error_message_;
    record.stream = nullptr;
    for (const std::shared_ptr<Stream>& waiter : record.waiters) waiter->wake_.notify_all();
    record.waiters.clear();
  }
  scheduler().progress.notify_all();
}

void Stream::set_error(int code, const std::string& message) {
  if (error_code_ != kSuccess) return;  // the first one is the cause of the others
  error_code_ = code;
  error_message_ = message;
}

void Stream::demand(uint64_t task) {
  if (demanded_ >= task) return;
  demanded_ = task;
  wake_.notify_all();
  if (waiting_on_ && current_ <= task && !waiting_on_->done) waiting_on_->stream->demand(waiting_on_->number);
}

int Stream::error_now() { return error_code_ == kSuccess ? kSuccess : fail(error_code_, error_message_); }

int Stream::synchronize(int timeout_ms) {
  std::unique_lock<std::mutex> lock(scheduler().mutex);
  const uint64_t target = issued_;
  demand(target);
  const auto ended = [&] { return finished_ >= target || shutting_down(); };
  if (timeout_ms < 0) {
    scheduler().progress.wait(lock, ended);
  } else if (!scheduler().progress.wait_until(lock, after(timeout_ms / 1e3), ended)) {
    return fail(kStreamSyncTimeout, "simulated stream " + std::to_string(number) + " did not finish within " +
                                        std::to_string(timeout_ms) + " ms: " + std::to_string(target - finished_) + " tasks are left");
  }
  return error_now();
}

void Stream::wait_for_what_runs() {
  std::unique_lock<std::mutex> lock(scheduler().mutex);
  scheduler().progress.wait(lock, [&] { return !in_task_ || shutting_down(); });
}

int Stream::wait_until_finished(uint64_t task) {
  std::unique_lock<std::mutex> lock(scheduler().mutex);
  demand(task);
  scheduler().progress.wait(lock, [&] { return finished_ >= task || shutting_down(); });
  return error_now();
}

bool Stream::idle() {
  std::lock_guard<std::mutex> lock(scheduler().mutex);
  return finished_ >= issued_;
}

void Stream::close(bool discard) {
  std::unique_lock<std::mutex> lock(scheduler().mutex);
  if (discard) {
    // What is queued never runs. Its records are done with an error, so that nobody waits for them for ever.
    discarded_ = true;
    if (finished_ < issued_) set_error(kInvalidHandle, "the stream was destroyed by force with tasks in its queue");
    for (QueuedTask& task : queue_) complete(task);
    queue_.clear();
  }
  closed_ = true;
  wake_.notify_all();
}

int wait_for_record(const std::shared_ptr<Record>& record, int timeout_ms) {
  std::unique_lock<std::mutex> lock(scheduler().mutex);
  if (!record->done) record->stream->demand(record->number);
  const auto ended = [&] { return record->done || shutting_down(); };
  if (timeout_ms < 0) {
    scheduler().progress.wait(lock, ended);
  } else if (!scheduler().progress.wait_until(lock, after(timeout_ms / 1e3), ended)) {
    return fail(kStreamSyncTimeout, "the event did not complete within " + std::to_string(timeout_ms) + " ms");
  }
  return record->code == kSuccess ? kSuccess : fail(record->code, record->message);
}

bool is_done(const std::shared_ptr<Record>& record) {
  std::lock_guard<std::mutex> lock(scheduler().mutex);
  return record->done;
}

void wake_everybody() {
  for (const std::weak_ptr<Stream>& weak : scheduler().streams) {
    if (const std::shared_ptr<Stream> stream = weak.lock()) stream->wake_.notify_all();
  }
  scheduler().progress.notify_all();
}

bool stop_workers() {
  std::unique_lock<std::mutex> lock(scheduler().mutex);
  going_away = true;
  wake_everybody();
  return scheduler().progress.wait_for(lock, std::chrono::seconds(5), [] { return scheduler().workers_in_tasks == 0; });
}

}  // namespace ascend_sim
