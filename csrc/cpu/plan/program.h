// SPDX-License-Identifier: Apache-2.0
// What run_plan executes: a tensor of int64 words. First the header, then `values` values, then `steps` steps, each a
// StepHead and the arguments of its operation. fastcnn/accelerate/plan/words.py writes it, from structs of the same
// names and fields (tests/plan/test_words.py compares the two).
//
// A value is a map [images, H, W, C] with the channels innermost; a vector [images, C] is a map of one pixel. Sizes and
// offsets count floats of one image: the batch is known at the call only. Steps name values by number, and their
// weights by an offset into the blob that pack.py lays out; -1 stands for "none".
//
// A program comes from outside (a file, a caller's tensor): Program::parse refuses one that would touch memory beyond
// the buffers it names. Buffers that overlap in time compute garbage, and no more.
#pragma once

#include <cstdint>
#include <vector>

#include "../../common/epilogue.h"

namespace fastcnn {
namespace plan {

constexpr int64_t kMagic = 0x6e6e6366;  // "fcnn"
constexpr int64_t kVersion = 1;
constexpr int64_t kNone = -1;
constexpr int64_t kAlignment = 16;          // floats: buffers and weights begin on a cache line
constexpr int64_t kMostKernel = 961;        // rows of a window: kernels keep a pointer to each
constexpr int64_t kMostScratch = 1 << 28;   // floats that a thread may ask for in one step
constexpr int64_t kMostFloats = 1LL << 40;  // of anything: products of checked extents stay far from overflow

struct Header {
  int64_t magic, version, lanes;  // of the packed weights: Vec<float>::kLanes of the instruction set
  int64_t inputs, outputs, values, steps;
  int64_t arena, kept;  // floats of one image
  int64_t weights;      // floats of the blob
  // A thread that has images of its own takes the first `early` steps image by image, for their maps are large, and the
  // others with `group` images at once, for their weights are.
  int64_t early, group;
};

// kArena: memory of one image at a time, which early steps alone may name. kKept: of the images of a group. kPicture: an
// input as the caller laid it out, NCHW or not; only a convolution reads it.
enum class Place : int64_t { kArena, kKept, kInput, kOutput, kPicture };

struct Value {
  Place place;
  int64_t index;    // of the input or output
  int64_t buffer;   // in the arena or the kept memory: where the pixels begin
  int64_t channel;  // the first one, of the `pixel` floats of a pixel
  int64_t C, H, W;
  int64_t pixel;

  // Of an input or output: whether it has the pixels of a tensor [N, C, H, W], or all of an image as one.
  bool lies_in(int64_t C, int64_t H, int64_t W) const;
};

enum class Op : int64_t {
  kPointwise,
  kConv,
  kDepthwise,
  kGlobalPool,
  kPool,
  kElementwise,
  kShuffle,
  kInvertedResidual,
  kPointwiseBf16,
  kConvBf16,
  kGrouped,
  kCount
};

struct StepHead {
  Op op;
  int64_t words;  // with this head
};

// 1x1 convolution, and the linear layer: y = activation(x' w + bias + residual), x' = prologue(x * scale + shift) * gate.
// weight: [ceil(O / lanes)][C][lanes]; bias, scale, shift: to the end of the last vector. gate: a vector of C per image.
struct PointwiseArgs {
  int64_t x, y, residual, gate;
  int64_t weight, bias, scale, shift;
  Activation prologue() const { return Activation(prologue_); }
  Activation activation() const { return Activation(activation_); }
  int64_t prologue_, activation_;
};

// Any other convolution but the depthwise one. weight: [groups][ceil(O / groups / lanes)][kernel_h kernel_w C / groups][lanes];
// bias: [groups][ceil(O / groups / lanes)][lanes]. What lies beyond the bottom and the right edge is zero too.
struct ConvArgs {
  int64_t x, y, residual;
  int64_t weight, bias;
  int64_t kernel_h, kernel_w, stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w, groups;
  Activation activation() const { return Activation(activation_); }
  int64_t activation_;
};

// A convolution in groups of `group` channels of x and y alike: 2, 4 or 8, less than a vector has lanes.
// weight: [ceil(C / lanes)][kernel_h kernel_w group][lanes].
struct GroupedArgs {
  int64_t x, y, residual;
  int64_t weight, bias;
  int64_t kernel_h, kernel_w, stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w, group;
  Activation activation() const { return Activation(activation_); }
  int64_t activation_;
};

// weight: [ceil(C / lanes)][kernel_h kernel_w][lanes]. sums: a vector that receives the sum of y over the pixels.
struct DepthwiseArgs {
  int64_t x, y, residual, sums;
  int64_t weight, bias;
  int64_t kernel_h, kernel_w, stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w;
  Activation activation() const { return Activation(activation_); }
  int64_t activation_;
};

struct GlobalPoolArgs {  // the mean over the pixels
  int64_t x, y;
};

// kMean: padding counts as zeros; kMeanOfValid: not at all. kAdaptiveMean: the windows follow from the sizes of x and y.
enum class Pool : int64_t { kMax, kMean, kMeanOfValid, kAdaptiveMean };

struct PoolArgs {
  int64_t x, y;
  Pool kind;
  int64_t kernel_h, kernel_w, stride_h, stride_w, pad_top, pad_left;
};

enum class Binary : int64_t { kNone, kAdd, kMultiply, kSubtract };

// y = activation((x * scale + shift) (kind) other + residual), where x lies or elsewhere; other is a map like x or a
// vector, one value for all pixels; residual is a map like x.
struct ElementwiseArgs {
  int64_t x, other, y;
  Binary kind;
  int64_t scale, shift;
  Activation activation() const { return Activation(activation_); }
  int64_t activation_;
  int64_t residual;
};

// Output channel i * parts + p is channel i of part p: first, second (kNone: x is one map of `groups` parts).
struct ShuffleArgs {
  int64_t x, second, y;
  int64_t groups;
};

// z = middle(depthwise(expand_activation(x expand + expand_bias)) + bias); y = activation(z project + project_bias + residual).
// expand kNone: x itself goes to the depthwise part. project kNone: y is z, and `sums` receives its sums over the pixels.
// channels: of z. Weights as in PointwiseArgs and DepthwiseArgs. The kernel is square, of 3, 5 or 7, its stride and padding
// no larger than that.
struct InvertedResidualArgs {
  int64_t x, y, residual, sums;
  int64_t expand, expand_bias, weight, bias, project, project_bias;
  int64_t channels, kernel, stride, pad_top, pad_left;
  Activation expand_activation() const { return Activation(expand_activation_); }
  Activation middle() const { return Activation(middle_); }
  Activation activation() const { return Activation(activation_); }
  int64_t expand_activation_, middle_, activation_;
};

// The same two with operands rounded to bfloat16, sums in float32. weight: bfloat16 [ceil(O / 16)][taps ceil(C / 32)][16][16][2],
// pairs of input channels side by side, padded with zeros; groups = 1.
using PointwiseBf16Args = PointwiseArgs;
using ConvBf16Args = ConvArgs;

struct Step {
  Op op;
  const int64_t* words;
  template <typename Args> const Args& args() const { return *reinterpret_cast<const Args*>(words); }
};

struct Program {
  const Header* header;
  const Value* values;
  std::vector<Step> steps;

  // Throws std::runtime_error that says what is wrong. `lanes`: of the kernels that will run; `weights`: floats of the blob.
  static Program parse(const int64_t* words, int64_t count, int64_t lanes, int64_t weights);
};

}  // namespace plan
}  // namespace fastcnn
