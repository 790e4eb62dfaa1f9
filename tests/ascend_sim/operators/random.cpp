// Random numbers and dropout. A draw depends on the seed and the offset that torch_npu passes and on nothing else, so the
// same seed gives the same numbers in every run; they are not the numbers that the hardware draws.
#include "operator.h"

#include <ATen/CPUGeneratorImpl.h>

using namespace ascend_sim;

static at::Generator generator(uint64_t seed, uint64_t offset) {
  uint64_t mixed = seed + 0x9E3779B97F4A7C15ull * (offset + 1);   // splitmix64: neighbouring offsets give unrelated streams
  mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9ull;
  mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EBull;
  return at::make_generator<at::CPUGeneratorImpl>(mixed ^ (mixed >> 31));
}

// Drawn contiguous and then stored: the strides of the output do not change the numbers.
template <typename Draw> static void drawn(const Tensor& out, Draw draw) {
  auto values = at::empty(out.sizes(), out.options());
  draw(values);
  store(out, values);
}

ACLNN(aclnnInplaceUniform, Tensor self, double low, double high, uint64_t seed, uint64_t offset) {
  drawn(self, [&](Tensor& values) { values.uniform_(low, high, generator(seed, offset)); });
}
ACLNN(aclnnInplaceNormal, Tensor self, float mean, float deviation, int64_t seed, int64_t offset) {
  drawn(self, [&](Tensor& values) { values.normal_(mean, deviation, generator(seed, offset)); });
}
ACLNN(aclnnNormalFloatFloat, float mean, float deviation, int64_t seed, int64_t offset, Tensor out) {
  drawn(out, [&](Tensor& values) { values.normal_(mean, deviation, generator(seed, offset)); });
}
ACLNN(aclnnNormalTensorFloat, Tensor mean, float deviation, int64_t seed, int64_t offset, Tensor out) {
  drawn(out, [&](Tensor& values) { values.normal_(0, deviation, generator(seed, offset)).add_(mean); });
}
ACLNN(aclnnNormalFloatTensor, float mean, Tensor deviation, int64_t seed, int64_t offset, Tensor out) {
  drawn(out, [&](Tensor& values) { values.normal_(0, 1, generator(seed, offset)).mul_(deviation).add_(mean); });
}
ACLNN(aclnnNormalTensorTensor, Tensor mean, Tensor deviation, int64_t seed, int64_t offset, Tensor out) {
  drawn(out, [&](Tensor& values) { values.normal_(0, 1, generator(seed, offset)).mul_(deviation).add_(mean); });
}
ACLNN(aclnnInplaceRandom, Tensor self, int64_t low, int64_t high, int64_t seed, int64_t offset) {
  drawn(self, [&](Tensor& values) { values.random_(low, high, generator(seed, offset)); });
}
ACLNN(aclnnInplaceBernoulli, Tensor self, Scalar p, int64_t seed, int64_t offset) {
  drawn(self, [&](Tensor& values) { values.bernoulli_(p.toDouble(), generator(seed, offset)); });
}
ACLNN(aclnnInplaceBernoulliTensor, Tensor self, Tensor p, int64_t seed, int64_t offset) {
  drawn(self, [&](Tensor& values) { values.bernoulli_(p, generator(seed, offset)); });
}
ACLNN(aclnnRandperm, int64_t n, int64_t seed, int64_t offset, Tensor out) {
  store(out, at::randperm(n, generator(seed, offset), at::TensorOptions().dtype(at::kLong)));
}
ACLNN(aclnnMultinomial, Tensor self, int64_t samples, bool replacement, int64_t seed, int64_t offset, Tensor out) {
  store(out, at::multinomial(self, samples, replacement, generator(seed, offset)));
}

// The dropout mask: one bit for each element, first element in the lowest bit of the first byte; 1 keeps it. The mask is
// padded to whole blocks of 128 bits.
static void draw_mask(const Ints& shape, double drop, uint64_t seed, uint64_t offset, const Tensor& mask) {
  const auto elements = c10::multiply_integers(shape);
  TORCH_CHECK(mask.numel() * 8 >= elements, "a dropout mask of ", mask.numel(), " bytes is too small for ", elements, " elements");
  const auto kept = at::empty({elements}, at::kBool).bernoulli_(1 - drop, generator(seed, offset));
  const auto packed = at::zeros({mask.numel()}, at::kByte);
  const auto* keep = kept.data_ptr<bool>();
  auto* bytes = packed.data_ptr<uint8_t>();
  for (int64_t i = 0; i < elements; ++i) bytes[i / 8] |= static_cast<uint8_t>(keep[i]) << (i % 8);
  store(mask, packed);
}
ACLNN(aclnnDropoutGenMask, Ints shape, double drop, int64_t seed, int64_t offset, Tensor mask) {
  draw_mask(shape, drop, seed, offset, mask);
}
ACLNN(aclnnDropoutGenMaskV2, Ints shape, double drop, int64_t seed, int64_t offset, Dtype type, Tensor mask) {
  (void)type;
  draw_mask(shape, drop, seed, offset, mask);
}
ACLNN(aclnnDropoutDoMask, Tensor self, Tensor mask, double drop, Tensor out) {
  const auto packed = mask.contiguous(), kept = at::empty(self.sizes(), at::kBool);
  const auto* bytes = static_cast<const uint8_t*>(packed.const_data_ptr());
  auto* keep = kept.data_ptr<bool>();
  for (int64_t i = 0; i < kept.numel(); ++i) keep[i] = bytes[i / 8] >> (i % 8) & 1;
  store(out, drop < 1 ? self * kept.to(self.scalar_type()) * (1 / (1 - drop)) : at::zeros_like(self));
}
