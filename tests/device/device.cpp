// A device type of its own whose memory and arithmetic are the CPU's: every operation runs there on copies. It counts what
// a real device would wait for, can refuse float64 as Apple's MPS does, and has a random state apart from the CPU's.
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/Resize.h>
#include <ATen/native/TensorShape.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/is_set_to_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

namespace {
using at::Tensor;
constexpr auto kOurs = c10::DeviceType::PrivateUse1;
const c10::Device device(kOurs, 0);

int64_t n_reads = 0, n_writes = 0, n_items = 0; // transfers to the CPU and from it; single numbers looked at
int in_operation = 0;                            // copies made to run an operation on the CPU do not count
bool has_double = true;
at::Generator generator = at::detail::createCPUGenerator(0);

struct Running {
  Running() { in_operation++; }
  ~Running() { in_operation--; }
};

void check_type(c10::ScalarType t) {
  TORCH_CHECK_TYPE(has_double || (t != at::kDouble && t != at::kComplexDouble), "this device does not support float64");
}

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t n) override {
    void* p = c10::GetCPUAllocator()->raw_allocate(n ? n : 1);
    return {p, p, [](void* p) { c10::GetCPUAllocator()->raw_deallocate(p); }, device};
  }
  c10::DeleterFnPtr raw_deleter() const override {
    return [](void* p) { c10::GetCPUAllocator()->raw_deallocate(p); };
  }
  void copy_data(void* to, const void* from, size_t n) const override { default_copy_data(to, from, n); }
} memory;
REGISTER_ALLOCATOR(kOurs, &memory);

struct Guard final : c10::impl::NoOpDeviceGuardImpl<kOurs> {
  c10::Device exchangeDevice(c10::Device) const override { return device; }
  c10::Device getDevice() const override { return device; }
  c10::Stream getStream(c10::Device) const noexcept override { return c10::Stream(c10::Stream::DEFAULT, device); }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return c10::Stream(c10::Stream::DEFAULT, device); }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override { return generator; }
  void resizePrivateUse1Bytes(const c10::Storage& s, size_t n) const override {
    auto now = memory.allocate(n);
    memcpy(now.get(), s.data(), std::min(n, s.nbytes()));
    s.set_data_ptr(std::move(now));
    s.set_nbytes(n);
  }
} hooks;

c10::DispatchKeySet keys() { return c10::DispatchKeySet(c10::DispatchKey::PrivateUse1); }

Tensor empty(at::IntArrayRef size, std::optional<at::ScalarType> t, std::optional<at::Layout>, std::optional<at::Device>,
             std::optional<bool>, std::optional<at::MemoryFormat> f) {
  auto type = c10::dtype_or_default(t);
  check_type(type);
  return at::detail::empty_generic(size, &memory, keys(), type, f);
}

Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> t, std::optional<at::Layout>,
                     std::optional<at::Device>, std::optional<bool>) {
  auto type = c10::dtype_or_default(t);
  check_type(type);
  return at::detail::empty_strided_generic(size, stride, &memory, keys(), type);
}

// The same memory, as a tensor of the CPU
Tensor on_cpu(const Tensor& t) {
  if (!t.is_privateuseone()) return t;
  return at::from_blob(t.data_ptr(), t.sizes(), t.strides(), t.options().device(at::kCPU));
}

Tensor copy_from(const Tensor& from, const Tensor& to, bool) {
  if (!in_operation && !to.is_privateuseone()) n_reads++;
  if (!in_operation && !from.is_privateuseone()) n_writes++;
  on_cpu(to).copy_(on_cpu(from));
  return to;
}

Tensor copy_from_and_resize(const Tensor& from, const Tensor& to) {
  at::native::resize_(to, from.sizes(), std::nullopt);
  return copy_from(from, to, false);
}

at::Scalar item(const Tensor& t) {
  if (!in_operation) n_items++, n_reads++;
  return on_cpu(t).item();
}

Tensor as_strided(const Tensor& t, at::IntArrayRef size, at::IntArrayRef stride, std::optional<int64_t> offset) {
  return at::native::as_strided_tensorimpl(t, size, stride, offset);
}

const Tensor& resize(const Tensor& t, at::IntArrayRef size, std::optional<at::MemoryFormat> f) {
  auto strides = c10::contiguous_strides(size);
  auto* impl = t.unsafeGetTensorImpl();
  auto bytes = at::detail::computeStorageNbytesContiguous(size, t.element_size(), t.storage_offset());
  if (bytes > t.storage().nbytes()) hooks.resizePrivateUse1Bytes(t.storage(), bytes);
  impl->set_sizes_contiguous(size);
  return t;
}

Tensor& set_storage(Tensor& t, c10::Storage s, int64_t offset, at::IntArrayRef size, at::IntArrayRef stride) {
  t.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(s));
  t.unsafeGetTensorImpl()->set_sizes_and_strides(size, stride, offset);
  return t;
}

Tensor& set_whole_storage(Tensor& t, c10::Storage s) {
  int64_t n = s.nbytes() / t.element_size();
  return set_storage(t, std::move(s), 0, {n}, {1});
}

Tensor convolution(const Tensor& x, const Tensor& w, const std::optional<Tensor>& b, at::IntArrayRef stride, at::IntArrayRef padding,
                   at::IntArrayRef dilation, bool transposed, at::IntArrayRef output_padding, int64_t groups) {
  Running r;
  std::optional<Tensor> bias;
  if (b.has_value() && b->defined()) bias = on_cpu(*b);
  return at::convolution(on_cpu(x), on_cpu(w), bias, stride, padding, dilation, transposed, output_padding, groups).to(device);
}

std::tuple<Tensor, Tensor, Tensor> convolution_backward(const Tensor& g, const Tensor& x, const Tensor& w, at::IntArrayRef stride,
    at::IntArrayRef padding, at::IntArrayRef dilation, bool transposed, at::IntArrayRef output_padding, int64_t groups, std::array<bool, 3> mask) {
  Running r;
  int64_t channels = transposed ? w.size(1) * groups : w.size(0);
  auto [gx, gw, gb] = at::convolution_backward(on_cpu(g), on_cpu(x), on_cpu(w), at::IntArrayRef{channels}, stride, padding, dilation,
                                               transposed, output_padding, groups, mask);
  auto back = [](const Tensor& t) { return t.defined() ? t.to(device) : t; };
  return {back(gx), back(gw), back(gb)};
}

// A cell of an LSTM, for which torch has kernels on GPUs only
std::tuple<Tensor, Tensor, Tensor> lstm_cell(const Tensor& gx, const Tensor& gh, const Tensor& c, const std::optional<Tensor>& bx,
                                             const std::optional<Tensor>& bh) {
  Running r;
  auto gates = on_cpu(gx) + on_cpu(gh);
  if (bx.has_value() && bx->defined()) gates = gates + on_cpu(*bx) + on_cpu(*bh);
  auto g = gates.chunk(4, 1);
  auto cell = g[1].sigmoid() * on_cpu(c) + g[0].sigmoid() * g[2].tanh();
  return {(g[3].sigmoid() * cell.tanh()).to(device), cell.to(device), gates.to(device)};
}

bool gives_tensors(const c10::FunctionSchema& schema) {
  for (auto& r : schema.returns())
    if (r.type()->kind() != c10::TypeKind::TensorType && r.type()->kind() != c10::TypeKind::ListType) return false;
  return true;
}

// Any operation: on the CPU, in the same memory
void on_the_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  auto& schema = op.schema();
  auto& args = schema.arguments();
  if (!in_operation && !gives_tensors(schema)) n_reads++; // a truth value, such as that of `equal`
  bool takes_any = schema.name().find("index") != std::string::npos; // indices may be on the CPU
  std::vector<std::pair<Tensor, Tensor>> pairs; // ours, the CPU's
  bool strangers = false;
  auto change = [&](const Tensor& t) {
    if (!t.defined()) return t;
    if (!t.is_privateuseone()) {
      strangers |= t.dim() > 0;
      return t;
    }
    for (auto& [ours, theirs] : pairs)
      if (ours.is_same(t)) return theirs;
    auto theirs = t.numel() ? on_cpu(t) : at::empty(t.sizes(), t.options().device(at::kCPU)); // which may be resized
    pairs.emplace_back(t, theirs);
    return theirs;
  };
  for (size_t i = 0; i < args.size(); i++) {
    auto& v = (*stack)[stack->size() - args.size() + i];
    if (args[i].name() == "generator") v = generator;
    else if (v.isTensor()) v = change(v.toTensor());
    else if (v.isTensorList()) {
      c10::List<Tensor> l;
      for (const Tensor& t : v.toTensorVector()) l.push_back(change(t));
      v = l;
    } else if (v.isOptionalTensorList()) {
      c10::List<std::optional<Tensor>> l;
      for (const std::optional<Tensor>& t : v.toOptionalTensorVector()) l.push_back(t ? std::optional<Tensor>(change(*t)) : t);
      v = l;
    } else if (v.isDevice()) v = c10::Device(at::kCPU);
  }
  TORCH_CHECK(pairs.empty() || !strangers || takes_any, "Expected all tensors to be on the same device, in ", schema.name());
  Running r;
  c10::Dispatcher::singleton().redispatchBoxed(op, c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  for (auto& [ours, theirs] : pairs)
    if (!ours.numel() && theirs.numel()) copy_from_and_resize(theirs, ours);
  auto back = [&](const Tensor& t) {
    if (!t.defined() || t.is_privateuseone()) return t;
    for (auto& [ours, theirs] : pairs)
      if (theirs.is_same(t)) return ours;
    return t.to(device);
  };
  for (size_t i = stack->size() - schema.returns().size(); i < stack->size(); i++) {
    auto& v = (*stack)[i];
    if (v.isTensor()) v = back(v.toTensor());
    else if (v.isTensorList()) {
      c10::List<Tensor> l;
      for (const Tensor& t : v.toTensorVector()) l.push_back(back(t));
      v = l;
    }
  }
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&on_the_cpu>()); }
TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
  m.impl("_local_scalar_dense", &item);
  m.impl("as_strided", &as_strided);
  m.impl("view", &at::native::view);
  m.impl("is_set_to", &at::native::is_set_to);
  m.impl("resize_", &resize);
  m.impl("set_.source_Storage", &set_whole_storage);
  m.impl("set_.source_Storage_storage_offset", &set_storage);
  m.impl("convolution_overrideable", &convolution);
  m.impl("_thnn_fused_lstm_cell", &lstm_cell);
  m.impl("convolution_backward_overrideable", &convolution_backward);
}

std::vector<int64_t> counts() { return {n_reads, n_writes, n_items}; }
void reset() { n_reads = n_writes = n_items = 0; }
void allow_double(bool on) { has_double = on; }
Tensor get_state() { return generator.get_state(); }
void set_state(const Tensor& state) { generator.set_state(state); }
void seed(int64_t n) { generator.set_current_seed(n); }
void start() { at::RegisterPrivateUse1HooksInterface(&hooks); }

TORCH_LIBRARY(test_device, m) {
  m.def("counts", &counts);
  m.def("reset", &reset);
  m.def("allow_double", &allow_double);
  m.def("get_state", &get_state);
  m.def("set_state(Tensor state) -> ()", &set_state);
  m.def("seed", &seed);
  m.def("start", &start);
}
} // namespace
