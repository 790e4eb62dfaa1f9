#include "timeline.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "ledger.h"
#include "settings.h"

namespace ascend_sim {
namespace {

constexpr size_t kMostEntries = 1000000;  // about 64 MB; later ones are counted and left out

struct Entry {
  int64_t enqueued, begin, end;
  uint64_t bytes;
  uint32_t name, scope;
  int track;  // stream number, or minus the host thread's id
  Kind kind;
};

struct Timeline {
  std::mutex mutex;
  std::vector<Entry> entries;
  uint64_t left_out = 0;
  std::vector<std::string> texts;
  std::unordered_map<std::string, uint32_t> text_numbers;
  std::map<int, std::string> tracks;

  uint32_t number(const std::string& text) {
    const auto [found, added] = text_numbers.emplace(text, uint32_t(texts.size()));
    if (added) texts.push_back(text);
    return found->second;
  }
  void add(const Entry& entry) {
    if (entries.size() < kMostEntries) entries.push_back(entry);
    else ++left_out;
  }
};

Timeline& timeline() {
  static Timeline* t = new Timeline;
  return *t;
}

const char* category(Kind kind) {
  switch (kind) {
    case Kind::kernel: return "kernel";
    case Kind::copy: return "copy";
    case Kind::memset: return "memset";
    case Kind::collective: return "collective";
    case Kind::event_record: return "event record";
    case Kind::event_wait: return "event wait";
    case Kind::callback: return "callback";
  }
  return "";
}

}  // namespace

void timeline_task(int stream, int device, const Task& task, int64_t enqueued_ns, int64_t begin_ns, int64_t end_ns) {
  std::lock_guard<std::mutex> lock(timeline().mutex);
  Timeline& t = timeline();
  if (!t.tracks.count(stream)) {
    t.tracks[stream] = "simulated stream " + std::to_string(stream) + " (device " + std::to_string(device) + ")";
  }
  t.add({enqueued_ns, begin_ns, end_ns, task.bytes, t.number(task.name), t.number(task.scope), stream, task.kind});
}

void timeline_host(const char* call, int64_t begin_ns, int64_t end_ns) {
  thread_local const int thread = int(syscall(SYS_gettid));
  std::lock_guard<std::mutex> lock(timeline().mutex);
  Timeline& t = timeline();
  if (!t.tracks.count(-thread)) t.tracks[-thread] = "host thread " + std::to_string(thread);
  t.add({begin_ns, begin_ns, end_ns, 0, t.number(call), t.number(""), -thread, Kind::callback});
}

std::string write_timeline(const std::string& path, int64_t since_ns) {
  FILE* file = std::fopen(path.c_str(), "w");
  if (!file) return "cannot write the timeline to " + path + ": " + std::strerror(errno);
  std::lock_guard<std::mutex> lock(timeline().mutex);
  const Timeline& t = timeline();
  const int process = int(getpid());
  std::fprintf(file, "{\"displayTimeUnit\": \"ms\", \"otherData\": {\"simulated\": \"times are those of the simulation, not of an NPU\", "
                     "\"entries left out\": \"%llu\"}, \"traceEvents\": [\n", static_cast<unsigned long long>(t.left_out));
  std::fprintf(file, "{\"ph\": \"M\", \"name\": \"process_name\", \"pid\": %d, \"args\": {\"name\": \"simulated Ascend, rank %d\"}}",
               process, settings().rank);
  for (const auto& [track, name] : t.tracks) {
    std::fprintf(file, ",\n{\"ph\": \"M\", \"name\": \"thread_name\", \"pid\": %d, \"tid\": %d, \"args\": {\"name\": %s}}", process,
                 std::abs(track), json_text(name).c_str());
  }
  for (const Entry& e : t.entries) {
    if (e.begin < since_ns) continue;
    std::fprintf(file, ",\n{\"ph\": \"X\", \"name\": %s, \"cat\": \"%s\", \"pid\": %d, \"tid\": %d, \"ts\": %.3f, \"dur\": %.3f, "
                       "\"args\": {\"bytes\": %llu, \"scope\": %s, \"waited_us\": %.3f}}",
                 json_text(t.texts[e.name]).c_str(), e.track < 0 ? "host" : category(e.kind), process, std::abs(e.track),
                 double(e.begin) / 1e3, double(e.end - e.begin) / 1e3, static_cast<unsigned long long>(e.bytes),
                 json_text(t.texts[e.scope]).c_str(), double(e.begin - e.enqueued) / 1e3);
  }
  std::fprintf(file, "\n]}\n");
  const bool failed = std::ferror(file) != 0;
  if (std::fclose(file) != 0 || failed) return "cannot write the timeline to " + path + ": " + std::strerror(errno);
  return "";
}

void write_timeline_of_process() {
  std::string path = settings().trace;
  if (path.empty()) return;
  {
    std::lock_guard<std::mutex> lock(timeline().mutex);
    if (timeline().entries.empty()) return;  // a launcher or helper process that never used the device
  }
  if (const char* rank = std::getenv("RANK"); rank && *rank) {
    const size_t dot = path.rfind('.'), slash = path.rfind('/');
    const size_t at = dot == std::string::npos || (slash != std::string::npos && dot < slash) ? path.size() : dot;
    path.insert(at, std::string(".rank") + rank);
  }
  if (const std::string error = write_timeline(path, 0); !error.empty()) std::fprintf(stderr, "[simulated Ascend] %s\n", error.c_str());
}

}  // namespace ascend_sim
