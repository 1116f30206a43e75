// SPDX-License-Identifier: Apache-2.0
#include "tensor.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <array>

namespace fastcnn {

using torch::headeronly::ScalarType;

Dtype dtype_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float: return Dtype::kFloat32;
    case ScalarType::Double: return Dtype::kFloat64;
    case ScalarType::Half: return Dtype::kFloat16;
    case ScalarType::BFloat16: return Dtype::kBFloat16;
    default: STD_TORCH_CHECK(false, "fastcnn: the kernels take float32, float64, float16 and bfloat16 tensors");
  }
}

Activation activation_of(const std::string& name) {
  constexpr std::array<const char*, 7> kNames = {"identity", "relu", "relu6", "hardswish", "hardsigmoid", "silu", "sigmoid"};
  static_assert(int(Activation::kSigmoid) + 1 == kNames.size(), "one name per enumerator, in its order");
  for (size_t i = 0; i < kNames.size(); ++i)
    if (name == kNames[i]) return Activation(i);
  STD_TORCH_CHECK(false, "fastcnn: no activation is called '", name, "'");
}

Layout layout_of(const Tensor& x) {
  // PyTorch's is_channels_last_strides_2d: strides ascend in the order C, W, H, N. A size-1 dimension may carry any stride that keeps the order;
  // a tie of H with C (all of H, W and C are 1 wide in memory) reads as NCHW.
  if (x.dim() != 4) return Layout::kNCHW;
  const auto sizes = x.sizes();
  const auto strides = x.strides();
  if (strides[1] == 0) return Layout::kNCHW;
  int64_t smallest = 0;
  for (const int d : {1, 3, 2, 0}) {
    if (sizes[d] == 0 || strides[d] < smallest) return Layout::kNCHW;
    if (d == 0 && smallest == strides[1]) return Layout::kNCHW;
    smallest = strides[d];
    if (sizes[d] > 1) smallest *= sizes[d];
  }
  return Layout::kNHWC;
}

namespace {

// The first write to fresh memory costs 250 us a MiB in pages of 4 KiB, 50 in pages of 2 MiB, and large results are
// fresh each time: glibc maps what exceeds 32 MiB anew, and gives back the top of its heap. Linux, as distributions
// set it, grants large pages to those who ask. Only pages that lie in the result as a whole are asked for.
void ask_for_large_pages(const Tensor& y) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = uintptr_t(2) << 20;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(y.const_data_ptr());
  const uintptr_t first = (begin + kPage - 1) / kPage * kPage;
  const uintptr_t last = (begin + uintptr_t(y.numel()) * y.element_size()) / kPage * kPage;
  if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);  // refused: it stays as it was
#else
  (void)y;
#endif
}

Tensor empty_strided(const Tensor& like, const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides, ScalarType dtype) {
  int32_t device_type = 0;
  int32_t device_index = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(int64_t(sizes.size()), sizes.data(), strides.data(),
                                                         torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)),
                                                         device_type, device_index, &handle));
  const Tensor y(handle);
  if (y.is_cpu()) ask_for_large_pages(y);
  return y;
}

bool is_dense(const Tensor& x, Layout layout) {
  const auto sizes = x.sizes();
  const auto strides = x.strides();
  constexpr int kNchwOrder[] = {3, 2, 1, 0};
  constexpr int kNhwcOrder[] = {1, 3, 2, 0};
  int64_t expected = 1;
  for (const int d : layout == Layout::kNHWC ? kNhwcOrder : kNchwOrder) {
    if (sizes[d] != 1 && strides[d] != expected) return false;
    expected *= sizes[d];
  }
  return true;
}

std::vector<int64_t> contiguous_strides(const std::vector<int64_t>& sizes) {
  std::vector<int64_t> strides(sizes.size());
  int64_t stride = 1;
  for (size_t d = sizes.size(); d-- > 0;) {
    strides[d] = stride;
    stride *= sizes[d] > 1 ? sizes[d] : 1;
  }
  return strides;
}

// A meta tensor beside CPU ones reaches the CPU kernels; its data pointer is null. One on a GPU takes the call to the CUDA kernels, whose
// entry functions name what is not beside it.
void check_not_meta(const Tensor& x) { STD_TORCH_CHECK(x.is_cpu() || x.is_cuda(), "fastcnn: every tensor must be on the CPU, as x is"); }

}  // namespace

Tensor empty_4d(const Tensor& x, int64_t N, int64_t C, int64_t H, int64_t W, Layout layout) {
  const std::vector<int64_t> sizes = {N, C, H, W};
  // torch keeps strides positive for empty dimensions by counting them as one
  const auto at_least_one = [](int64_t size) { return size > 1 ? size : 1; };
  const int64_t c = at_least_one(C), h = at_least_one(H), w = at_least_one(W);
  const std::vector<int64_t> strides = layout == Layout::kNHWC ? std::vector<int64_t>{h * w * c, 1, w * c, c}
                                                               : std::vector<int64_t>{c * h * w, h * w, w, 1};
  return empty_strided(x, sizes, strides, x.scalar_type());
}

Tensor fresh_like(const Tensor& x) {
  const Tensor y = torch::stable::empty_like(x);
  if (y.is_cpu()) ask_for_large_pages(y);
  return y;
}

Tensor empty_1d(const Tensor& like, int64_t size, ScalarType dtype) { return empty_strided(like, {size}, {1}, dtype); }

Tensor empty_1d(const Tensor& like, int64_t size) { return empty_1d(like, size, like.scalar_type()); }

Tensor as_layout(const Tensor& x, Layout layout) {
  check_not_meta(x);
  if (is_dense(x, layout)) return x;
  Tensor copy = empty_4d(x, x.size(0), x.size(1), x.size(2), x.size(3), layout);
  return torch::stable::copy_(copy, x);
}

Tensor as_contiguous(const Tensor& x) {
  check_not_meta(x);
  if (x.is_contiguous()) return x;
  const auto sizes = x.sizes();
  const std::vector<int64_t> shape(sizes.begin(), sizes.end());
  Tensor copy = empty_strided(x, shape, contiguous_strides(shape), x.scalar_type());
  return torch::stable::copy_(copy, x);
}

Tensor as_accumulator(const Tensor& x, Dtype compute) {
  check_not_meta(x);
  const ScalarType wanted = compute == Dtype::kFloat64 ? ScalarType::Double : ScalarType::Float;
  if (x.scalar_type() == wanted) return as_contiguous(x);
  const auto sizes = x.sizes();
  const std::vector<int64_t> shape(sizes.begin(), sizes.end());
  Tensor copy = empty_strided(x, shape, contiguous_strides(shape), wanted);
  return torch::stable::copy_(copy, x);
}

int64_t channel_slice_stride(const Tensor& x, Layout layout) {
  const int64_t C = x.size(1), H = x.size(2), W = x.size(3);
  const auto s = x.strides();
  if (x.numel() == 0 || C == 1 || H == 1 || W == 1) return 0;  // a stride of a size of 1 says nothing
  if (layout == Layout::kNHWC)
    return s[1] == 1 && s[3] >= C && s[2] == W * s[3] && (x.size(0) == 1 || s[0] == H * s[2]) ? s[3] : 0;
  return s[3] == 1 && s[2] == W && s[1] == H * W && (x.size(0) == 1 || s[0] >= C * s[1]) ? s[0] : 0;
}

ConvGeometry conv_geometry(const Tensor& x, const Tensor& weight, const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                           const std::vector<int64_t>& dilation, int64_t groups) {
  STD_TORCH_CHECK(x.dim() == 4 && weight.dim() == 4, "fastcnn: x and weight must be 4-D");
  STD_TORCH_CHECK(x.is_cpu() == weight.is_cpu() && x.is_cuda() == weight.is_cuda(), "fastcnn: weight must be on the device of x");
  STD_TORCH_CHECK(stride.size() == 2 && padding.size() == 4 && dilation.size() == 2,
                  "fastcnn: stride and dilation take 2 numbers, padding 4");
  ConvGeometry g{};
  g.N = x.size(0), g.C = x.size(1), g.H = x.size(2), g.W = x.size(3);
  g.O = weight.size(0), g.kH = weight.size(2), g.kW = weight.size(3);
  g.stride_h = stride[0], g.stride_w = stride[1];
  g.dilation_h = dilation[0], g.dilation_w = dilation[1];
  g.pad_left = padding[0], g.pad_right = padding[1], g.pad_top = padding[2], g.pad_bottom = padding[3];
  g.groups = groups;
  STD_TORCH_CHECK(g.kH > 0 && g.kW > 0 && g.stride_h > 0 && g.stride_w > 0 && g.dilation_h > 0 && g.dilation_w > 0,
                  "fastcnn: kernel size, stride and dilation must be positive");
  STD_TORCH_CHECK(groups > 0 && g.C % groups == 0 && g.O % groups == 0 && weight.size(1) == g.C / groups,
                  "fastcnn: weight does not fit the channels of x");
  // Everything below stays far from 2^63.
  constexpr int64_t kLimit = int64_t(1) << 31;
  STD_TORCH_CHECK(g.kH < kLimit && g.kW < kLimit && g.dilation_h < kLimit && g.dilation_w < kLimit, "fastcnn: kernel or dilation too large");
  if (g.pad_left == -1) {
    resolve_same_padding(g.W, g.kW, g.stride_w, g.dilation_w, &g.pad_left, &g.pad_right);
    resolve_same_padding(g.H, g.kH, g.stride_h, g.dilation_h, &g.pad_top, &g.pad_bottom);
  }
  for (const int64_t pad : {g.pad_left, g.pad_right, g.pad_top, g.pad_bottom})
    STD_TORCH_CHECK(pad >= 0 && pad < kLimit, "fastcnn: padding must be between 0 and 2^31");
  g.Ho = conv_output_size(g.H, g.pad_top, g.pad_bottom, g.kH, g.stride_h, g.dilation_h);
  g.Wo = conv_output_size(g.W, g.pad_left, g.pad_right, g.kW, g.stride_w, g.dilation_w);
  STD_TORCH_CHECK(g.H + g.pad_top + g.pad_bottom > g.dilation_h * (g.kH - 1) && g.W + g.pad_left + g.pad_right > g.dilation_w * (g.kW - 1),
                  "fastcnn: the kernel is larger than the padded input");
  g.layout = layout_of(x);
  return g;
}

}  // namespace fastcnn
