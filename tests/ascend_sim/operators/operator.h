// How an operator is written:
//
//   ACLNN(aclnnAddcmul, Tensor self, Tensor a, Tensor b, Scalar value, Tensor out) { store(out, at::addcmul(self, a, b, value)); }
//
// defines both entry points that torch_npu looks up by name: aclnnAddcmulGetWorkspaceSize(arguments..., &size, &executor),
// which captures the arguments in a closure, and aclnnAddcmul(workspace, size, executor, stream), which puts it on the
// stream's queue. The body runs on the stream's worker, late, single-threaded and without autograd.
#pragma once
#include <tuple>
#include <utility>

#include "arguments.h"

struct aclOpExecutor {
  std::string name;
  std::function<void()> run;
  bool waits;   // an operator whose output shape depends on its data ends only when it has run
};

namespace ascend_sim {

// Writes a result into an output view, converting the type. Shapes may differ only by dimensions of size one: nothing
// is broadcast silently. An undefined output is one that torch_npu did not ask for.
void store(const Tensor& out, const Tensor& result);

// Ends GetWorkspaceSize when the arguments cannot be used; returns the code that torch_npu turns into an exception.
int refuse(const char* name, const std::string& reason);
int launch(aclOpExecutor* executor, aclrtStream stream);

template <typename... Parameters, typename... Raws>
int prepare(const char* name, void (*body)(Parameters...), uint64_t* workspace, aclOpExecutor** executor, Raws... raws) {
  try {
    auto kept = std::make_tuple(Argument<Parameters>::keep(raws)...);
    auto run = [body, kept = std::move(kept)] {
      [&]<size_t... i>(std::index_sequence<i...>) {
        body(Argument<Parameters>::give(std::get<i>(kept))...);
      }(std::index_sequence_for<Parameters...>{});
    };
    *workspace = 0;
    *executor = new aclOpExecutor{name, std::move(run), (std::is_same_v<Parameters, Dynamic> || ...)};
    return 0;
  } catch (const c10::Error& error) {
    return refuse(name, error.what_without_backtrace());
  } catch (const std::exception& error) {
    return refuse(name, error.what());
  }
}

}  // namespace ascend_sim

// Applies a macro to each of up to 60 arguments, separated by commas.
#define SIM_PARENS ()
#define SIM_EXPAND(...) SIM_EXPAND2(SIM_EXPAND2(SIM_EXPAND2(SIM_EXPAND2(__VA_ARGS__))))
#define SIM_EXPAND2(...) SIM_EXPAND1(SIM_EXPAND1(SIM_EXPAND1(SIM_EXPAND1(__VA_ARGS__))))
#define SIM_EXPAND1(...) __VA_ARGS__
#define SIM_EACH(macro, ...) __VA_OPT__(SIM_EXPAND(SIM_STEP(macro, __VA_ARGS__)))
#define SIM_STEP(macro, first, ...) macro(first) __VA_OPT__(, SIM_AGAIN SIM_PARENS(macro, __VA_ARGS__))
#define SIM_AGAIN() SIM_STEP

// "Tensor self" -> the parameter of the C interface, and -> its name alone (by pasting onto the type).
#define SIM_RAW(parameter) SIM_RAW_##parameter
#define SIM_NAME(parameter) SIM_NAME_##parameter
#define SIM_RAW_Tensor ascend_sim::Argument<ascend_sim::Tensor>::Raw
#define SIM_RAW_Dynamic ascend_sim::Argument<ascend_sim::Dynamic>::Raw
#define SIM_RAW_Tensors ascend_sim::Argument<ascend_sim::Tensors>::Raw
#define SIM_RAW_Scalar ascend_sim::Argument<ascend_sim::Scalar>::Raw
#define SIM_RAW_MaybeScalar ascend_sim::Argument<ascend_sim::MaybeScalar>::Raw
#define SIM_RAW_Scalars ascend_sim::Argument<ascend_sim::Scalars>::Raw
#define SIM_RAW_Ints ascend_sim::Argument<ascend_sim::Ints>::Raw
#define SIM_RAW_Floats ascend_sim::Argument<ascend_sim::Floats>::Raw
#define SIM_RAW_Bools ascend_sim::Argument<ascend_sim::Bools>::Raw
#define SIM_RAW_Dtype ascend_sim::Argument<ascend_sim::Dtype>::Raw
#define SIM_RAW_Text ascend_sim::Argument<ascend_sim::Text>::Raw
#define SIM_RAW_bool bool
#define SIM_RAW_int8_t int8_t
#define SIM_RAW_int32_t int32_t
#define SIM_RAW_int64_t int64_t
#define SIM_RAW_uint64_t uint64_t
#define SIM_RAW_float float
#define SIM_RAW_double double
#define SIM_NAME_Tensor
#define SIM_NAME_Dynamic
#define SIM_NAME_Tensors
#define SIM_NAME_Scalar
#define SIM_NAME_MaybeScalar
#define SIM_NAME_Scalars
#define SIM_NAME_Ints
#define SIM_NAME_Floats
#define SIM_NAME_Bools
#define SIM_NAME_Dtype
#define SIM_NAME_Text
#define SIM_NAME_bool
#define SIM_NAME_int8_t
#define SIM_NAME_int32_t
#define SIM_NAME_int64_t
#define SIM_NAME_uint64_t
#define SIM_NAME_float
#define SIM_NAME_double

#define ACLNN(name, ...)                                                                                              \
  static void name##_body(__VA_ARGS__);                                                                               \
  extern "C" __attribute__((visibility("default"))) int name##GetWorkspaceSize(                                       \
      SIM_EACH(SIM_RAW, __VA_ARGS__), uint64_t* workspace_size, aclOpExecutor** op_executor) {                        \
    return ascend_sim::prepare(#name, name##_body, workspace_size, op_executor, SIM_EACH(SIM_NAME, __VA_ARGS__));     \
  }                                                                                                                   \
  extern "C" __attribute__((visibility("default"))) int name(                                                         \
      void*, uint64_t, aclOpExecutor* op_executor, aclrtStream stream) {                                              \
    return ascend_sim::launch(op_executor, stream);                                                                   \
  }                                                                                                                   \
  static void name##_body(__VA_ARGS__)
