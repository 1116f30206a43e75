// SPDX-License-Identifier: Apache-2.0
// What the entry functions need of torch, over the LibTorch stable ABI: allocation in a memory format, checks, names to enums.
// Kernels never include this file.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <string>
#include <vector>

#include "../common/epilogue.h"
#include "../common/scalar.h"
#include "../common/shape.h"

namespace fastcnn {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

Dtype dtype_of(const Tensor& x);
Activation activation_of(const std::string& name);

// NHWC when the strides of a 4-D tensor say channels_last by PyTorch's own rule, else NCHW.
Layout layout_of(const Tensor& x);

// A new [N, C, H, W] tensor of x's dtype and device in the given memory format.
Tensor empty_4d(const Tensor& x, int64_t N, int64_t C, int64_t H, int64_t W, Layout layout);
// torch's empty_like: x's own strides exactly when x is dense and does not overlap.
Tensor fresh_like(const Tensor& x);
Tensor empty_1d(const Tensor& like, int64_t size);
Tensor empty_1d(const Tensor& like, int64_t size, torch::headeronly::ScalarType dtype);
inline Tensor no_tensor(const Tensor& like) { return empty_1d(like, 0); }

// x itself when it is dense in this format, else a copy that is.
Tensor as_layout(const Tensor& x, Layout layout);
// x itself when it is contiguous (NCHW order, any rank), else a copy.
Tensor as_contiguous(const Tensor& x);
// A per-channel vector in the accumulator's dtype (float, double for double): x itself or a converted copy.
Tensor as_accumulator(const Tensor& x, Dtype compute);

// Elements from pixel to pixel (NHWC) or image to image (NCHW) when x is a range of the channels of a tensor that is
// dense in this layout, as a split of channels gives; else 0.
int64_t channel_slice_stride(const Tensor& x, Layout layout);

// Resolves sizes, SAME padding and output size; checks only what memory safety needs (the Python page has named the user's mistakes).
ConvGeometry conv_geometry(const Tensor& x, const Tensor& weight, const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                           const std::vector<int64_t>& dilation, int64_t groups);

template <typename T> const T* data(const Tensor& x) { return static_cast<const T*>(x.const_data_ptr()); }
inline const void* data(const Tensor& x) { return x.const_data_ptr(); }
inline const void* data(const OptionalTensor& x) { return x ? x->const_data_ptr() : nullptr; }
inline void* mutable_data(const Tensor& x) { return x.mutable_data_ptr(); }

}  // namespace fastcnn
