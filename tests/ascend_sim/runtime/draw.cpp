// Reproducible pseudo-random numbers: a hash of the seed, the place that asks and its count, so that no order of threads matters.
#include "ascend_sim/runtime.h"
#include "settings.h"

namespace ascend_sim {
namespace {

uint64_t mix(uint64_t x) {  // the finaliser of splitmix64
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

}  // namespace

uint64_t draw(const std::string& site, uint64_t n) {
  uint64_t hash = mix(settings().seed);
  for (unsigned char character : site) hash = mix(hash ^ character);
  return mix(hash ^ mix(n));
}

}  // namespace ascend_sim
