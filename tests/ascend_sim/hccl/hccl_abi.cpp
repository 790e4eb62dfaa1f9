// Names and sizes of HCCL's enumerations.
#include "hccl_abi.h"

namespace ascend_sim::hccl {

size_t element_bytes(DataType type) {
  switch (type) {
    case DataType::int8: case DataType::uint8: case DataType::hif8:
    case DataType::fp8e4m3: case DataType::fp8e5m2: case DataType::fp8e8m0: return 1;
    case DataType::int16: case DataType::uint16: case DataType::fp16: case DataType::bf16: return 2;
    case DataType::int32: case DataType::uint32: case DataType::fp32: return 4;
    case DataType::int64: case DataType::uint64: case DataType::fp64: return 8;
    case DataType::int128: return 16;
  }
  return 0;
}

const char* type_name(DataType type) {
  switch (type) {
    case DataType::int8: return "int8";
    case DataType::int16: return "int16";
    case DataType::int32: return "int32";
    case DataType::fp16: return "float16";
    case DataType::fp32: return "float32";
    case DataType::int64: return "int64";
    case DataType::uint64: return "uint64";
    case DataType::uint8: return "uint8";
    case DataType::uint16: return "uint16";
    case DataType::uint32: return "uint32";
    case DataType::fp64: return "float64";
    case DataType::bf16: return "bfloat16";
    case DataType::int128: return "int128";
    case DataType::hif8: return "hifloat8";
    case DataType::fp8e4m3: return "float8_e4m3";
    case DataType::fp8e5m2: return "float8_e5m2";
    case DataType::fp8e8m0: return "float8_e8m0";
  }
  return "unknown type";
}

const char* reduce_name(ReduceOp op) {
  switch (op) {
    case ReduceOp::sum: return "sum";
    case ReduceOp::prod: return "prod";
    case ReduceOp::max: return "max";
    case ReduceOp::min: return "min";
  }
  return "unknown reduction";
}

const char* result_name(int code) {
  switch (code) {
    case kSuccess: return "no error";
    case kBadParameter: return "parameter error";
    case kNullPointer: return "empty pointer";
    case kInternal: return "internal error";
    case kNotSupported: return "feature not supported";
    case kSystemCall: return "system call error";
    case kTimeout: return "timeout";
    case kRemote: return "error of a remote rank";
    case kOutOfMemory: return "out of memory";
  }
  return "unknown HCCL error";
}

}  // namespace ascend_sim::hccl
