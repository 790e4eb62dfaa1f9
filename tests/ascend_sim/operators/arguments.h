// The argument objects of the aclnn interface (aclTensor, aclScalar, ...) and how an operator's body gets its values from them.
//
// torch_npu destroys the objects as soon as the second half of an operator has been called, long before its task runs:
// every argument is therefore captured by value. A tensor's memory is reached through kernel_view() only inside the task.
#pragma once
#include <ATen/ATen.h>

#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "ascend_sim/runtime.h"

// What stands first in every object, so that an object of the wrong kind is reported and not read.
enum class AclKind : uint32_t { tensor = 0x5A01, scalar, ints, floats, bools, tensors, scalars };

// Shape, strides (in elements), type and first element of a tensor; shared by the object and the tasks that use it,
// because operators with data-dependent output (nonzero) write the shape back.
struct AclView {
  std::vector<int64_t> shape, strides;
  int acl_type = -1;
  void* first_element = nullptr;
};

struct aclTensor { AclKind kind = AclKind::tensor; std::shared_ptr<AclView> view; };
struct aclScalar { AclKind kind = AclKind::scalar; at::Scalar value; };
struct aclIntArray { AclKind kind = AclKind::ints; std::vector<int64_t> values; };
struct aclFloatArray { AclKind kind = AclKind::floats; std::vector<float> values; };
struct aclBoolArray { AclKind kind = AclKind::bools; std::vector<bool> values; };
struct aclTensorList { AclKind kind = AclKind::tensors; std::vector<std::shared_ptr<AclView>> views; };
struct aclScalarList { AclKind kind = AclKind::scalars; std::vector<at::Scalar> values; };

namespace ascend_sim {

at::ScalarType scalar_type_of(int acl_type);      // throws for a type that torch does not have
at::Tensor tensor_over(const AclView& view);      // only inside a task
void require_kind(const void* object, AclKind wanted);

// The types that an operator's parameter list may use (beside bool, int32_t, int64_t, uint64_t, int8_t, float and double).
using Tensor = at::Tensor;                        // undefined where torch_npu passes no tensor
using Tensors = std::vector<at::Tensor>;
using Scalar = at::Scalar;
using MaybeScalar = std::optional<at::Scalar>;
using Scalars = std::vector<at::Scalar>;
using Ints = std::vector<int64_t>;
using Floats = std::vector<float>;
using Bools = std::vector<bool>;
using Text = std::string;
struct Dtype { at::ScalarType type; operator at::ScalarType() const { return type; } };

// An output whose shape is known only when the operator has run: fill() stores a result that may be smaller than what
// was allocated and writes its shape back to where aclGetViewShape finds it.
struct Dynamic {
  std::shared_ptr<AclView> view;
  void fill(const at::Tensor& result) const;
};

// How one parameter travels: what the C interface passes (Raw), what the closure keeps (Kept), what the body sees.
template <typename T> struct Argument {           // numbers: the same everywhere
  static_assert(std::is_arithmetic_v<T>, "an operator's parameter needs one of the types listed in arguments.h");
  using Raw = T; using Kept = T;
  static Kept keep(Raw raw) { return raw; }
  static T give(const Kept& kept) { return kept; }
};
template <> struct Argument<Tensor> {
  using Raw = const aclTensor*; using Kept = std::shared_ptr<AclView>;
  static Kept keep(Raw raw) { require_kind(raw, AclKind::tensor); return raw ? raw->view : nullptr; }
  static Tensor give(const Kept& kept) { return kept ? tensor_over(*kept) : Tensor(); }
};
template <> struct Argument<Dynamic> {
  using Raw = const aclTensor*; using Kept = std::shared_ptr<AclView>;
  static Kept keep(Raw raw) { return Argument<Tensor>::keep(raw); }
  static Dynamic give(const Kept& kept) { return Dynamic{kept}; }
};
template <> struct Argument<Tensors> {
  using Raw = const aclTensorList*; using Kept = std::vector<std::shared_ptr<AclView>>;
  static Kept keep(Raw raw) { require_kind(raw, AclKind::tensors); return raw ? raw->views : Kept{}; }
  static Tensors give(const Kept& kept) {
    Tensors tensors;
    for (const auto& view : kept) tensors.push_back(Argument<Tensor>::give(view));
    return tensors;
  }
};
template <> struct Argument<Dtype> {
  using Raw = int32_t; using Kept = Dtype;
  static Kept keep(Raw raw) { return Dtype{scalar_type_of(raw)}; }
  static Dtype give(const Kept& kept) { return kept; }
};
template <> struct Argument<Text> {
  using Raw = const char*; using Kept = std::string;
  static Kept keep(Raw raw) { return raw ? raw : ""; }
  static Text give(const Kept& kept) { return kept; }
};
template <> struct Argument<Scalar> {
  using Raw = const aclScalar*; using Kept = Scalar;
  static Kept keep(Raw raw) {
    require_kind(raw, AclKind::scalar);
    TORCH_CHECK(raw, "a scalar argument is missing (null)");
    return raw->value;
  }
  static Scalar give(const Kept& kept) { return kept; }
};
template <> struct Argument<MaybeScalar> {
  using Raw = const aclScalar*; using Kept = MaybeScalar;
  static Kept keep(Raw raw) { require_kind(raw, AclKind::scalar); return raw ? MaybeScalar(raw->value) : std::nullopt; }
  static MaybeScalar give(const Kept& kept) { return kept; }
};
// Lists of values: an absent list is an empty one.
template <typename Values, typename Object, AclKind wanted> struct ListArgument {
  using Raw = const Object*; using Kept = Values;
  static Kept keep(Raw raw) { require_kind(raw, wanted); return raw ? raw->values : Values{}; }
  static Values give(const Kept& kept) { return kept; }
};
template <> struct Argument<Scalars> : ListArgument<Scalars, aclScalarList, AclKind::scalars> {};
template <> struct Argument<Ints> : ListArgument<Ints, aclIntArray, AclKind::ints> {};
template <> struct Argument<Floats> : ListArgument<Floats, aclFloatArray, AclKind::floats> {};
template <> struct Argument<Bools> : ListArgument<Bools, aclBoolArray, AclKind::bools> {};

}  // namespace ascend_sim
