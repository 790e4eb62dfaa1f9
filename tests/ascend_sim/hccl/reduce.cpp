// Elementwise reductions on host bytes. The caller goes through the ranks in order, so every rank computes the same.
#include "reduce.h"

#include <bit>
#include <cmath>
#include <type_traits>

namespace ascend_sim::hccl {
namespace {

uint16_t bf16_from_float(float value) {
  uint32_t bits = std::bit_cast<uint32_t>(value);
  if (std::isnan(value)) return static_cast<uint16_t>((bits >> 16) | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);   // to nearest, ties to even
}

float float_from_bf16(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

float float_from_fp16(uint16_t bits) {
  uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
  uint32_t exponent = (bits >> 10) & 0x1f, mantissa = bits & 0x3ff;
  if (exponent == 0) {                                                        // zero and subnormal numbers
    float magnitude = std::ldexp(static_cast<float>(mantissa), -24);
    return sign ? -magnitude : magnitude;
  }
  uint32_t wide = exponent == 0x1f ? 0xff : exponent + 112;
  return std::bit_cast<float>(sign | (wide << 23) | (mantissa << 13));
}

uint16_t fp16_from_float(float value) {
  uint32_t bits = std::bit_cast<uint32_t>(value);
  uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000);
  float magnitude = std::fabs(value);
  if (std::isnan(value)) return sign | 0x7e00;
  if (magnitude >= 65520.0f) return sign | 0x7c00;                            // rounds to infinity
  if (magnitude < 6.103515625e-05f)                                           // below 2^-14: subnormal, unit 2^-24
    return sign | static_cast<uint16_t>(std::nearbyint(std::ldexp(magnitude, 24)));
  uint32_t rounded = (bits & 0x7fffffff) + 0xfff + ((bits >> 13) & 1);
  return sign | static_cast<uint16_t>((rounded - (112u << 23)) >> 13);
}

template <class T>
T combine(T a, T b, ReduceOp op) {
  if constexpr (std::is_integral_v<T>) {
    using U = std::make_unsigned_t<T>;                                        // wraps instead of undefined overflow
    if (op == ReduceOp::sum) return static_cast<T>(static_cast<U>(a) + static_cast<U>(b));
    if (op == ReduceOp::prod) return static_cast<T>(uint64_t{static_cast<U>(a)} * uint64_t{static_cast<U>(b)});
    return op == ReduceOp::max ? (a > b ? a : b) : (a < b ? a : b);
  } else {
    if (op == ReduceOp::sum) return a + b;
    if (op == ReduceOp::prod) return a * b;
    if (std::isnan(a)) return a;                                              // a NaN of either side stays
    return op == ReduceOp::max ? (a > b ? a : b) : (a < b ? a : b);
  }
}

template <class T>
void reduce_plain(void* accumulator, const void* other, uint64_t count, ReduceOp op) {
  T* into = static_cast<T*>(accumulator);
  const T* from = static_cast<const T*>(other);
  for (uint64_t i = 0; i < count; i++) into[i] = combine(into[i], from[i], op);
}

template <float (*widen)(uint16_t), uint16_t (*narrow)(float)>
void reduce_half(void* accumulator, const void* other, uint64_t count, ReduceOp op) {
  uint16_t* into = static_cast<uint16_t*>(accumulator);
  const uint16_t* from = static_cast<const uint16_t*>(other);
  for (uint64_t i = 0; i < count; i++) into[i] = narrow(combine(widen(into[i]), widen(from[i]), op));
}

}  // namespace

bool reduction_supported(DataType type, ReduceOp op) {
  switch (type) {
    case DataType::int8: case DataType::int32: case DataType::int64:
    case DataType::fp16: case DataType::fp32: return true;
    case DataType::int16: case DataType::bf16: return op != ReduceOp::prod;
    default: return false;
  }
}

void reduce_into(void* accumulator, const void* other, uint64_t count, DataType type, ReduceOp op) {
  switch (type) {
    case DataType::int8: return reduce_plain<int8_t>(accumulator, other, count, op);
    case DataType::int16: return reduce_plain<int16_t>(accumulator, other, count, op);
    case DataType::int32: return reduce_plain<int32_t>(accumulator, other, count, op);
    case DataType::int64: return reduce_plain<int64_t>(accumulator, other, count, op);
    case DataType::fp32: return reduce_plain<float>(accumulator, other, count, op);
    case DataType::fp16: return reduce_half<float_from_fp16, fp16_from_float>(accumulator, other, count, op);
    case DataType::bf16: return reduce_half<float_from_bf16, bf16_from_float>(accumulator, other, count, op);
    default: return;                                                          // refused before it was enqueued
  }
}

}  // namespace ascend_sim::hccl
