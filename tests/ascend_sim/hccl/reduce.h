// Elementwise reductions on host bytes.
#pragma once
#include "hccl_abi.h"

namespace ascend_sim::hccl {

// Whether Atlas A2 documents this reduction for this type ("prod" is refused for int16 and bfloat16).
bool reduction_supported(DataType type, ReduceOp op);

// accumulator[i] = op(accumulator[i], other[i]) for `count` elements; 16-bit floats are rounded after every step.
void reduce_into(void* accumulator, const void* other, uint64_t count, DataType type, ReduceOp op);

}  // namespace ascend_sim::hccl
