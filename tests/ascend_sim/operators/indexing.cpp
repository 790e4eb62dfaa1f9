// Operators that move elements: concatenation, gather and scatter, sorting, selection, index arithmetic, embedding.
#include "operator.h"

using namespace ascend_sim;

ACLNN(aclnnCat, Tensors parts, int64_t dim, Tensor out) { store(out, at::cat(parts, dim)); }
ACLNN(aclnnStack, Tensors parts, int64_t dim, Tensor out) { store(out, at::stack(parts, dim)); }
ACLNN(aclnnFlip, Tensor self, Ints dims, Tensor out) { store(out, at::flip(self, dims)); }
ACLNN(aclnnRoll, Tensor self, Ints shifts, Ints dims, Tensor out) { store(out, at::roll(self, shifts, dims)); }
ACLNN(aclnnRepeat, Tensor self, Ints repeats, Tensor out) { store(out, self.repeat(repeats)); }
ACLNN(aclnnConstantPadNd, Tensor self, Ints padding, Scalar value, Tensor out) { store(out, at::constant_pad_nd(self, padding, value)); }

ACLNN(aclnnGather, Tensor self, int64_t dim, Tensor index, Tensor out) { store(out, at::gather(self, dim, index.to(at::kLong))); }

// How scatter combines: 0 replaces, 1 adds, 2 multiplies.
static Tensor scatter(const Tensor& self, int64_t dim, const Tensor& index, const Tensor& source, int64_t reduction) {
  TORCH_CHECK(reduction >= 0 && reduction <= 2, "scatter: reduction ", reduction, " is not one of 0, 1, 2");
  const auto at_index = index.to(at::kLong);
  if (reduction == 0) return at::scatter(self, dim, at_index, source);
  return at::scatter(self, dim, at_index, source, reduction == 1 ? "add" : "multiply");
}
static Tensor scatter(const Tensor& self, int64_t dim, const Tensor& index, const Scalar& value, int64_t reduction) {
  return scatter(self, dim, index, at::full(index.sizes(), value, self.options()), reduction);
}
ACLNN(aclnnScatter, Tensor self, int64_t dim, Tensor index, Tensor source, int64_t reduction, Tensor out) {
  store(out, scatter(self, dim, index, source, reduction));
}
ACLNN(aclnnScatterValue, Tensor self, int64_t dim, Tensor index, Scalar value, int64_t reduction, Tensor out) {
  store(out, scatter(self, dim, index, value, reduction));
}
ACLNN(aclnnInplaceScatter, Tensor self, int64_t dim, Tensor index, Tensor source, int64_t reduction) {
  store(self, scatter(self, dim, index, source, reduction));
}
ACLNN(aclnnInplaceScatterValue, Tensor self, int64_t dim, Tensor index, Scalar value, int64_t reduction) {
  store(self, scatter(self, dim, index, value, reduction));
}
ACLNN(aclnnScatterAdd, Tensor self, int64_t dim, Tensor index, Tensor source, Tensor out) {
  store(out, at::scatter_add(self, dim, index.to(at::kLong), source));
}

// torch_npu passes a tensor of no elements for a dimension that is not indexed.
static c10::List<std::optional<Tensor>> index_list(const Tensors& indices) {
  c10::List<std::optional<Tensor>> list;
  for (const auto& index : indices) {
    const bool indexed = index.defined() && index.numel() > 0;
    const bool integer = indexed && index.scalar_type() == at::kInt;
    list.push_back(indexed ? std::optional<Tensor>(integer ? index.to(at::kLong) : index) : std::nullopt);
  }
  return list;
}
ACLNN(aclnnIndex, Tensor self, Tensors indices, Tensor out) {
  if (out.numel() > 0) store(out, at::index(self, index_list(indices)));
}
ACLNN(aclnnIndexPutImpl, Tensor self, Tensors indices, Tensor values, bool accumulate, bool unsafe) {
  // A mask without a true entry comes as positions of which there are none: nothing is written.
  const auto has_elements = [](const Tensor& index) { return index.defined() && index.numel() > 0; };
  if (std::none_of(indices.begin(), indices.end(), has_elements)) return;
  at::_index_put_impl_(self, index_list(indices), values, accumulate, unsafe);
}
ACLNN(aclnnIndexSelect, Tensor self, int64_t dim, Tensor index, Tensor out) { store(out, at::index_select(self, dim, index)); }
ACLNN(aclnnIndexAdd, Tensor self, int64_t dim, Tensor index, Tensor source, Scalar alpha, Tensor out) {
  store(out, at::index_add(self, dim, index, source, alpha));
}
ACLNN(aclnnIndexCopy, Tensor self, int64_t dim, Tensor index, Tensor source, Tensor out) {
  store(out, at::index_copy(self, dim, index.to(at::kLong), source));
}
ACLNN(aclnnInplaceIndexCopy, Tensor self, int64_t dim, Tensor index, Tensor source) {
  store(self, at::index_copy(self, dim, index.to(at::kLong), source));
}
ACLNN(aclnnIndexFill, Tensor self, int64_t dim, Tensor index, Scalar value, Tensor out) {
  store(out, at::index_fill(self, dim, index.to(at::kLong), value));
}
ACLNN(aclnnInplaceIndexFill, Tensor self, int64_t dim, Tensor index, Scalar value) {
  store(self, at::index_fill(self, dim, index.to(at::kLong), value));
}

// Output sizes that depend on the data.
ACLNN(aclnnMaskedSelect, Tensor self, Tensor mask, Dynamic out) { out.fill(at::masked_select(self, mask.to(at::kBool))); }
ACLNN(aclnnNonzero, Tensor self, Dynamic out) { out.fill(at::nonzero(self)); }
ACLNN(aclnnNonzeroV2, Tensor self, Dynamic out) { out.fill(at::nonzero(self).t()); }   // [dimensions, n]
ACLNN(aclnnUnique2, Tensor self, bool sorted, bool return_inverse, bool return_counts, Dynamic values, Tensor inverse, Dynamic counts) {
  const auto [unique, positions, numbers] = at::_unique2(self, sorted, return_inverse, return_counts);
  values.fill(unique);
  if (return_inverse) store(inverse, positions);
  if (return_counts) counts.fill(numbers);
}

ACLNN(aclnnTopk, Tensor self, int64_t k, int64_t dim, bool largest, bool sorted, Tensor values, Tensor indices) {
  const auto [best, where] = at::topk(self, k, dim, largest, sorted);
  store(values, best), store(indices, where);
}
ACLNN(aclnnSort, Tensor self, bool stable, int64_t dim, bool descending, Tensor values, Tensor indices) {
  const auto [sorted, where] = at::sort(self, stable, dim, descending);
  store(values, sorted), store(indices, where);
}
ACLNN(aclnnSearchSorted, Tensor sorted, Tensor self, bool int32, bool right, Tensor sorter, Tensor out) {
  store(out, at::searchsorted(sorted, self, int32, right, std::nullopt, sorter.defined() ? std::optional<Tensor>(sorter) : std::nullopt));
}
ACLNN(aclnnSearchSorteds, Tensor sorted, Scalar self, bool int32, bool right, Tensor sorter, Tensor out) {
  store(out, at::searchsorted(sorted, self, int32, right, std::nullopt, sorter.defined() ? std::optional<Tensor>(sorter) : std::nullopt));
}
ACLNN(aclnnIsInTensorScalar, Tensor elements, Scalar value, bool unique, bool invert, Tensor out) {
  store(out, at::isin(elements, value, unique, invert));
}

ACLNN(aclnnTriu, Tensor self, int64_t diagonal, Tensor out) { store(out, at::triu(self, diagonal)); }
ACLNN(aclnnTril, Tensor self, int64_t diagonal, Tensor out) { store(out, at::tril(self, diagonal)); }
ACLNN(aclnnInplaceTriu, Tensor self, int64_t diagonal) { store(self, at::triu(self, diagonal)); }
ACLNN(aclnnInplaceTril, Tensor self, int64_t diagonal) { store(self, at::tril(self, diagonal)); }
ACLNN(aclnnArange, Scalar start, Scalar end, Scalar step, Tensor out) { store(out, at::arange(start, end, step, out.options())); }
ACLNN(aclnnRange, Scalar start, Scalar end, Scalar step, Tensor out) { store(out, at::range(start, end, step, out.options())); }
ACLNN(aclnnLinspace, Scalar start, Scalar end, int64_t steps, Tensor out) { store(out, at::linspace(start, end, steps, out.options())); }
ACLNN(aclnnEye, int64_t rows, int64_t columns, Tensor out) { store(out, at::eye(rows, columns, out.options())); }
ACLNN(aclnnOneHot, Tensor self, int64_t depth, Tensor on, Tensor off, int64_t axis, Tensor out) {
  const auto hot = at::eq(self.unsqueeze(-1), at::arange(depth, self.options()));
  const auto values = at::where(hot, on.reshape({}), off.reshape({}));
  store(out, axis == -1 || axis == self.dim() ? values : values.movedim(-1, axis));
}

// repeat_interleave: of the flattened tensor or along one dimension, with one number or a number for each element.
ACLNN(aclnnRepeatInterleave, Tensor self, Tensor repeats, int64_t size, Tensor out) {
  store(out, at::repeat_interleave(self, repeats.to(at::kLong), std::nullopt, size));
}
ACLNN(aclnnRepeatInterleaveWithDim, Tensor self, Tensor repeats, int64_t dim, int64_t size, Tensor out) {
  store(out, at::repeat_interleave(self, repeats.to(at::kLong), dim, size));
}
ACLNN(aclnnRepeatInterleaveInt, Tensor self, int64_t repeats, int64_t size, Tensor out) {
  store(out, at::repeat_interleave(self, repeats, std::nullopt, size));
}
ACLNN(aclnnRepeatInterleaveIntWithDim, Tensor self, int64_t repeats, int64_t dim, int64_t size, Tensor out) {
  store(out, at::repeat_interleave(self, repeats, dim, size));
}
ACLNN(aclnnRepeatInterleaveTensor, Tensor repeats, int64_t size, Tensor out) {
  store(out, at::repeat_interleave(repeats.to(at::kLong), std::optional<int64_t>(size)));
}
ACLNN(aclnnRepeatInterleaveGrad, Tensor grad, Tensor repeats, int64_t dim, Tensor out) {
  const auto each = repeats.numel() == 1 ? repeats.to(at::kLong).reshape({1}).expand({out.size(dim)}) : repeats.to(at::kLong);
  const auto index = at::repeat_interleave(each.contiguous());
  store(out, at::zeros(out.sizes(), grad.options()).index_add_(dim, index, grad));
}

ACLNN(aclnnEmbedding, Tensor weight, Tensor indices, Tensor out) { store(out, at::embedding(weight, indices)); }
ACLNN(aclnnEmbeddingDenseBackward, Tensor grad, Tensor indices, int64_t rows, int64_t padding, bool by_frequency, Tensor out) {
  store(out, at::embedding_dense_backward(grad, indices, rows, padding, by_frequency));
}
