// Matrix products, among them the grouped ones that experts use.
#include "operator.h"

using namespace ascend_sim;

// For x^T @ grad, which is how torch_npu asks for the gradient of a linear layer's weight, CPU torch computes
// (grad^T @ x)^T: the same sums, but BLAS rounds them differently. The order of CPU torch makes both equal bit for bit.
static Tensor product(const Tensor& self, const Tensor& other) {
  const bool transposed = self.dim() == 2 && other.dim() == 2 && self.t().is_contiguous() && !self.is_contiguous();
  return transposed && other.is_contiguous() ? at::mm(other.t(), self.t()).t() : at::matmul(self, other);
}

// The int8_t at the end is the precision mode of the matrix unit: products here are computed in the type they come in.
ACLNN(aclnnMatmul, Tensor self, Tensor other, Tensor out, int8_t mode) { (void)mode; store(out, product(self, other)); }
ACLNN(aclnnMm, Tensor self, Tensor other, Tensor out, int8_t mode) { (void)mode; store(out, at::mm(self, other)); }
ACLNN(aclnnMv, Tensor self, Tensor vector, Tensor out, int8_t mode) { (void)mode; store(out, at::mv(self, vector)); }
ACLNN(aclnnBatchMatMul, Tensor self, Tensor other, Tensor out, int8_t mode) { (void)mode; store(out, at::matmul(self, other)); }
ACLNN(aclnnDot, Tensor self, Tensor other, Tensor out) { store(out, at::dot(self, other)); }
ACLNN(aclnnAddmm, Tensor self, Tensor a, Tensor b, Scalar beta, Scalar alpha, Tensor out, int8_t mode) {
  (void)mode;
  store(out, at::addmm(self, a, b, beta, alpha));
}
ACLNN(aclnnInplaceAddmm, Tensor self, Tensor a, Tensor b, Scalar beta, Scalar alpha, int8_t mode) {
  (void)mode;
  store(self, at::addmm(self, a, b, beta, alpha));
}
ACLNN(aclnnBaddbmm, Tensor self, Tensor a, Tensor b, Scalar beta, Scalar alpha, Tensor out, int8_t mode) {
  (void)mode;
  store(out, at::baddbmm(self, a, b, beta, alpha));
}
ACLNN(aclnnAddbmm, Tensor self, Tensor a, Tensor b, Scalar beta, Scalar alpha, Tensor out, int8_t mode) {
  (void)mode;
  store(out, at::addbmm(self, a, b, beta, alpha));
}
ACLNN(aclnnAddmv, Tensor self, Tensor matrix, Tensor vector, Scalar alpha, Scalar beta, Tensor out, int8_t mode) {
  (void)mode;
  store(out, at::addmv(self, matrix, vector, beta, alpha));
}
ACLNN(aclnnAddr, Tensor self, Tensor a, Tensor b, Scalar beta, Scalar alpha, Tensor out) { store(out, at::addr(self, a, b, beta, alpha)); }

namespace {

enum GroupAxis : int64_t { kNoSplit = -1, kRows = 0, kInner = 2 };
enum GroupList : int64_t { kCumulative = 0, kCounts = 1 };

struct GroupedProduct {
  Tensors x, weight, bias, out;
  std::optional<Ints> list;   // none: one group for each x
  int64_t axis = kNoSplit, list_type = kCumulative;
};

// Where each group ends.
Ints group_ends(const Ints& list, int64_t list_type) {
  TORCH_CHECK(list_type == kCumulative || list_type == kCounts, "group_list_type ", list_type, " is not one of 0 (cumulative), 1 (counts)");
  Ints ends;
  int64_t last = 0;
  for (const auto entry : list) {
    const auto end = list_type == kCounts ? last + entry : entry;
    TORCH_CHECK(end >= last, "the group list falls from ", last, " to ", end);
    ends.push_back(last = end);
  }
  return ends;
}

Ints values_of(const Tensor& list) {
  const auto flat = list.to(at::kLong).contiguous();
  return {flat.data_ptr<int64_t>(), flat.data_ptr<int64_t>() + flat.numel()};
}

Tensor nth(const Tensors& tensors, int64_t n, int64_t group_dimensions) {
  if (tensors.size() == 1 && tensors[0].dim() == group_dimensions) return tensors[0].select(0, n);
  return tensors.at(tensors.size() == 1 ? 0 : n);
}

Tensor with_bias(const GroupedProduct& g, const Tensor& product, int64_t n) {
  return g.bias.empty() ? product : product + nth(g.bias, n, 2).to(product.scalar_type());
}

// Rows of x are split over the groups; each group has its own weight.
void split_rows(const GroupedProduct& g, const Ints& ends) {
  int64_t begin = 0, limit = 0;
  for (const auto& x : g.x) limit += x.size(0);
  TORCH_CHECK(ends.empty() || ends.back() <= limit, "the groups end at row ", ends.back(), ", x has ", limit);
  const auto x = g.x.size() == 1 ? g.x[0] : at::cat(g.x);
  for (size_t n = 0; n < ends.size(); ++n) {
    const auto product = with_bias(g, at::mm(x.slice(0, begin, ends[n]), nth(g.weight, n, 3)), n);
    store(g.out.size() == 1 ? g.out[0].slice(0, begin, ends[n]) : g.out.at(n), product);
    begin = ends[n];
  }
}

// The inner dimension is split: out[n] = x[:, group n] @ weight[group n, :]. A group of no columns gives zeros.
void split_inner(const GroupedProduct& g, const Ints& ends) {
  int64_t begin = 0;
  for (size_t n = 0; n < ends.size(); ++n) {
    const auto product = at::mm(g.x.at(0).slice(1, begin, ends[n]), g.weight.at(0).slice(0, begin, ends[n]));
    store(g.out.size() == 1 ? g.out[0].select(0, n) : g.out.at(n), product);
    begin = ends[n];
  }
}

void grouped_product(const GroupedProduct& g) {
  if (!g.list) {
    const auto groups = g.weight.size() == 1 && g.weight[0].dim() == 3 ? g.weight[0].size(0) : static_cast<int64_t>(g.weight.size());
    TORCH_CHECK(static_cast<int64_t>(g.x.size()) == groups, "without a group list there are ", groups, " weights for ", g.x.size(), " inputs");
    int64_t begin = 0;
    for (size_t n = 0; n < g.x.size(); ++n) {
      const auto product = with_bias(g, at::matmul(g.x[n], nth(g.weight, n, 3)), n);
      const auto end = begin + g.x[n].size(0);
      store(g.out.size() == 1 && g.x.size() > 1 ? g.out[0].slice(0, begin, end) : g.out.at(n), product);
      begin = end;
    }
    return;
  }
  const auto ends = group_ends(*g.list, g.list_type);
  if (g.axis == kInner) return split_inner(g, ends);
  TORCH_CHECK(g.axis == kRows || g.axis == kNoSplit, "group_type ", g.axis, " is not one of -1, 0, 2");
  split_rows(g, ends);
}

void refuse_quantisation(std::initializer_list<const Tensors*> lists, int64_t activation) {
  for (const auto* list : lists) TORCH_CHECK(list->empty(), "quantised grouped products are not simulated");
  TORCH_CHECK(activation == 0, "a grouped product with activation ", activation, " is not simulated");
}

}  // namespace

// The group list comes from the host.
ACLNN(aclnnGroupedMatmul, Tensors x, Tensors weight, Tensors bias, Tensors scale, Tensors offset, Tensors antiquant_scale,
      Tensors antiquant_offset, Ints groups, int64_t split_item, Tensors out) {
  (void)split_item;   // torch_npu has shaped `out` by it
  refuse_quantisation({&scale, &offset, &antiquant_scale, &antiquant_offset}, 0);
  grouped_product({x, weight, bias, out, groups.empty() ? std::nullopt : std::optional<Ints>(groups), kRows, kCumulative});
}

// The group list is a tensor on the device; it is read when the operator runs.
ACLNN(aclnnGroupedMatmulV4, Tensors x, Tensors weight, Tensors bias, Tensors scale, Tensors offset, Tensors antiquant_scale,
      Tensors antiquant_offset, Tensors token_scale, Tensor groups, Tensors act_input, Tensors act_scale, Tensors act_offset,
      int64_t split_item, int64_t axis, int64_t list_type, int64_t activation, Tensors out, Tensors act_out, Tensors scale_out) {
  (void)split_item;
  refuse_quantisation({&scale, &offset, &antiquant_scale, &antiquant_offset, &token_scale, &act_input, &act_scale, &act_offset,
                       &act_out, &scale_out}, activation);
  grouped_product({x, weight, bias, out, groups.defined() ? std::optional<Ints>(values_of(groups)) : std::nullopt, axis, list_type});
}
ACLNN(aclnnGroupedMatmulV5, Tensors x, Tensors weight, Tensors bias, Tensors scale, Tensors offset, Tensors antiquant_scale,
      Tensors antiquant_offset, Tensors token_scale, Tensor groups, Tensors act_input, Tensors act_scale, Tensors act_offset,
      int64_t split_item, int64_t axis, int64_t list_type, int64_t activation, Ints tuning, Tensors out, Tensors act_out,
      Tensors scale_out) {
  (void)split_item, (void)tuning;
  refuse_quantisation({&scale, &offset, &antiquant_scale, &antiquant_offset, &token_scale, &act_input, &act_scale, &act_offset,
                       &act_out, &scale_out}, activation);
  grouped_product({x, weight, bias, out, groups.defined() ? std::optional<Ints>(values_of(groups)) : std::nullopt, axis, list_type});
}

// out[n] += x[group n]^T @ weight[group n], accumulated in the type of out (the gradient of the experts' weights).
ACLNN(aclnnGroupedMatmulAdd, Tensor x, Tensor weight, Tensor groups, Tensor out, bool transpose_x, bool transpose_weight, int64_t axis) {
  TORCH_CHECK(transpose_x && !transpose_weight && axis == kInner,
              "grouped_matmul_add is simulated for transpose_x=True, transpose_weight=False, group_type=2");
  const auto ends = group_ends(values_of(groups), kCumulative);
  const auto per_group = out.view({static_cast<int64_t>(ends.size()), x.size(1), weight.size(1)});
  int64_t begin = 0;
  for (size_t n = 0; n < ends.size(); ++n) {
    const auto rows = x.slice(0, begin, ends[n]).to(out.scalar_type()), columns = weight.slice(0, begin, ends[n]).to(out.scalar_type());
    per_group.select(0, n).add_(at::mm(rows.t(), columns));
    begin = ends[n];
  }
}
