#include "ledger.h"

#include <array>
#include <map>
#include <mutex>
#include <tuple>

#include "ascend_sim/cann.h"
#include "clock.h"

namespace ascend_sim {
namespace {

constexpr const char* kCounterNames[] = {
    "event_records",           "event_waits",    "event_synchronizations",  "event_queries",   "stream_synchronizations",
    "stream_queries",          "device_synchronizations", "streams_created", "events_created",  "callbacks",
};
static_assert(std::size(kCounterNames) == size_t(Counter::number_of_counters));

struct Sum {
  uint64_t count = 0, bytes = 0;
  void add(uint64_t b) { ++count, bytes += b; }
};

struct Ledger {
  std::mutex mutex;
  int64_t marked_at = now_ns();
  std::array<uint64_t, size_t(Counter::number_of_counters)> counters{};
  std::map<std::string, uint64_t> kernels, notes;
  std::map<std::tuple<std::string, bool, bool>, Sum> copies;  // direction, asynchronous call, pinned
  std::map<bool, Sum> memsets;                                // asynchronous call
  std::map<std::pair<std::string, std::string>, Sum> collectives;  // communicator, operation
  std::map<std::string, Sum> device_allocations;              // by owner
  Sum host_allocations;
  uint64_t device_frees = 0, host_frees = 0;
};

Ledger& ledger() {
  static Ledger* l = new Ledger;
  return *l;
}

const char* direction_name(int direction) {
  switch (direction) {
    case kHostToHost: return "host_to_host";
    case kHostToDevice: return "host_to_device";
    case kDeviceToHost: return "device_to_host";
    default: return "device_to_device";
  }
}

std::string sum_json(const Sum& sum) {
  return "\"count\": " + std::to_string(sum.count) + ", \"bytes\": " + std::to_string(sum.bytes);
}

std::string counts_json(const std::map<std::string, uint64_t>& counts) {
  std::string out;
  for (const auto& [name, count] : counts) out += (out.empty() ? "" : ", ") + json_text(name) + ": " + std::to_string(count);
  return "{" + out + "}";
}

const char* boolean(bool value) { return value ? "true" : "false"; }

}  // namespace

std::string json_text(const std::string& text) {
  std::string out = "\"";
  for (unsigned char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\', out += char(c);
    } else if (c < 0x20) {
      char code[8];
      snprintf(code, sizeof code, "\\u%04x", c);
      out += code;
    } else {
      out += char(c);
    }
  }
  return out + "\"";
}

void ledger_count(Counter counter) {
  std::lock_guard<std::mutex> lock(ledger().mutex);
  ++ledger().counters[size_t(counter)];
}

void ledger_task(const Task& task) {
  std::lock_guard<std::mutex> lock(ledger().mutex);
  switch (task.kind) {
    case Kind::kernel: ++ledger().kernels[task.name]; break;
    case Kind::collective: ledger().collectives[{task.scope, task.name}].add(task.bytes); break;
    case Kind::copy: ledger().copies[{"device_to_device", true, true}].add(task.bytes); break;
    case Kind::memset: ledger().memsets[true].add(task.bytes); break;
    case Kind::event_record: ++ledger().counters[size_t(Counter::event_records)]; break;
    case Kind::event_wait: ++ledger().counters[size_t(Counter::event_waits)]; break;
    case Kind::callback: ++ledger().counters[size_t(Counter::callbacks)]; break;
  }
}

void ledger_copy(int direction, bool asynchronous, bool pinned, uint64_t bytes) {
  std::lock_guard<std::mutex> lock(ledger().mutex);
  ledger().copies[{direction_name(direction), asynchronous, pinned}].add(bytes);
}

void ledger_memset(bool asynchronous, uint64_t bytes) {
  std::lock_guard<std::mutex> lock(ledger().mutex);
  ledger().memsets[asynchronous].add(bytes);
}

void ledger_device_allocation(const std::string& owner, uint64_t bytes) {
  std::lock_guard<std::mutex> lock(ledger().mutex);
  ledger().device_allocations[owner].add(bytes);
}

void ledger_device_free() {
  std::lock_guard<std::mutex> lock(ledger().mutex);
  ++ledger().device_frees;
}

void ledger_host_allocation(uint64_t bytes) {
  std::lock_guard<std::mutex> lock(ledger().mutex);
  ledger().host_allocations.add(bytes);
}

void ledger_host_free() {
  std::lock_guard<std::mutex> lock(ledger().mutex);
  ++ledger().host_frees;
}

void note(const std::string& counter, uint64_t n) {
  std::lock_guard<std::mutex> lock(ledger().mutex);
  ledger().notes[counter] += n;
}

void ledger_mark() {
  std::lock_guard<std::mutex> lock(ledger().mutex);
  Ledger& l = ledger();
  l.marked_at = now_ns();
  l.counters.fill(0);
  l.kernels.clear(), l.notes.clear(), l.copies.clear(), l.memsets.clear(), l.collectives.clear(), l.device_allocations.clear();
  l.host_allocations = Sum();
  l.device_frees = l.host_frees = 0;
}

int64_t ledger_marked_at_ns() {
  std::lock_guard<std::mutex> lock(ledger().mutex);
  return ledger().marked_at;
}

std::string ledger_json() {
  std::lock_guard<std::mutex> lock(ledger().mutex);
  const Ledger& l = ledger();
  std::string out = "{\"simulated\": true, \"kernels\": " + counts_json(l.kernels) + ", \"copies\": [";
  const char* comma = "";
  for (const auto& [key, sum] : l.copies) {
    const auto& [direction, asynchronous, pinned] = key;
    out += std::string(comma) + "{\"direction\": " + json_text(direction) + ", \"asynchronous\": " + boolean(asynchronous) +
           ", \"pinned\": " + boolean(pinned) + ", " + sum_json(sum) + "}";
    comma = ", ";
  }
  out += "], \"memsets\": [";
  comma = "";
  for (const auto& [asynchronous, sum] : l.memsets) {
    out += std::string(comma) + "{\"asynchronous\": " + boolean(asynchronous) + ", " + sum_json(sum) + "}";
    comma = ", ";
  }
  out += "], \"collectives\": [";
  comma = "";
  for (const auto& [key, sum] : l.collectives) {
    out += std::string(comma) + "{\"communicator\": " + json_text(key.first) + ", \"operation\": " + json_text(key.second) + ", " +
           sum_json(sum) + "}";
    comma = ", ";
  }
  out += "], \"device_allocations\": [";
  comma = "";
  for (const auto& [owner, sum] : l.device_allocations) {
    out += std::string(comma) + "{\"owner\": " + json_text(owner) + ", " + sum_json(sum) + "}";
    comma = ", ";
  }
  out += "], \"host_allocations\": {" + sum_json(l.host_allocations) + "}, \"device_frees\": " + std::to_string(l.device_frees) +
         ", \"host_frees\": " + std::to_string(l.host_frees);
  for (size_t i = 0; i < l.counters.size(); ++i) {
    out += ", " + json_text(kCounterNames[i]) + ": " + std::to_string(l.counters[i]);
  }
  return out + ", \"notes\": " + counts_json(l.notes) + "}";
}

}  // namespace ascend_sim
