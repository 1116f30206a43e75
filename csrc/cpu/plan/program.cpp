// SPDX-License-Identifier: Apache-2.0
#include "program.h"

#include <cstdio>
#include <stdexcept>
#include <string>

#include "../../common/shape.h"

namespace fastcnn {
namespace plan {
namespace {

constexpr int64_t kMostExtent = 1 << 24;
constexpr int64_t kMostCount = 1 << 20;  // of values and steps
constexpr int64_t kMostGroup = 64;
constexpr int kActivations = int(Activation::kSigmoid) + 1;

template <typename T> constexpr int64_t words_of() { return int64_t(sizeof(T) / sizeof(int64_t)); }

[[noreturn]] void refuse(const std::string& what) { throw std::runtime_error("fastcnn: run_plan: program " + what); }

class Checker {
 public:
  Checker(const Header& header, const Value* values) : header_(header), values_(values), given_(size_t(header.outputs)) {}

  void check_values() {
    for (int64_t i = 0; i < header_.values; ++i) {
      index_ = i;
      check_value(values_[i]);
    }
  }

  void check_step(int64_t index, const Step& step, int64_t words) {
    index_ = index;
    switch (step.op) {
      case Op::kPointwise: return check(sized<PointwiseArgs>(step, words));
      case Op::kConv: return check(sized<ConvArgs>(step, words));
      case Op::kDepthwise: return check(sized<DepthwiseArgs>(step, words));
      case Op::kGlobalPool: return check(sized<GlobalPoolArgs>(step, words));
      case Op::kPool: return check(sized<PoolArgs>(step, words));
      case Op::kElementwise: return check(sized<ElementwiseArgs>(step, words));
      case Op::kShuffle: return check(sized<ShuffleArgs>(step, words));
      case Op::kInvertedResidual: return check(sized<InvertedResidualArgs>(step, words));
      case Op::kPointwiseBf16: return check(sized<PointwiseArgs>(step, words), true);
      case Op::kConvBf16: return check(sized<ConvArgs>(step, words), true);
      case Op::kGrouped: return check(sized<GroupedArgs>(step, words));
      case Op::kCount: break;
    }
    refuse("names an unknown step, " + std::to_string(int64_t(step.op)) + ", at step " + std::to_string(index));
  }

  void check_outputs() const {
    for (size_t i = 0; i < given_.size(); ++i)
      if (!given_[i]) refuse("has no step that writes output " + std::to_string(i));
  }

 private:
  void need(bool condition, const char* what) const {
    if (!condition) refuse("is malformed at number " + std::to_string(index_) + ": " + what);
  }

  template <typename Args> const Args& sized(const Step& step, int64_t words) const {
    need(words == words_of<Args>(), "the step has another length than its kind");
    return step.args<Args>();
  }

  void check_value(const Value& v) const {
    need(v.C > 0 && v.H > 0 && v.W > 0 && v.C <= kMostExtent && v.H <= kMostExtent && v.W <= kMostExtent,
         "the extents of a value");
    need(v.channel >= 0 && v.pixel >= v.C && v.pixel <= kMostExtent && v.channel <= v.pixel - v.C, "the channels of a value");
    switch (v.place) {
      case Place::kArena:
      case Place::kKept: {
        const int64_t memory = v.place == Place::kArena ? header_.arena : header_.kept;
        need(v.index == 0 && v.buffer >= 0 && v.buffer % kAlignment == 0 && v.buffer <= memory, "a value's buffer");
        return need(fits(v.H * v.W, v.pixel, memory - v.buffer), "a value lies outside the arena");
      }
      case Place::kInput:
      case Place::kPicture:
        return need(v.index >= 0 && v.index < header_.inputs && v.buffer == 0, "a value's input");
      case Place::kOutput:
        return need(v.index >= 0 && v.index < header_.outputs && v.buffer == 0, "a value's output");
    }
    need(false, "a value's place");
  }

  // a b <= most, without overflow: a < 2^48, most <= kMostFloats
  static bool fits(int64_t a, int64_t b, int64_t most) { return a == 0 || b <= most / a; }

  const Value& any(int64_t i) const {
    need(i >= 0 && i < header_.values, "a step names a value that does not exist");
    need(index_ < header_.early || values_[i].place != Place::kArena, "a late step names memory of a single image");
    return values_[i];
  }
  const Value& read(int64_t i) const {
    const Value& v = any(i);
    need(v.place != Place::kPicture, "only a convolution reads a picture");
    return v;
  }
  const Value& written(int64_t i) const {
    const Value& v = read(i);
    need(v.place != Place::kInput, "a step writes into an input");
    if (v.place == Place::kOutput) given_[size_t(v.index)] = true;
    return v;
  }
  void same_map(const Value& a, const Value& b) const {
    need(a.C == b.C && a.H == b.H && a.W == b.W, "two maps of a step differ in shape");
  }
  void vector(int64_t i, int64_t channels) const {
    if (i == kNone) return;
    const Value& v = read(i);
    need(v.C == channels && v.H == 1 && v.W == 1, "a vector of a step has another size than the channels");
  }
  void residual(int64_t i, const Value& y) const {
    if (i != kNone) same_map(read(i), y);
  }
  void activation(int64_t kind) const { need(kind >= 0 && kind < kActivations, "an unknown activation"); }

  void blob(int64_t offset, int64_t outer, int64_t inner) const {
    need(offset >= 0 && offset % kAlignment == 0 && offset <= header_.weights && fits(outer, inner, header_.weights - offset),
         "weights lie outside the blob");
  }
  void optional_blob(int64_t offset, int64_t count) const {
    if (offset != kNone) blob(offset, padded(count), 1);
  }
  int64_t padded(int64_t channels) const { return ceil_div(channels, header_.lanes) * header_.lanes; }

  void window(const Value& x, const Value& y, const int64_t kernel_h, int64_t kernel_w, int64_t stride_h, int64_t stride_w,
              int64_t pad_top, int64_t pad_left, int64_t dilation_h, int64_t dilation_w) const {
    for (const int64_t extent : {kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w})
      need(extent > 0 && extent <= kMostExtent, "a window's extents");
    need(fits(kernel_h, kernel_w, kMostExtent) && fits(kernel_h, dilation_h, kMostExtent) && fits(kernel_w, dilation_w, kMostExtent),
         "a window's extents");
    need(kernel_h <= kMostKernel, "a window's extents");
    need(pad_top >= 0 && pad_left >= 0 && pad_top <= kMostExtent && pad_left <= kMostExtent, "a window's padding");
    need(fits(stride_h, y.H, 2 * kMostExtent) && fits(stride_w, y.W, 2 * kMostExtent), "a window's stride");
    (void)x;
  }

  // Of weights in bfloat16, two to a float.
  void bf16_blob(int64_t offset, int64_t outputs, int64_t taps, int64_t channels) const {
    constexpr int64_t kTile = 16 * 16;
    blob(offset, ceil_div(outputs, 16) * kTile, taps * ceil_div(channels, 32));
  }

  void check(const PointwiseArgs& a, bool bf16 = false) const {
    const Value &x = read(a.x), &y = written(a.y);
    need(x.H == y.H && x.W == y.W, "a pointwise step changes the size of the map");
    residual(a.residual, y);
    vector(a.gate, x.C);
    if (bf16) bf16_blob(a.weight, y.C, 1, x.C);
    else blob(a.weight, x.C, padded(y.C));
    optional_blob(a.bias, y.C);
    optional_blob(a.scale, x.C);
    optional_blob(a.shift, x.C);
    activation(a.prologue_);
    activation(a.activation_);
  }

  void check(const ConvArgs& a, bool bf16 = false) const {
    const Value &x = any(a.x), &y = written(a.y);
    window(x, y, a.kernel_h, a.kernel_w, a.stride_h, a.stride_w, a.pad_top, a.pad_left, a.dilation_h, a.dilation_w);
    need(a.groups > 0 && x.C % a.groups == 0 && y.C % a.groups == 0, "groups that do not divide the channels");
    residual(a.residual, y);
    const int64_t vectors = a.groups * padded(y.C / a.groups);
    need(fits(a.kernel_h * a.kernel_w, x.C / a.groups, kMostFloats), "a window's extents");
    const int64_t columns = (y.W - 1) * a.stride_w + (a.kernel_w - 1) * a.dilation_w + 1;
    need(fits(columns * x.C, (a.kernel_h - 1) * a.dilation_h + 1, kMostScratch), "the rows under a window need too much memory");
    if (bf16) {
      need(a.groups == 1 && x.place != Place::kPicture, "a bfloat16 convolution of a picture or with groups");
      bf16_blob(a.weight, y.C, a.kernel_h * a.kernel_w, x.C);
    } else {
      blob(a.weight, a.kernel_h * a.kernel_w * (x.C / a.groups), vectors);
    }
    optional_blob(a.bias, vectors);
    activation(a.activation_);
  }

  void check(const GroupedArgs& a) const {
    const Value &x = read(a.x), &y = written(a.y);
    window(x, y, a.kernel_h, a.kernel_w, a.stride_h, a.stride_w, a.pad_top, a.pad_left, a.dilation_h, a.dilation_w);
    need(a.group == 2 || a.group == 4 || a.group == 8, "groups of another size than 2, 4 or 8");
    need(a.group < header_.lanes && x.C == y.C && x.C % a.group == 0, "groups that do not divide the channels");
    residual(a.residual, y);
    blob(a.weight, a.kernel_h * a.kernel_w * a.group, padded(x.C));
    optional_blob(a.bias, y.C);
    activation(a.activation_);
  }

  void check(const DepthwiseArgs& a) const {
    const Value &x = read(a.x), &y = written(a.y);
    need(x.C == y.C, "a depthwise step changes the channels");
    window(x, y, a.kernel_h, a.kernel_w, a.stride_h, a.stride_w, a.pad_top, a.pad_left, a.dilation_h, a.dilation_w);
    residual(a.residual, y);
    if (a.sums != kNone) written(a.sums), vector(a.sums, y.C);
    blob(a.weight, a.kernel_h * a.kernel_w, padded(x.C));
    optional_blob(a.bias, y.C);
    activation(a.activation_);
  }

  void check(const GlobalPoolArgs& a) const {
    const Value& x = read(a.x);
    written(a.y), vector(a.y, x.C);
  }

  void check(const PoolArgs& a) const {
    const Value &x = read(a.x), &y = written(a.y);
    need(x.C == y.C, "a pool changes the channels");
    need(a.kind >= Pool::kMax && a.kind <= Pool::kAdaptiveMean, "an unknown pool");
    window(x, y, a.kernel_h, a.kernel_w, a.stride_h, a.stride_w, a.pad_top, a.pad_left, 1, 1);
  }

  void check(const ElementwiseArgs& a) const {
    const Value &x = read(a.x), &y = written(a.y);
    same_map(x, y);
    const bool known = a.kind >= Binary::kNone && a.kind <= Binary::kSubtract;
    need(known && (a.kind == Binary::kNone) == (a.other == kNone), "an unknown elementwise step");
    if (a.other != kNone) {
      const Value& other = read(a.other);
      if (other.H == 1 && other.W == 1) vector(a.other, x.C);
      else same_map(other, x);
    }
    optional_blob(a.scale, x.C);
    optional_blob(a.shift, x.C);
    residual(a.residual, y);
    activation(a.activation_);
  }

  void check(const ShuffleArgs& a) const {
    const Value &x = read(a.x), &y = written(a.y);
    need(x.H == y.H && x.W == y.W, "a shuffle changes the size of the map");
    if (a.second != kNone) {
      same_map(x, read(a.second));
      need(a.groups == 2 && y.C == 2 * x.C, "a shuffle of two maps");
    } else {
      need(a.groups > 0 && x.C == y.C && x.C % a.groups == 0, "the groups of a shuffle");
    }
  }

  void check(const InvertedResidualArgs& a) const {
    const Value &x = read(a.x), &y = written(a.y);
    need(a.channels > 0 && a.channels <= kMostExtent, "the channels of an inverted residual");
    need(a.expand != kNone || (a.expand_bias == kNone && x.C == a.channels), "an inverted residual without expansion");
    need(a.project != kNone || (a.project_bias == kNone && a.residual == kNone && y.C == a.channels),
         "an inverted residual without projection");
    need(a.kernel == 3 || a.kernel == 5 || a.kernel == 7, "a window's extents");
    need(a.stride > 0 && a.stride <= a.kernel, "a window's stride");
    need(a.pad_top >= 0 && a.pad_top < a.kernel && a.pad_left >= 0 && a.pad_left < a.kernel, "a window's padding");
    need(fits((x.W + y.W * a.stride + 2 * a.kernel) * kMostKernel, padded(a.channels), kMostFloats), "the rows of an inverted residual");
    residual(a.residual, y);
    if (a.sums != kNone) {
      need(a.project == kNone, "sums of a map that is projected");
      written(a.sums), vector(a.sums, y.C);
    }
    if (a.expand != kNone) blob(a.expand, x.C, padded(a.channels));
    optional_blob(a.expand_bias, a.channels);
    blob(a.weight, a.kernel * a.kernel, padded(a.channels));
    optional_blob(a.bias, a.channels);
    if (a.project != kNone) blob(a.project, a.channels, padded(y.C));
    optional_blob(a.project_bias, y.C);
    for (const int64_t kind : {a.expand_activation_, a.middle_, a.activation_}) activation(kind);
  }

  const Header& header_;
  const Value* values_;
  mutable std::vector<bool> given_;  // the outputs that a step writes
  int64_t index_ = 0;
};

}  // namespace

bool Value::lies_in(int64_t C_, int64_t H_, int64_t W_) const {
  if (place == Place::kPicture) return channel == 0 && C == C_ && H == H_ && W == W_;
  return (pixel == C_ && H == H_ && W == W_) || (H == 1 && W == 1 && pixel == C_ * H_ * W_);
}

Program Program::parse(const int64_t* words, int64_t count, int64_t lanes, int64_t weights) {
  static_assert(sizeof(Value) == 8 * sizeof(int64_t) && sizeof(StepHead) == 2 * sizeof(int64_t), "as words.py writes them");
  if (count < words_of<Header>()) refuse("is shorter than its header");
  const Header& header = *reinterpret_cast<const Header*>(words);
  if (header.magic != kMagic) refuse("does not begin as one does");
  if (header.version != kVersion)
    refuse("is of version " + std::to_string(header.version) + ", this build runs version " + std::to_string(kVersion));
  if (header.lanes != lanes)
    refuse("is packed for vectors of " + std::to_string(header.lanes) + " floats, this processor runs " + std::to_string(lanes) +
           ": pack it again");
  for (const int64_t number : {header.inputs, header.outputs, header.values, header.steps})
    if (number < 1 || number > kMostCount) refuse("has a header with impossible counts");
  for (const int64_t floats : {header.arena, header.kept})
    if (floats < 0 || floats > kMostFloats || floats % kAlignment != 0) refuse("has an impossible arena");
  if (header.early < 0 || header.early > header.steps) refuse("has an impossible number of early steps");
  if (header.group < 1 || header.group > kMostGroup) refuse("has an impossible group of images");
  if (header.weights != weights)
    refuse("wants " + std::to_string(header.weights) + " floats of weights, got " + std::to_string(weights));
  const int64_t first_step = words_of<Header>() + header.values * words_of<Value>();
  if (count < first_step) refuse("is shorter than its values");

  Program program{&header, reinterpret_cast<const Value*>(words + words_of<Header>()), {}};
  Checker checker(header, program.values);
  checker.check_values();
  program.steps.reserve(size_t(header.steps));
  int64_t at = first_step;
  for (int64_t i = 0; i < header.steps; ++i) {
    if (count - at < words_of<StepHead>()) refuse("is shorter than its steps");
    const StepHead& head = *reinterpret_cast<const StepHead*>(words + at);
    if (head.words < words_of<StepHead>() || head.words > count - at) refuse("is shorter than its steps");
    const Step step{head.op, words + at + words_of<StepHead>()};
    checker.check_step(i, step, head.words - words_of<StepHead>());
    program.steps.push_back(step);
    at += head.words;
  }
  if (at != count) refuse("is longer than its steps");
  checker.check_outputs();
  return program;
}

}  // namespace plan
}  // namespace fastcnn
