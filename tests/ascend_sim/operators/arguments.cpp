// aclCreate* / aclDestroy*: the argument objects, and the step from an object to a torch tensor.
#include "operator.h"

#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>

#define SIM_API extern "C" __attribute__((visibility("default")))

// Both live in libraries that libtorch_cpu brings along; they set the number of threads of the calling thread only.
extern "C" void omp_set_num_threads(int) __attribute__((weak));
extern "C" int MKL_Set_Num_Threads_Local(int) __attribute__((weak));
extern "C" int aclrtSynchronizeStream(aclrtStream);

namespace ascend_sim {

constexpr int kParameterInvalid = 161002;   // what CANN returns for arguments that an operator does not take
constexpr int kKernelFailed = 507015;       // what a stream returns after a kernel ended in an exception

at::ScalarType scalar_type_of(int acl_type) {
  switch (acl_type) {
    case 0: return at::kFloat;
    case 1: return at::kHalf;
    case 2: return at::kChar;
    case 3: return at::kInt;
    case 4: return at::kByte;
    case 6: return at::kShort;
    case 7: return at::kUInt16;
    case 8: return at::kUInt32;
    case 9: return at::kLong;
    case 10: return at::kUInt64;
    case 11: return at::kDouble;
    case 12: return at::kBool;
    case 16: return at::kComplexFloat;
    case 17: return at::kComplexDouble;
    case 27: return at::kBFloat16;
  }
  TORCH_CHECK(false, "data type ", acl_type, " is not supported by the simulation");
}

void require_kind(const void* object, AclKind wanted) {
  static const char* const names[] = {"tensor", "scalar", "int array", "float array", "bool array", "tensor list", "scalar list"};
  if (!object) return;
  const auto name = [&](AclKind kind) -> const char* {
    const auto index = static_cast<uint32_t>(kind) - static_cast<uint32_t>(AclKind::tensor);
    return index < 7 ? names[index] : "unknown object";
  };
  const auto found = *static_cast<const AclKind*>(object);
  TORCH_CHECK(found == wanted, "an argument is a ", name(found), " where the simulated operator takes a ", name(wanted));
}

Tensor tensor_over(const AclView& view) {
  return at::from_blob(kernel_view(view.first_element), view.shape, view.strides,
                       at::TensorOptions().dtype(scalar_type_of(view.acl_type)));
}

void Dynamic::fill(const Tensor& result) const {
  const auto out = tensor_over(*view);
  TORCH_CHECK(result.numel() <= out.numel(), "the result has ", result.numel(), " elements, the output only ", out.numel());
  out.reshape({-1}).narrow(0, 0, result.numel()).copy_(result.reshape({-1}));
  view->shape = result.sizes().vec();
}

void store(const Tensor& out, const Tensor& result) {
  if (!out.defined()) return;
  if (out.sizes() == result.sizes()) {
    out.copy_(result);
    return;
  }
  const auto without_ones = [](at::IntArrayRef sizes) {
    Ints kept;
    for (const auto size : sizes)
      if (size != 1) kept.push_back(size);
    return kept;
  };
  TORCH_CHECK(without_ones(out.sizes()) == without_ones(result.sizes()),
              "the result has shape ", result.sizes(), ", the output ", out.sizes());
  out.copy_(result.reshape(out.sizes()));
}

int refuse(const char* name, const std::string& reason) {
  return fail(kParameterInvalid, std::string("simulated ") + name + ": " + reason);
}

// One thread per stream is what a device queue is; the thread count of the host code stays what it was.
static void use_one_thread() {
  thread_local const bool done = [] {
    at::get_num_threads();   // torch sets this thread's default first, lazily
    if (omp_set_num_threads) omp_set_num_threads(1);
    if (MKL_Set_Num_Threads_Local) MKL_Set_Num_Threads_Local(1);
    return true;
  }();
  (void)done;
}

static void run_kernel(const std::string& name, const std::function<void()>& run) {
  use_one_thread();
  c10::InferenceMode no_autograd;
  try {
    run();
  } catch (const DeviceError&) {
    throw;
  } catch (const c10::Error& error) {
    throw DeviceError(kKernelFailed, "simulated " + name + " failed on the device: " + error.what_without_backtrace());
  } catch (const std::exception& error) {
    throw DeviceError(kKernelFailed, "simulated " + name + " failed on the device: " + error.what());
  }
}

int launch(aclOpExecutor* executor, aclrtStream stream) {
  if (!executor) return fail(kParameterInvalid, "an aclnn operator was launched without an executor");
  const std::unique_ptr<aclOpExecutor> owned(executor);   // an executor is used once
  Task task;
  task.kind = Kind::kernel;
  task.name = owned->name;
  task.run = [name = owned->name, run = std::move(owned->run)] { run_kernel(name, run); };
  enqueue(stream, std::move(task));
  return owned->waits ? aclrtSynchronizeStream(stream) : 0;
}

}  // namespace ascend_sim

SIM_API aclTensor* aclCreateTensor(const int64_t* shape, uint64_t dimensions, int type, const int64_t* strides,
                                   int64_t offset, int /*format*/, const int64_t* /*storage*/, uint64_t, void* data) {
  auto view = std::make_shared<AclView>();
  view->shape.assign(shape, shape + dimensions);
  view->strides.assign(strides, strides + dimensions);
  view->acl_type = type;
  try {
    const auto size = static_cast<int64_t>(c10::elementSize(ascend_sim::scalar_type_of(type)));
    view->first_element = data ? static_cast<char*>(data) + offset * size : nullptr;
  } catch (const c10::Error& error) {
    ascend_sim::refuse("aclCreateTensor", error.what_without_backtrace());
    return nullptr;
  }
  return new aclTensor{AclKind::tensor, std::move(view)};
}

SIM_API aclScalar* aclCreateScalar(void* value, int type) {
  try {
    const auto options = at::TensorOptions().dtype(ascend_sim::scalar_type_of(type));
    c10::InferenceMode no_autograd;
    return new aclScalar{AclKind::scalar, at::from_blob(value, {}, options).item()};
  } catch (const c10::Error& error) {
    ascend_sim::refuse("aclCreateScalar", error.what_without_backtrace());
    return nullptr;
  }
}

SIM_API aclIntArray* aclCreateIntArray(const int64_t* values, uint64_t n) {
  return new aclIntArray{AclKind::ints, std::vector<int64_t>(values, values + n)};
}
SIM_API aclFloatArray* aclCreateFloatArray(const float* values, uint64_t n) {
  return new aclFloatArray{AclKind::floats, std::vector<float>(values, values + n)};
}
SIM_API aclBoolArray* aclCreateBoolArray(const bool* values, uint64_t n) {
  return new aclBoolArray{AclKind::bools, std::vector<bool>(values, values + n)};
}

SIM_API aclTensorList* aclCreateTensorList(const aclTensor* const* tensors, uint64_t n) {
  auto* list = new aclTensorList;
  for (uint64_t i = 0; i < n; ++i) {
    list->views.push_back(tensors[i] ? tensors[i]->view : nullptr);
    delete tensors[i];   // the list owns its tensors: torch_npu destroys the list alone
  }
  return list;
}

SIM_API aclScalarList* aclCreateScalarList(const aclScalar* const* scalars, uint64_t n) {
  auto* list = new aclScalarList;
  for (uint64_t i = 0; i < n; ++i) {
    list->values.push_back(scalars[i]->value);
    delete scalars[i];
  }
  return list;
}

SIM_API int aclDestroyTensor(const aclTensor* object) { delete object; return 0; }
SIM_API int aclDestroyScalar(const aclScalar* object) { delete object; return 0; }
SIM_API int aclDestroyIntArray(const aclIntArray* object) { delete object; return 0; }
SIM_API int aclDestroyFloatArray(const aclFloatArray* object) { delete object; return 0; }
SIM_API int aclDestroyBoolArray(const aclBoolArray* object) { delete object; return 0; }
SIM_API int aclDestroyTensorList(const aclTensorList* object) { delete object; return 0; }
SIM_API int aclDestroyScalarList(const aclScalarList* object) { delete object; return 0; }
SIM_API int aclDestroyAclOpExecutor(aclOpExecutor* executor) { delete executor; return 0; }

// The caller frees the array with delete[]. Called after the stream was synchronised, so that the shape is final.
SIM_API int aclGetViewShape(const aclTensor* tensor, int64_t** shape, uint64_t* dimensions) {
  const auto& sizes = tensor->view->shape;
  *shape = new int64_t[sizes.size()];
  std::copy(sizes.begin(), sizes.end(), *shape);
  *dimensions = sizes.size();
  return 0;
}
