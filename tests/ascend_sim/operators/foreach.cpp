// Operators over lists of tensors, as optimizers use them, and the optimizers' own.
#include "operator.h"

using namespace ascend_sim;

template <typename Function> static void each(const Tensors& self, const Tensors& out, Function function) {
  TORCH_CHECK(self.size() == out.size(), "a list of ", self.size(), " tensors has ", out.size(), " outputs");
  for (size_t i = 0; i < self.size(); ++i) store(out[i], function(i));
}

#define FOREACH_UNARY(name, function) \
  ACLNN(aclnnForeach##name, Tensors self, Tensors out) { each(self, out, [&](size_t i) { return function(self[i]); }); }

FOREACH_UNARY(Abs, at::abs)
FOREACH_UNARY(Cos, at::cos)
FOREACH_UNARY(Erf, at::erf)
FOREACH_UNARY(Exp, at::exp)
FOREACH_UNARY(Expm1, at::expm1)
FOREACH_UNARY(Log, at::log)
FOREACH_UNARY(Log1p, at::log1p)
FOREACH_UNARY(Log2, at::log2)
FOREACH_UNARY(Log10, at::log10)
FOREACH_UNARY(Neg, at::neg)
FOREACH_UNARY(Reciprocal, at::reciprocal)
FOREACH_UNARY(Sigmoid, at::sigmoid)
FOREACH_UNARY(Sign, at::sign)
FOREACH_UNARY(Sin, at::sin)
FOREACH_UNARY(Sqrt, at::sqrt)
FOREACH_UNARY(Tanh, at::tanh)

// A list with one scalar, with a list of scalars, with a list of tensors.
#define FOREACH_SCALAR(name, function)                                                        \
  ACLNN(aclnnForeach##name##ScalarV2, Tensors self, Scalar value, Tensors out) {              \
    each(self, out, [&](size_t i) { return function(self[i], value); });                      \
  }                                                                                           \
  ACLNN(aclnnForeach##name##ScalarList, Tensors self, Scalars values, Tensors out) {          \
    each(self, out, [&](size_t i) { return function(self[i], values.at(i)); });               \
  }
#define FOREACH_LIST(name, function)                                                          \
  ACLNN(aclnnForeach##name##List, Tensors self, Tensors other, Tensors out) {                 \
    each(self, out, [&](size_t i) { return function(self[i], other.at(i)); });                \
  }

static Tensor larger(const Tensor& self, const Tensor& other) { return at::maximum(self, other); }
static Tensor larger(const Tensor& self, const Scalar& other) { return at::clamp_min(self, other); }
static Tensor smaller(const Tensor& self, const Tensor& other) { return at::minimum(self, other); }
static Tensor smaller(const Tensor& self, const Scalar& other) { return at::clamp_max(self, other); }

FOREACH_SCALAR(Add, at::add)
FOREACH_SCALAR(Sub, at::sub)
FOREACH_SCALAR(Mul, at::mul)
FOREACH_SCALAR(Div, at::div)
FOREACH_SCALAR(Pow, at::pow)
FOREACH_SCALAR(Maximum, larger)
FOREACH_SCALAR(Minimum, smaller)
FOREACH_LIST(Mul, at::mul)
FOREACH_LIST(Div, at::div)
FOREACH_LIST(Pow, at::pow)
FOREACH_LIST(Maximum, larger)
FOREACH_LIST(Minimum, smaller)

ACLNN(aclnnForeachAddListV2, Tensors self, Tensors other, Scalar alpha, Tensors out) {
  each(self, out, [&](size_t i) { return at::add(self[i], other.at(i), alpha); });
}
ACLNN(aclnnForeachSubListV2, Tensors self, Tensors other, Scalar alpha, Tensors out) {
  each(self, out, [&](size_t i) { return at::sub(self[i], other.at(i), alpha); });
}
ACLNN(aclnnForeachPowScalarAndTensor, Scalar base, Tensors exponent, Tensors out) {
  each(exponent, out, [&](size_t i) { return at::pow(base, exponent[i]); });
}

// self + value * a op b. The factor comes from the host, or as a tensor on the device with one for each.
#define FOREACH_POINTWISE(name, function)                                                                                \
  ACLNN(aclnnForeach##name##ScalarV2, Tensors self, Tensors a, Tensors b, Scalar value, Tensors out) {                   \
    each(self, out, [&](size_t i) { return function(self[i], a.at(i), b.at(i), value); });                               \
  }                                                                                                                      \
  ACLNN(aclnnForeach##name##ScalarList, Tensors self, Tensors a, Tensors b, Tensor values, Tensors out) {                \
    each(self, out, [&](size_t i) { return function(self[i], a.at(i), b.at(i), values[i].item()); });                    \
  }

FOREACH_POINTWISE(Addcmul, at::addcmul)
FOREACH_POINTWISE(Addcdiv, at::addcdiv)

ACLNN(aclnnForeachLerpScalar, Tensors self, Tensors end, Scalar weight, Tensors out) {
  each(self, out, [&](size_t i) { return at::lerp(self[i], end.at(i), weight); });
}
ACLNN(aclnnForeachLerpList, Tensors self, Tensors end, Tensors weight, Tensors out) {
  each(self, out, [&](size_t i) { return at::lerp(self[i], end.at(i), weight.at(i)); });
}
ACLNN(aclnnForeachNorm, Tensors self, Scalar p, Tensors out) {
  each(self, out, [&](size_t i) { return at::norm(self[i], p, Ints{}, false, out[i].scalar_type()); });
}
ACLNN(aclnnForeachCopy, Tensors source, Tensors out) { each(source, out, [&](size_t i) { return source[i]; }); }
ACLNN(aclnnForeachZeroInplace, Tensors self) {
  for (auto& tensor : self) tensor.zero_();
}

// Loss scaling: gradients are multiplied by 1 / scale; a value that is not finite is noted in found_inf.
ACLNN(aclnnForeachNonFiniteCheckAndUnscale, Tensors grads, Tensor found_inf, Tensor inverse_scale) {
  for (auto& grad : grads) {
    if (!at::isfinite(grad).all().item<bool>()) found_inf.fill_(1);
    grad.mul_(inverse_scale.reshape({}));
  }
}
ACLNN(aclnnAmpUpdateScale, Tensor scale, Tensor tracker, Tensor found_inf, double growth, double backoff, int64_t interval,
      Tensor scale_out, Tensor tracker_out) {
  auto next_scale = scale.clone(), next_tracker = tracker.clone();
  at::_amp_update_scale_(next_scale, next_tracker, found_inf, growth, backoff, interval);
  store(scale_out, next_scale), store(tracker_out, next_tracker);
}

// AdamW on one parameter; `step` counts the steps before this one. Computed in fp32, as the fused CPU optimizer does.
ACLNN(aclnnApplyAdamWV2, Tensor parameter, Tensor first, Tensor second, Tensor largest, Tensor grad, Tensor step, float rate,
      float beta1, float beta2, float decay, float eps, bool amsgrad, bool maximize) {
  const auto t = step.to(at::kDouble).item<double>() + 1;
  const auto g = maximize ? at::neg(grad.to(at::kFloat)) : grad.to(at::kFloat);
  const auto p = parameter.to(at::kFloat) * (1 - static_cast<double>(rate) * decay);
  store(first, at::lerp(first.to(at::kFloat), g, 1 - static_cast<double>(beta1)));
  store(second, at::addcmul(second.to(at::kFloat) * beta2, g, g, 1 - static_cast<double>(beta2)));
  if (amsgrad) store(largest, at::maximum(largest, second));
  const auto root = at::sqrt((amsgrad ? largest : second).to(at::kFloat)) / std::sqrt(1 - std::pow(static_cast<double>(beta2), t)) + eps;
  store(parameter, at::addcdiv(p, first.to(at::kFloat), root, -rate / (1 - std::pow(static_cast<double>(beta1), t))));
}
