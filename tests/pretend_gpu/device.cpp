// A pretend GPU: a device of torch's PrivateUse1 kind whose memory is the host's and whose numbers the CPU computes.
//
// It is strict where CUDA is strict: what mixes its tensors with tensors of the host raises, but for single numbers; `.numpy()` of its
// tensors raises; its random numbers come from a generator of its own.  Of speed it says nothing.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/autocast_mode.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/transformers/attention.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>

#include <cstdlib>
#include <cstring>

namespace pretend {

constexpr auto kPretend = c10::DeviceType::PrivateUse1;
const c10::Device kDevice(kPretend, 0);
const c10::DispatchKeySet kKeys(c10::DispatchKey::PrivateUse1);

bool is_pretend(const at::Tensor& tensor) { return tensor.device().type() == kPretend; }

// Memory ------------------------------------------------------------------------------------------------------------------------

struct Allocator final : c10::Allocator {
  static void release(void* memory) { free(memory); }
  c10::DataPtr allocate(size_t bytes) override {
    void* memory = nullptr;
    TORCH_CHECK(bytes == 0 || posix_memalign(&memory, 64, bytes) == 0, "out of memory");
    return {memory, memory, &release, kDevice};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t bytes) const override { memcpy(to, from, bytes); }
};
Allocator allocator;

// The same memory as a tensor of the CPU.
at::Tensor on_cpu(const at::Tensor& tensor) {
  if (!is_pretend(tensor)) return tensor;
  auto options = at::TensorOptions().dtype(tensor.dtype()).device(c10::kCPU);
  if (tensor.numel() == 0) return at::empty_strided(tensor.sizes(), tensor.strides(), options);
  auto kept_alive = tensor.storage();
  return at::from_blob(tensor.mutable_data_ptr(), tensor.sizes(), tensor.strides(), [kept_alive](void*) {}, options);
}

// Random numbers ----------------------------------------------------------------------------------------------------------------

struct Generator final : at::CPUGeneratorImpl {
  Generator() { device_ = kDevice; key_set_ = kKeys; }
};
at::Generator& device_generator() {
  static at::Generator generator = at::make_generator<Generator>();
  return generator;
}
// The CPU's kernels insist on a generator of the CPU: this one takes over the device's state and hands it back.
at::Generator& generator_of_kernels() {
  static at::Generator generator = at::make_generator<at::CPUGeneratorImpl>();
  return generator;
}

// What torch asks of a device ---------------------------------------------------------------------------------------------------

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override { return device_generator(); }
  at::Generator getNewGenerator(c10::DeviceIndex) const override { return at::make_generator<Generator>(); }
  at::Allocator* getPinnedMemoryAllocator() const override { return c10::GetAllocator(c10::DeviceType::CPU); }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t bytes) const override {
    auto* old = storage.unsafeGetStorageImpl();
    auto memory = allocator.allocate(bytes);
    memcpy(memory.get(), old->data(), std::min(bytes, old->nbytes()));
    old->set_data_ptr_noswap(std::move(memory));
    old->set_nbytes(bytes);
  }
};

struct Guard final : c10::impl::DeviceGuardImplInterface {  // one device, one stream, nothing to wait for
  c10::DeviceType type() const override { return kPretend; }
  c10::Device exchangeDevice(c10::Device) const override { return kDevice; }
  c10::Device getDevice() const override { return kDevice; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device device) const override { return c10::Stream(c10::Stream::DEFAULT, device); }
  c10::Stream getNewStream(c10::Device device, int) const override { return c10::Stream(c10::Stream::DEFAULT, device); }
  c10::Stream exchangeStream(c10::Stream stream) const override { return stream; }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard)

// Operators that make tensors, view them and carry them over --------------------------------------------------------------------

using MaybeDtype = std::optional<c10::ScalarType>;
using MaybeLayout = std::optional<c10::Layout>;
using MaybeDevice = std::optional<c10::Device>;

at::Tensor empty(c10::IntArrayRef size, MaybeDtype dtype, MaybeLayout, MaybeDevice, std::optional<bool>, std::optional<c10::MemoryFormat> format) {
  return at::detail::empty_generic(size, &allocator, kKeys, c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride, MaybeDtype dtype, MaybeLayout, MaybeDevice, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &allocator, kKeys, c10::dtype_or_default(dtype));
}

at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool) {
  on_cpu(to).copy_(on_cpu(from));
  return to;
}

at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to) {
  if (from.sizes() != to.sizes()) to.resize_(from.sizes());
  return copy_from(from, to, false);
}

at::Scalar item(const at::Tensor& tensor) { return on_cpu(tensor).item(); }

at::Tensor& set_storage_part(at::Tensor& tensor, c10::Storage storage, int64_t offset, c10::IntArrayRef size, c10::IntArrayRef stride) {
  auto* own = tensor.unsafeGetTensorImpl();
  own->set_storage_keep_dtype(std::move(storage));
  own->set_storage_offset(offset);
  if (stride.empty() && !size.empty()) own->set_sizes_contiguous(size);
  else own->set_sizes_and_strides(size, stride);
  return tensor;
}

at::Tensor& set_storage(at::Tensor& tensor, c10::Storage storage) {
  const int64_t numbers = storage.nbytes() / tensor.dtype().itemsize();
  return set_storage_part(tensor, std::move(storage), 0, {numbers}, {});
}

const at::Tensor& resize(const at::Tensor& tensor, c10::SymIntArrayRef size, std::optional<c10::MemoryFormat>) {
  auto* own = tensor.unsafeGetTensorImpl();
  own->set_sizes_contiguous(C10_AS_INTARRAYREF_SLOW(size));
  const size_t bytes = (own->storage_offset() + own->numel()) * own->itemsize();
  if (bytes > own->storage().nbytes()) at::detail::getPrivateUse1Hooks().resizePrivateUse1Bytes(own->storage(), bytes);
  return tensor;
}

at::Tensor as_strided(const at::Tensor& tensor, c10::SymIntArrayRef size, c10::SymIntArrayRef stride, std::optional<c10::SymInt> offset) {
  auto start = offset ? std::optional<int64_t>(offset->guard_int(__FILE__, __LINE__)) : std::nullopt;
  return at::native::as_strided_tensorimpl(tensor, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), start);
}

at::Tensor view(const at::Tensor& tensor, c10::SymIntArrayRef size) { return at::native::view(tensor, C10_AS_INTARRAYREF_SLOW(size)); }

at::Tensor reshape_alias(const at::Tensor& tensor, c10::SymIntArrayRef size, c10::SymIntArrayRef stride) {
  return at::native::_reshape_alias(tensor, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride));
}

at::Tensor unfold(const at::Tensor& tensor, int64_t dim, int64_t size, int64_t step) { return at::native::unfold(tensor, dim, size, step); }

// 0: attention as plain operators, so that each of them reaches the device.
int64_t attention_kernel(
    const at::Tensor&, const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&, double, bool, std::optional<double>, bool) {
  return 0;
}

// Every other operator: the CPU computes it, if all its tensors lie on the device -----------------------------------------------

bool takes_indices(const std::string& name) {
  return name == "aten::index" || name == "aten::_unsafe_index" || name == "aten::_index_put_impl_" || name.rfind("aten::index_put", 0) == 0;
}

void insist_on_one_device(const c10::FunctionSchema& schema, c10::ArrayRef<c10::IValue> arguments) {
  bool some = false;
  const std::string* other = nullptr;
  const bool indexed = takes_indices(schema.name());
  auto look_at = [&](const at::Tensor& tensor, size_t number, bool in_list) {
    if (!tensor.defined()) return;
    if (is_pretend(tensor)) some = true;
    // CUDA takes single numbers of the host, and moves indices itself
    else if (tensor.dim() > 0 && !(indexed && in_list)) other = &schema.arguments()[number].name();
  };
  for (size_t i = 0; i < arguments.size(); i++) {
    const auto& argument = arguments[i];
    if (argument.isTensor()) look_at(argument.toTensor(), i, false);
    else if (argument.isTensorList()) for (const at::Tensor& tensor : argument.toTensorVector()) look_at(tensor, i, true);
    else if (argument.isList()) for (const c10::IValue& element : argument.toListRef()) if (element.isTensor()) look_at(element.toTensor(), i, true);
  }
  TORCH_CHECK(!(indexed && some && !is_pretend(arguments[0].toTensor())), "indices should be either on cpu or on the same device as the indexed tensor (cpu)");
  TORCH_CHECK(!some || !other, "Expected all tensors to be on the same device, but found at least two devices, ", kDevice, " and cpu! (argument ", *other, " of ", schema.name(), ")");
}

void compute_on_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const size_t number = schema.arguments().size();
  insist_on_one_device(schema, torch::jit::last(stack, number));
  auto generator = schema.argumentIndexWithName("generator");
  if (!generator) return at::native::cpu_fallback(op, stack);
  c10::IValue& given = (*stack)[stack->size() - number + *generator];
  at::Generator source = given.isNone() ? device_generator() : given.toGenerator();
  TORCH_CHECK(source.device().type() == kPretend, "Expected a '", kPretend, "' device type for generator but found '", source.device().type(), "'");
  generator_of_kernels().set_state(source.get_state());
  given = generator_of_kernels();
  at::native::cpu_fallback(op, stack);
  source.set_state(generator_of_kernels().get_state());
}

}  // namespace pretend

namespace at::native {
REGISTER_PRIVATEUSE1_DISPATCH(_fused_sdp_choice_stub, &pretend::attention_kernel)
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, library) { library.fallback(torch::CppFunction::makeFromBoxedFunction<&pretend::compute_on_cpu>()); }
TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) {
  library.impl("empty.memory_format", pretend::empty);
  library.impl("empty_strided", pretend::empty_strided);
  library.impl("_copy_from", pretend::copy_from);
  library.impl("_copy_from_and_resize", pretend::copy_from_and_resize);
  library.impl("_local_scalar_dense", pretend::item);
  library.impl("set_.source_Storage_storage_offset", pretend::set_storage_part);
  library.impl("set_.source_Storage", pretend::set_storage);
  library.impl("resize_", pretend::resize);
  library.impl("as_strided", pretend::as_strided);
  library.impl("view", pretend::view);
  library.impl("_reshape_alias", pretend::reshape_alias);
  library.impl("unfold", pretend::unfold);
}
TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, library) { library.fallback(torch::CppFunction::makeFallthrough()); }
TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {  // the macros below call it m
  KERNEL_PRIVATEUSEONE(linear, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(matmul, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(mm, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(bmm, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(addmm, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(scaled_dot_product_attention, lower_precision_fp)
}

PYBIND11_MODULE(pretend_device, module) {
  static pretend::Hooks hooks;
  c10::SetAllocator(pretend::kPretend, &pretend::allocator);
  at::RegisterPrivateUse1HooksInterface(&hooks);
  module.def("manual_seed", [](uint64_t seed) { pretend::device_generator().set_current_seed(seed); });
  module.def("get_state", [] { return pretend::device_generator().get_state(); });
  module.def("set_state", [](const at::Tensor& state) { pretend::device_generator().set_state(state); });
}
