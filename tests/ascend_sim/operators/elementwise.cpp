// Elementwise operators: arithmetic, comparison, logic, activation, type conversion, fill.
#include "operator.h"

using namespace ascend_sim;

// f(x), and the same in place.
#define UNARY(name, function)                                                     \
  ACLNN(aclnn##name, Tensor self, Tensor out) { store(out, function(self)); }     \
  ACLNN(aclnnInplace##name, Tensor self) { store(self, function(self)); }

UNARY(Acos, at::acos)
UNARY(Asin, at::asin)
UNARY(Atan, at::atan)
UNARY(Ceil, at::ceil)
UNARY(Cos, at::cos)
UNARY(Cosh, at::cosh)
UNARY(Erf, at::erf)
UNARY(Erfc, at::erfc)
UNARY(Erfinv, at::erfinv)
UNARY(Exp, at::exp)
UNARY(Exp2, at::exp2)
UNARY(Expm1, at::expm1)
UNARY(Floor, at::floor)
UNARY(Frac, at::frac)
UNARY(Log, at::log)
UNARY(Log10, at::log10)
UNARY(Log1p, at::log1p)
UNARY(Log2, at::log2)
UNARY(LogicalNot, at::logical_not)
UNARY(Reciprocal, at::reciprocal)
UNARY(Relu, at::relu)
UNARY(Rsqrt, at::rsqrt)
UNARY(Sigmoid, at::sigmoid)
UNARY(Sin, at::sin)
UNARY(Sinh, at::sinh)
UNARY(Sqrt, at::sqrt)
UNARY(Tan, at::tan)
UNARY(Tanh, at::tanh)

// f(x) alone: torch_npu has no in-place form.
#define UNARY_OUT(name, function) \
  ACLNN(aclnn##name, Tensor self, Tensor out) { store(out, function(self)); }

UNARY_OUT(Abs, at::abs)
UNARY_OUT(BitwiseNot, at::bitwise_not)
UNARY_OUT(Neg, at::neg)
UNARY_OUT(Round, at::round)
UNARY_OUT(Sign, at::sign)
UNARY_OUT(Trunc, at::trunc)
UNARY_OUT(IsFinite, at::isfinite)
UNARY_OUT(IsNegInf, at::isneginf)
UNARY_OUT(IsPosInf, at::isposinf)
UNARY_OUT(Signbit, at::signbit)
UNARY_OUT(Silu, at::silu)
UNARY_OUT(LogSigmoid, at::log_sigmoid)

// self op alpha * other: the tensor form, the scalar form (with an s) and both in place.
#define SCALED_BINARY(name, function)                                                                                     \
  ACLNN(aclnn##name, Tensor self, Tensor other, Scalar alpha, Tensor out) { store(out, function(self, other, alpha)); }   \
  ACLNN(aclnn##name##s, Tensor self, Scalar other, Scalar alpha, Tensor out) { store(out, function(self, other, alpha)); }\
  ACLNN(aclnnInplace##name, Tensor self, Tensor other, Scalar alpha) { store(self, function(self, other, alpha)); }       \
  ACLNN(aclnnInplace##name##s, Tensor self, Scalar other, Scalar alpha) { store(self, function(self, other, alpha)); }

SCALED_BINARY(Add, at::add)
SCALED_BINARY(Sub, at::sub)

ACLNN(aclnnRsub, Tensor self, Tensor other, Scalar alpha, Tensor out) { store(out, at::rsub(self, other, alpha)); }
ACLNN(aclnnRsubs, Tensor self, Scalar other, Scalar alpha, Tensor out) { store(out, at::rsub(self, other, alpha)); }

// self op other, in the same four forms.
#define BINARY_WITH_SCALAR(name, function)                                                                \
  ACLNN(aclnn##name, Tensor self, Tensor other, Tensor out) { store(out, function(self, other)); }        \
  ACLNN(aclnn##name##s, Tensor self, Scalar other, Tensor out) { store(out, function(self, other)); }     \
  ACLNN(aclnnInplace##name, Tensor self, Tensor other) { store(self, function(self, other)); }            \
  ACLNN(aclnnInplace##name##s, Tensor self, Scalar other) { store(self, function(self, other)); }

BINARY_WITH_SCALAR(Mul, at::mul)
BINARY_WITH_SCALAR(Div, at::div)
BINARY_WITH_SCALAR(FloorDivide, at::floor_divide)

// Named ...Tensor and ...Scalar, with in-place forms.
#define BINARY_TENSOR_SCALAR(name, function)                                                                    \
  ACLNN(aclnn##name##Tensor, Tensor self, Tensor other, Tensor out) { store(out, function(self, other)); }      \
  ACLNN(aclnn##name##Scalar, Tensor self, Scalar other, Tensor out) { store(out, function(self, other)); }      \
  ACLNN(aclnnInplace##name##Tensor, Tensor self, Tensor other) { store(self, function(self, other)); }          \
  ACLNN(aclnnInplace##name##Scalar, Tensor self, Scalar other) { store(self, function(self, other)); }

BINARY_TENSOR_SCALAR(Eq, at::eq)
BINARY_TENSOR_SCALAR(Ne, at::ne)
BINARY_TENSOR_SCALAR(Gt, at::gt)
BINARY_TENSOR_SCALAR(Ge, at::ge)
BINARY_TENSOR_SCALAR(Lt, at::lt)
BINARY_TENSOR_SCALAR(Le, at::le)
BINARY_TENSOR_SCALAR(BitwiseAnd, at::bitwise_and)
BINARY_TENSOR_SCALAR(BitwiseXor, at::bitwise_xor)
BINARY_TENSOR_SCALAR(Fmod, at::fmod)

ACLNN(aclnnBitwiseOrTensor, Tensor self, Tensor other, Tensor out) { store(out, at::bitwise_or(self, other)); }
ACLNN(aclnnBitwiseOrScalar, Tensor self, Scalar other, Tensor out) { store(out, at::bitwise_or(self, other)); }

// Named ...TensorTensor and ...TensorScalar, with in-place forms.
#define BINARY_TENSOR_FIRST(name, function)                                                                        \
  ACLNN(aclnn##name##TensorTensor, Tensor self, Tensor other, Tensor out) { store(out, function(self, other)); }   \
  ACLNN(aclnn##name##TensorScalar, Tensor self, Scalar other, Tensor out) { store(out, function(self, other)); }   \
  ACLNN(aclnn##name##ScalarTensor, Scalar self, Tensor other, Tensor out) { store(out, function(self, other)); }   \
  ACLNN(aclnnInplace##name##TensorTensor, Tensor self, Tensor other) { store(self, function(self, other)); }       \
  ACLNN(aclnnInplace##name##TensorScalar, Tensor self, Scalar other) { store(self, function(self, other)); }

BINARY_TENSOR_FIRST(Pow, at::pow)
BINARY_TENSOR_FIRST(Remainder, at::remainder)

#define BINARY(name, function)                                                                       \
  ACLNN(aclnn##name, Tensor self, Tensor other, Tensor out) { store(out, function(self, other)); }   \
  ACLNN(aclnnInplace##name, Tensor self, Tensor other) { store(self, function(self, other)); }

BINARY(Atan2, at::atan2)
BINARY(LogicalAnd, at::logical_and)
BINARY(LogicalOr, at::logical_or)

#define BINARY_OUT(name, function) \
  ACLNN(aclnn##name, Tensor self, Tensor other, Tensor out) { store(out, function(self, other)); }

BINARY_OUT(LogicalXor, at::logical_xor)
BINARY_OUT(Maximum, at::maximum)
BINARY_OUT(Minimum, at::minimum)
BINARY_OUT(LogAddExp, at::logaddexp)

ACLNN(aclnnLeftShift, Tensor self, Tensor other, Tensor out) { store(out, at::bitwise_left_shift(self, other)); }
ACLNN(aclnnLeftShifts, Tensor self, Scalar other, Tensor out) { store(out, at::bitwise_left_shift(self, other)); }
ACLNN(aclnnRightShift, Tensor self, Tensor other, Tensor out) { store(out, at::bitwise_right_shift(self, other)); }

// Division that rounds: mode 0 does not, 1 rounds towards zero, 2 down.
static std::optional<std::string_view> rounding(int32_t mode) {
  TORCH_CHECK(mode >= 0 && mode <= 2, "rounding mode ", mode, " is not one of 0, 1, 2");
  if (mode == 0) return std::nullopt;
  return mode == 1 ? "trunc" : "floor";
}
ACLNN(aclnnDivMod, Tensor self, Tensor other, int32_t mode, Tensor out) { store(out, at::div(self, other, rounding(mode))); }
ACLNN(aclnnDivMods, Tensor self, Scalar other, int32_t mode, Tensor out) { store(out, at::div(self, other, rounding(mode))); }
ACLNN(aclnnInplaceDivMod, Tensor self, Tensor other, int32_t mode) { store(self, at::div(self, other, rounding(mode))); }
ACLNN(aclnnInplaceDivMods, Tensor self, Scalar other, int32_t mode) { store(self, at::div(self, other, rounding(mode))); }

ACLNN(aclnnAddcmul, Tensor self, Tensor a, Tensor b, Scalar value, Tensor out) { store(out, at::addcmul(self, a, b, value)); }
ACLNN(aclnnAddcdiv, Tensor self, Tensor a, Tensor b, Scalar value, Tensor out) { store(out, at::addcdiv(self, a, b, value)); }
ACLNN(aclnnInplaceAddcmul, Tensor self, Tensor a, Tensor b, Scalar value) { store(self, at::addcmul(self, a, b, value)); }
ACLNN(aclnnInplaceAddcdiv, Tensor self, Tensor a, Tensor b, Scalar value) { store(self, at::addcdiv(self, a, b, value)); }
ACLNN(aclnnLerp, Tensor self, Tensor end, Tensor weight, Tensor out) { store(out, at::lerp(self, end, weight)); }
ACLNN(aclnnLerps, Tensor self, Tensor end, Scalar weight, Tensor out) { store(out, at::lerp(self, end, weight)); }
ACLNN(aclnnInplaceLerp, Tensor self, Tensor end, Tensor weight) { store(self, at::lerp(self, end, weight)); }
ACLNN(aclnnInplaceLerps, Tensor self, Tensor end, Scalar weight) { store(self, at::lerp(self, end, weight)); }

static std::optional<Tensor> maybe(const Tensor& tensor) {
  return tensor.defined() ? std::optional<Tensor>(tensor) : std::nullopt;
}
ACLNN(aclnnClamp, Tensor self, MaybeScalar low, MaybeScalar high, Tensor out) { store(out, at::clamp(self, low, high)); }
ACLNN(aclnnClampMin, Tensor self, Scalar low, Tensor out) { store(out, at::clamp_min(self, low)); }
ACLNN(aclnnClampMax, Tensor self, Scalar high, Tensor out) { store(out, at::clamp_max(self, high)); }
ACLNN(aclnnClampTensor, Tensor self, Tensor low, Tensor high, Tensor out) { store(out, at::clamp(self, maybe(low), maybe(high))); }
ACLNN(aclnnClampMinTensor, Tensor self, Tensor low, Tensor out) { store(out, at::clamp_min(self, low)); }
ACLNN(aclnnClampMaxTensor, Tensor self, Tensor high, Tensor out) { store(out, at::clamp_max(self, high)); }
ACLNN(aclnnInplaceClampMax, Tensor self, Scalar high) { store(self, at::clamp_max(self, high)); }
ACLNN(aclnnInplaceClampMinTensor, Tensor self, Tensor low) { store(self, at::clamp_min(self, low)); }
ACLNN(aclnnInplaceClampMaxTensor, Tensor self, Tensor high) { store(self, at::clamp_max(self, high)); }

static Tensor without_nan(const Tensor& self, float nan, float positive, float negative) {
  return at::nan_to_num(self, nan, positive, negative);
}
ACLNN(aclnnNanToNum, Tensor self, float nan, float positive, float negative, Tensor out) {
  store(out, without_nan(self, nan, positive, negative));
}
ACLNN(aclnnInplaceNanToNum, Tensor self, float nan, float positive, float negative) {
  store(self, without_nan(self, nan, positive, negative));
}

// Comparison of whole tensors.
ACLNN(aclnnEqual, Tensor self, Tensor other, Tensor out) { out.fill_(at::equal(self, other)); }
ACLNN(aclnnIsClose, Tensor self, Tensor other, double rtol, double atol, bool equal_nan, Tensor out) {
  store(out, at::isclose(self, other, rtol, atol, equal_nan));
}
ACLNN(aclnnSWhere, Tensor condition, Tensor self, Tensor other, Tensor out) { store(out, at::where(condition, self, other)); }

// Activations with their gradients.
ACLNN(aclnnSiluBackward, Tensor grad, Tensor self, Tensor out) { store(out, at::silu_backward(grad, self)); }
ACLNN(aclnnSigmoidBackward, Tensor grad, Tensor result, Tensor out) { store(out, at::sigmoid_backward(grad, result)); }
ACLNN(aclnnTanhBackward, Tensor grad, Tensor result, Tensor out) { store(out, at::tanh_backward(grad, result)); }
ACLNN(aclnnThreshold, Tensor self, Scalar threshold, Scalar value, Tensor out) { store(out, at::threshold(self, threshold, value)); }
ACLNN(aclnnInplaceThreshold, Tensor self, Scalar threshold, Scalar value) { store(self, at::threshold(self, threshold, value)); }
ACLNN(aclnnThresholdBackward, Tensor grad, Tensor self, Scalar threshold, Tensor out) { store(out, at::threshold_backward(grad, self, threshold)); }
ACLNN(aclnnSoftplus, Tensor self, Scalar beta, Scalar threshold, Tensor out) { store(out, at::softplus(self, beta, threshold)); }
ACLNN(aclnnSoftplusBackward, Tensor grad, Tensor self, Scalar beta, Scalar threshold, Tensor out) {
  store(out, at::softplus_backward(grad, self, beta, threshold));
}
ACLNN(aclnnLeakyRelu, Tensor self, Scalar slope, Tensor out) { store(out, at::leaky_relu(self, slope)); }
ACLNN(aclnnGelu, Tensor self, Tensor out) { store(out, at::gelu(self)); }
ACLNN(aclnnGeluBackward, Tensor grad, Tensor self, Tensor out) { store(out, at::gelu_backward(grad, self)); }
ACLNN(aclnnGeluV2, Tensor self, int64_t tanh, Tensor out) { store(out, at::gelu(self, tanh ? "tanh" : "none")); }
ACLNN(aclnnGeluBackwardV2, Tensor grad, Tensor self, Text approximate, Tensor out) { store(out, at::gelu_backward(grad, self, approximate)); }

ACLNN(aclnnLogSigmoidForward, Tensor self, Tensor out, Tensor buffer) {
  (void)buffer;   // torch_npu keeps it for the gradient, which is computed from `self` here
  store(out, at::log_sigmoid(self));
}
ACLNN(aclnnLogSigmoidBackward, Tensor grad, Tensor self, Tensor buffer, Tensor out) {
  (void)buffer;
  const auto [result, kept] = at::log_sigmoid_forward(self);
  store(out, at::log_sigmoid_backward(grad, self, kept));
}
ACLNN(aclnnHardtanh, Tensor self, Scalar low, Scalar high, Tensor out) { store(out, at::hardtanh(self, low, high)); }
ACLNN(aclnnGlu, Tensor self, int64_t dim, Tensor out) { store(out, at::glu(self, dim)); }
ACLNN(aclnnGluBackward, Tensor grad, Tensor self, int64_t dim, Tensor out) { store(out, at::glu_backward(grad, self, dim)); }
ACLNN(aclnnSwiGlu, Tensor self, int64_t dim, Tensor out) {
  const auto halves = self.chunk(2, dim);
  store(out, at::silu(halves[0]) * halves[1]);
}
ACLNN(aclnnSwiGluGrad, Tensor grad, Tensor self, int64_t dim, Tensor out) {
  const auto halves = self.chunk(2, dim);
  store(out, at::cat({at::silu_backward(grad * halves[1], halves[0]), grad * at::silu(halves[0])}, dim));
}

// Type conversion, copies between strides, constants.
ACLNN(aclnnCast, Tensor self, Dtype type, Tensor out) { store(out, self.to(type.type)); }
ACLNN(aclnnInplaceCopy, Tensor self, Tensor source) {
  self.copy_(source);   // copy_ broadcasts, as the operator does
}
ACLNN(aclnnInplaceZero, Tensor self) { self.zero_(); }
ACLNN(aclnnInplaceOne, Tensor self) { self.fill_(1); }
ACLNN(aclnnInplaceFillScalar, Tensor self, Scalar value) { self.fill_(value); }
ACLNN(aclnnInplaceFillTensor, Tensor self, Tensor value) { self.fill_(value.reshape({})); }
ACLNN(aclnnInplaceMaskedFillScalar, Tensor self, Tensor mask, Scalar value) { self.masked_fill_(mask, value); }
ACLNN(aclnnInplaceMaskedFillTensor, Tensor self, Tensor mask, Tensor value) { self.masked_fill_(mask, value.reshape({})); }
ACLNN(aclnnInplaceMaskedScatter, Tensor self, Tensor mask, Tensor source) { self.masked_scatter_(mask, source); }
