#include "faults.h"

#include <cstdlib>
#include <map>
#include <mutex>
#include <vector>

#include "ascend_sim/runtime.h"
#include "settings.h"

namespace ascend_sim {
namespace {

enum class Form { count, size, rank_and_seconds, rank_and_count };

struct Known {
  const char* name;
  Form form;
};

constexpr Known kKnown[] = {
    {"hccl_error_at", Form::count},          {"pinned_alloc_fails_at", Form::count}, {"event_never_completes", Form::count},
    {"device_memory", Form::size},           {"host_memory", Form::size},            {"rank_late", Form::rank_and_seconds},
    {"rank_dies", Form::rank_and_count},
};

const char* description(Form form) {
  switch (form) {
    case Form::count: return "a whole number from 1";
    case Form::size: return "a size such as 64MiB";
    case Form::rank_and_seconds: return "RANK:SECONDS such as 1:2.5";
    case Form::rank_and_count: return "RANK:N such as 1:10";
  }
  return "";
}

bool whole_number(const std::string& text, unsigned long low) {
  if (text.empty() || text.size() > 9 || text.find_first_not_of("0123456789") != std::string::npos) return false;
  return std::strtoul(text.c_str(), nullptr, 10) >= low;
}

bool well_formed(Form form, const std::string& value) {
  size_t bytes = 0;
  const size_t colon = value.find(':');
  const std::string rank = value.substr(0, colon), rest = colon == std::string::npos ? "" : value.substr(colon + 1);
  switch (form) {
    case Form::count: return whole_number(value, 1);
    case Form::size: return parse_size(value, &bytes);
    case Form::rank_and_count: return whole_number(rank, 0) && whole_number(rest, 1);
    case Form::rank_and_seconds: {
      if (!whole_number(rank, 0) || rest.empty() || rest.find_first_not_of("0123456789.") != std::string::npos) return false;
      char* end = nullptr;
      const double seconds = std::strtod(rest.c_str(), &end);
      return *end == '\0' && seconds >= 0 && seconds <= 1e6;
    }
  }
  return false;
}

std::string allowed_names() {
  std::string names;
  for (const Known& known : kKnown) names += std::string(names.empty() ? "" : ", ") + known.name;
  return names;
}

std::string parse(const std::string& specification, std::map<std::string, std::string>* faults) {
  size_t begin = 0;
  while (begin <= specification.size()) {
    size_t end = specification.find(';', begin);
    if (end == std::string::npos) end = specification.size();
    const std::string part = specification.substr(begin, end - begin);
    begin = end + 1;
    if (part.empty()) continue;
    const size_t equals = part.find('=');
    const std::string name = part.substr(0, equals), value = equals == std::string::npos ? "" : part.substr(equals + 1);
    const Known* found = nullptr;
    for (const Known& known : kKnown) {
      if (name == known.name) found = &known;
    }
    const std::string where = "fault specification \"" + specification + "\": ";
    if (!found) return where + "there is no fault \"" + name + "\"; allowed: " + allowed_names();
    if (!well_formed(found->form, value)) {
      return where + name + " is \"" + value + "\"; allowed: " + description(found->form);
    }
    if (!faults->emplace(name, value).second) return where + name + " stands there twice; allowed: once";
  }
  return "";
}

struct State {
  std::mutex mutex;
  std::string specification;
  std::map<std::string, std::string> faults;
  std::map<std::string, unsigned long> reached;
};

State& state() {
  static State* s = new State;
  return *s;
}

}  // namespace

std::string check_faults(const std::string& specification) {
  std::map<std::string, std::string> faults;
  return parse(specification, &faults);
}

std::string set_faults(const std::string& specification) {
  std::map<std::string, std::string> faults;
  if (std::string error = parse(specification, &faults); !error.empty()) return error;
  std::lock_guard<std::mutex> lock(state().mutex);
  state().specification = specification;
  state().faults = std::move(faults);
  state().reached.clear();
  return "";
}

std::string set_faults_from_environment() {
  static const std::string* error = new std::string([]() -> std::string {
    const char* text = std::getenv("ASCEND_SIM_FAULT");
    return text ? set_faults(text) : "";
  }());
  return *error;
}

std::string faults_in_force() {
  std::lock_guard<std::mutex> lock(state().mutex);
  return state().specification;
}

std::string fault(const std::string& name) {
  std::lock_guard<std::mutex> lock(state().mutex);
  const auto found = state().faults.find(name);
  return found == state().faults.end() ? "" : found->second;
}

bool fault_due(const std::string& name) {
  std::lock_guard<std::mutex> lock(state().mutex);
  const auto found = state().faults.find(name);
  if (found == state().faults.end()) return false;
  return ++state().reached[name] == std::strtoul(found->second.c_str(), nullptr, 10);
}

}  // namespace ascend_sim
