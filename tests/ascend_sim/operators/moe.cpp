// The fused operators that bring tokens into the order of their experts and back.
//
// `sorted_indices` (int32, one for each token and choice) says where the token of that choice stands after permutation:
// the inverse of the stable sort by expert.
#include "operator.h"

using namespace ascend_sim;

namespace {

// The choices whose place lies among the `kept` rows (tokens beyond the capacity are dropped), and their places.
struct Kept { Tensor choices, places; };
Kept kept_choices(const Tensor& sorted_indices, int64_t kept) {
  const auto places = sorted_indices.to(at::kLong);
  const auto choices = at::nonzero(places < kept).squeeze(1);
  return {choices, places.index_select(0, choices)};
}

void refuse_padding(bool padded) { TORCH_CHECK(!padded, "padded mode of the token permutation is not simulated"); }

}  // namespace

// tokens [T, H], experts [T, K] or [T] -> permuted [kept, H], sorted_indices [T * K]
ACLNN(aclnnMoeTokenPermute, Tensor tokens, Tensor experts, int64_t kept, bool padded, Tensor permuted, Tensor sorted_indices) {
  refuse_padding(padded);
  const auto choices = experts.dim() == 1 ? 1 : experts.size(1);
  const auto order = at::argsort(experts.reshape({-1}), /*stable=*/true, /*dim=*/0, /*descending=*/false);
  const auto place = at::empty_like(order).scatter_(0, order, at::arange(order.numel(), order.options()));
  store(sorted_indices, place);
  store(permuted, tokens.index_select(0, at::floor_divide(order.slice(0, 0, kept), choices)));
}

// grad [kept, H] -> grad_tokens [T, H]: the sum over a token's choices, in fp32
ACLNN(aclnnMoeTokenPermuteGrad, Tensor grad, Tensor sorted_indices, int64_t choices, bool padded, Tensor grad_tokens) {
  refuse_padding(padded);
  const auto kept = kept_choices(sorted_indices, grad.size(0));
  const auto sum = at::zeros(grad_tokens.sizes(), grad.options().dtype(at::kFloat));
  sum.index_add_(0, at::floor_divide(kept.choices, choices), grad.index_select(0, kept.places).to(at::kFloat));
  store(grad_tokens, sum);
}

// permuted [N, H], probs [T, K] or none (K = 1) -> out [T, H]: the sum of a token's choices, weighted, in fp32
ACLNN(aclnnMoeTokenUnpermute, Tensor permuted, Tensor sorted_indices, Tensor probs, bool padded, Ints restore_shape, Tensor out) {
  (void)restore_shape;   // for the padded mode
  refuse_padding(padded);
  const auto choices = probs.defined() ? probs.size(1) : 1;
  const auto kept = kept_choices(sorted_indices, permuted.size(0));
  auto rows = permuted.index_select(0, kept.places).to(at::kFloat);
  if (probs.defined()) rows = rows * probs.reshape({-1}).index_select(0, kept.choices).to(at::kFloat).unsqueeze(1);
  const auto sum = at::zeros(out.sizes(), permuted.options().dtype(at::kFloat));
  store(out, sum.index_add_(0, at::floor_divide(kept.choices, choices), rows));
}

ACLNN(aclnnMoeTokenUnpermuteGrad, Tensor permuted, Tensor grad, Tensor sorted_indices, Tensor probs, bool padded,
      Ints restore_shape, Tensor grad_permuted, Tensor grad_probs) {
  (void)restore_shape;
  refuse_padding(padded);
  const auto choices = probs.defined() ? probs.size(1) : 1;
  const auto kept = kept_choices(sorted_indices, grad_permuted.size(0));
  const auto incoming = grad.index_select(0, at::floor_divide(kept.choices, choices)).to(at::kFloat);
  const auto outgoing = at::zeros(grad_permuted.sizes(), incoming.options());
  if (!probs.defined()) {
    store(grad_permuted, outgoing.index_copy_(0, kept.places, incoming));
    return;
  }
  const auto weights = probs.reshape({-1}).index_select(0, kept.choices).to(at::kFloat).unsqueeze(1);
  store(grad_permuted, outgoing.index_copy_(0, kept.places, incoming * weights));
  const auto products = at::sum(incoming * permuted.index_select(0, kept.places).to(at::kFloat), Ints{1});
  store(grad_probs, at::zeros({probs.numel()}, incoming.options()).index_copy_(0, kept.choices, products).reshape(probs.sizes()));
}
