// Reductions, scans, softmax, normalisation and losses.
#include "operator.h"

using namespace ascend_sim;

ACLNN(aclnnReduceSum, Tensor self, Ints dims, bool keep, Dtype type, Tensor out) { store(out, at::sum(self, dims, keep, type.type)); }
ACLNN(aclnnReduceNansum, Tensor self, Ints dims, bool keep, Dtype type, Tensor out) { store(out, at::nansum(self, dims, keep, type.type)); }
ACLNN(aclnnMean, Tensor self, Ints dims, bool keep, Dtype type, Tensor out) { store(out, at::mean(self, dims, keep, type.type)); }
ACLNN(aclnnProd, Tensor self, Dtype type, Tensor out) { store(out, at::prod(self, type.type)); }
ACLNN(aclnnProdDim, Tensor self, int64_t dim, bool keep, Dtype type, Tensor out) { store(out, at::prod(self, dim, keep, type.type)); }
ACLNN(aclnnMax, Tensor self, Tensor out) { store(out, at::max(self)); }
ACLNN(aclnnMin, Tensor self, Tensor out) { store(out, at::min(self)); }
ACLNN(aclnnAmax, Tensor self, Ints dims, bool keep, Tensor out) { store(out, at::amax(self, dims, keep)); }
ACLNN(aclnnAmin, Tensor self, Ints dims, bool keep, Tensor out) { store(out, at::amin(self, dims, keep)); }
ACLNN(aclnnArgMax, Tensor self, int64_t dim, bool keep, Tensor out) { store(out, at::argmax(self, dim, keep)); }
ACLNN(aclnnArgMin, Tensor self, int64_t dim, bool keep, Tensor out) { store(out, at::argmin(self, dim, keep)); }
ACLNN(aclnnMedian, Tensor self, Tensor out) { store(out, at::median(self)); }
ACLNN(aclnnMaxDim, Tensor self, int64_t dim, bool keep, Tensor values, Tensor indices) {
  const auto [best, where] = at::max(self, dim, keep);
  store(values, best), store(indices, where);
}
ACLNN(aclnnMinDim, Tensor self, int64_t dim, bool keep, Tensor values, Tensor indices) {
  const auto [best, where] = at::min(self, dim, keep);
  store(values, best), store(indices, where);
}
ACLNN(aclnnAminmax, Tensor self, Ints dims, bool keep, Tensor low, Tensor high) {
  store(low, at::amin(self, dims, keep)), store(high, at::amax(self, dims, keep));
}

// No dimension means all of them.
static Ints all_if_empty(const Tensor& self, Ints dims) {
  if (dims.empty())
    for (int64_t dim = 0; dim < self.dim(); ++dim) dims.push_back(dim);
  return dims;
}
ACLNN(aclnnAll, Tensor self, Ints dims, bool keep, Tensor out) { store(out, at::all(self, all_if_empty(self, dims), keep)); }
ACLNN(aclnnAny, Tensor self, Ints dims, bool keep, Tensor out) { store(out, at::any(self, all_if_empty(self, dims), keep)); }
ACLNN(aclnnLogSumExp, Tensor self, Ints dims, bool keep, Tensor out) { store(out, at::logsumexp(self, dims, keep)); }
ACLNN(aclnnNorm, Tensor self, Scalar p, Ints dims, bool keep, Tensor out) {
  store(out, at::norm(self, p, all_if_empty(self, dims), keep, out.scalar_type()));
}
ACLNN(aclnnLinalgVectorNorm, Tensor self, Scalar p, Ints dims, bool keep, Dtype type, Tensor out) {
  store(out, at::linalg_vector_norm(self, p, all_if_empty(self, dims), keep, type.type));
}
ACLNN(aclnnTrace, Tensor self, Tensor out) { store(out, at::trace(self)); }
ACLNN(aclnnStd, Tensor self, Ints dims, int64_t correction, bool keep, Tensor out) {
  store(out, at::std(self, all_if_empty(self, dims), correction, keep));
}
ACLNN(aclnnVarCorrection, Tensor self, Ints dims, int64_t correction, bool keep, Tensor out) {
  store(out, at::var(self, all_if_empty(self, dims), correction, keep));
}
ACLNN(aclnnVarMean, Tensor self, Ints dims, int64_t correction, bool keep, Tensor var, Tensor mean) {
  const auto [v, m] = at::var_mean(self, all_if_empty(self, dims), correction, keep);
  store(var, v), store(mean, m);
}
ACLNN(aclnnStdMeanCorrection, Tensor self, Ints dims, int64_t correction, bool keep, Tensor std, Tensor mean) {
  const auto [s, m] = at::std_mean(self, all_if_empty(self, dims), correction, keep);
  store(std, s), store(mean, m);
}

ACLNN(aclnnCumsum, Tensor self, int64_t dim, Dtype type, Tensor out) { store(out, at::cumsum(self, dim, type.type)); }
ACLNN(aclnnCumprod, Tensor self, Scalar dim, Dtype type, Tensor out) { store(out, at::cumprod(self, dim.toLong(), type.type)); }
ACLNN(aclnnCummax, Tensor self, int64_t dim, Tensor values, Tensor indices) {
  const auto [best, where] = at::cummax(self, dim);
  store(values, best), store(indices, where);
}
ACLNN(aclnnHistc, Tensor self, int64_t bins, Scalar low, Scalar high, Tensor out) {
  store(out, at::histc(at::isFloatingType(self.scalar_type()) ? self : self.to(at::kDouble), bins, low, high));   // CPU torch: floating only
}
ACLNN(aclnnBincount, Tensor self, Tensor weights, int64_t minimum_length, Tensor out) {
  store(out, at::bincount(self.to(at::kLong), weights.defined() ? std::optional<Tensor>(weights) : std::nullopt, minimum_length));
}

ACLNN(aclnnSoftmax, Tensor self, int64_t dim, Tensor out) { store(out, at::softmax(self, dim, out.scalar_type())); }
ACLNN(aclnnSoftmaxBackward, Tensor grad, Tensor result, int64_t dim, Tensor out) {
  store(out, at::_softmax_backward_data(grad, result, dim, grad.scalar_type()));
}
ACLNN(aclnnLogSoftmax, Tensor self, int64_t dim, Tensor out) { store(out, at::log_softmax(self, dim, out.scalar_type())); }
ACLNN(aclnnLogSoftmaxBackward, Tensor grad, Tensor result, int64_t dim, Tensor out) {
  store(out, at::_log_softmax_backward_data(grad, result, dim, grad.scalar_type()));
}

static std::optional<Tensor> maybe(const Tensor& tensor) {
  return tensor.defined() ? std::optional<Tensor>(tensor) : std::nullopt;
}
ACLNN(aclnnLayerNorm, Tensor self, Ints shape, Tensor weight, Tensor bias, double eps, Tensor out, Tensor mean, Tensor rstd) {
  const auto [result, m, r] = at::native_layer_norm(self, shape, maybe(weight), maybe(bias), eps);
  store(out, result), store(mean, m), store(rstd, r);
}
ACLNN(aclnnLayerNormBackward, Tensor grad, Tensor self, Ints shape, Tensor mean, Tensor rstd, Tensor weight, Tensor bias,
      Bools wanted, Tensor grad_self, Tensor grad_weight, Tensor grad_bias) {
  // CPU torch wants one type throughout; where torch_npu mixes them, that is fp32.
  const bool mixed = (weight.defined() && weight.scalar_type() != self.scalar_type()) || grad.scalar_type() != self.scalar_type();
  const auto type = mixed ? at::kFloat : self.scalar_type();
  const auto same = [&](const Tensor& tensor) { return maybe(tensor.defined() ? tensor.to(type) : tensor); };
  const auto [gs, gw, gb] = at::native_layer_norm_backward(grad.to(type), self.to(type), shape, mean.to(type), rstd.to(type),
      same(weight), same(bias), {wanted[0], wanted[1], wanted[2]});
  if (wanted[0]) store(grad_self, gs);
  if (wanted[1]) store(grad_weight, gw);
  if (wanted[2]) store(grad_bias, gb);
}
// Statistics in fp32, as the hardware keeps them; one reciprocal root per row.
ACLNN(aclnnRmsNorm, Tensor self, Tensor gamma, double eps, Tensor out, Tensor rstd) {
  const auto x = self.to(at::kFloat);
  Ints dims;
  for (int64_t i = 0; i < gamma.dim(); ++i) dims.push_back(self.dim() - 1 - i);
  const auto r = at::rsqrt(at::mean(x * x, dims, true) + eps);
  store(out, x * r * gamma.to(at::kFloat)), store(rstd, r);
}
ACLNN(aclnnRmsNormGrad, Tensor grad, Tensor self, Tensor rstd, Tensor gamma, Tensor grad_self, Tensor grad_gamma) {
  Ints normalised, rows, shape = self.sizes().vec();
  for (int64_t dim = 0; dim < self.dim(); ++dim) (dim < self.dim() - gamma.dim() ? rows : normalised).push_back(dim);
  for (const auto dim : normalised) shape[dim] = 1;
  const auto x = self.to(at::kFloat) * rstd.reshape(shape);
  const auto g = grad.to(at::kFloat) * gamma.to(at::kFloat);
  store(grad_self, (g - x * at::mean(g * x, normalised, true)) * rstd.reshape(shape));
  const auto weighted = grad.to(at::kFloat) * x;
  store(grad_gamma, rows.empty() ? weighted : at::sum(weighted, rows));
}

ACLNN(aclnnNLLLoss, Tensor self, Tensor target, Tensor weight, int64_t reduction, int64_t ignore, Tensor out, Tensor total) {
  const auto [loss, sum] = at::nll_loss_forward(self, target.to(at::kLong), maybe(weight), reduction, ignore);
  store(out, loss), store(total, sum);
}
ACLNN(aclnnNLLLossBackward, Tensor grad, Tensor self, Tensor target, Tensor weight, int64_t reduction, int64_t ignore,
      Tensor total, Tensor out) {
  store(out, at::nll_loss_backward(grad, self, target.to(at::kLong), maybe(weight), reduction, ignore, total));
}
ACLNN(aclnnMseLoss, Tensor self, Tensor target, int64_t reduction, Tensor out) { store(out, at::mse_loss(self, target, reduction)); }
ACLNN(aclnnMseLossBackward, Tensor grad, Tensor self, Tensor target, int64_t reduction, Tensor out) {
  store(out, at::mse_loss_backward(grad, self, target, reduction));
}
