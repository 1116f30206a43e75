// SPDX-License-Identifier: Apache-2.0
// A whole network in one call: plan/program.h says what a program is, plan/run.cpp how it runs.
#include "plan/run.h"

#include "tensor.h"

namespace fastcnn {
namespace {

using plan::External;
using plan::Place;
using plan::Program;
using plan::Value;

// The shapes of the outputs of one image, each behind its rank.
std::vector<std::vector<int64_t>> output_shapes(const std::vector<int64_t>& flat, int64_t count) {
  constexpr const char* kWanted = "fastcnn: run_plan: output_shapes must hold [1, C] or [3, C, H, W] for each output";
  std::vector<std::vector<int64_t>> found;
  for (size_t at = 0; at < flat.size();) {
    const int64_t rank = flat[at++];
    STD_TORCH_CHECK((rank == 1 || rank == 3) && at + size_t(rank) <= flat.size(), kWanted);
    found.emplace_back(flat.begin() + int64_t(at), flat.begin() + int64_t(at) + rank);
    int64_t floats = 1;
    for (const int64_t extent : found.back()) {
      STD_TORCH_CHECK(extent > 0 && extent <= plan::kMostFloats / floats, kWanted, ", got an extent of ", extent);
      floats *= extent;
    }
    at += size_t(rank);
  }
  STD_TORCH_CHECK(int64_t(found.size()) == count, "fastcnn: run_plan: output_shapes must name the ", count, " outputs of the program, got ",
                  found.size());
  return found;
}

External as_it_lies(const Tensor& x) {
  return {static_cast<float*>(const_cast<void*>(x.const_data_ptr())), x.stride(0), x.stride(2), x.stride(3), x.stride(1)};
}

External dense(const Tensor& x) {  // not from the strides: those of an extent of one may be anything
  const int64_t C = x.size(1), W = x.dim() == 4 ? x.size(3) : 1, H = x.dim() == 4 ? x.size(2) : 1;
  return {static_cast<float*>(const_cast<void*>(x.const_data_ptr())), H * W * C, W * C, C, 1};
}

void check_extents(const char* what, const Value& v, int64_t C, int64_t H, int64_t W) {
  STD_TORCH_CHECK(v.lies_in(C, H, W), "fastcnn: run_plan: ", what, " ", v.index, " must be [N, ", v.pixel, ", ", v.H, ", ", v.W,
                  "] as in the program, got [N, ", C, ", ", H, ", ", W, "]");
}

struct Plan {
  Program program;
  std::vector<Tensor> inputs, outputs;
  std::vector<bool> picture;  // of each input
  int64_t images;
};

Plan prepare(const std::vector<Tensor>& inputs, const Tensor& program, const Tensor& weights, const std::vector<int64_t>& output_shapes_) {
  using torch::headeronly::ScalarType;
  STD_TORCH_CHECK(program.scalar_type() == ScalarType::Long && program.dim() == 1 && program.is_contiguous() && program.is_cpu(),
                  "fastcnn: run_plan: program must be a contiguous int64 vector on the CPU");
  STD_TORCH_CHECK(weights.scalar_type() == ScalarType::Float && weights.dim() == 1 && weights.is_contiguous() && weights.is_cpu(),
                  "fastcnn: run_plan: weights must be a contiguous float32 vector on the CPU");
  Plan found{Program::parse(data<int64_t>(program), program.numel(), plan::active_kernels().lanes, weights.numel()), {}, {}, {}, 0};
  const plan::Header& header = *found.program.header;
  for (const plan::Step& step : found.program.steps)
    STD_TORCH_CHECK(plan::active_kernels().of[int(step.op)].run != nullptr,
                    "fastcnn: run_plan: the program has bfloat16 steps, this processor has no AMX: plan it again");
  STD_TORCH_CHECK(int64_t(inputs.size()) == header.inputs, "fastcnn: run_plan: the program takes ", header.inputs, " inputs, got ",
                  inputs.size());
  found.picture.assign(inputs.size(), true);
  for (int64_t i = 0; i < header.values; ++i)
    if (found.program.values[i].place == Place::kInput) found.picture[size_t(found.program.values[i].index)] = false;
  for (size_t i = 0; i < inputs.size(); ++i) {
    const Tensor& x = inputs[i];
    STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float && x.is_cpu() && (x.dim() == 4 || x.dim() == 2), "fastcnn: run_plan: input ", i,
                    " must be a float32 tensor [N, C, H, W] or [N, C] on the CPU");
    STD_TORCH_CHECK(x.size(0) == inputs[0].size(0), "fastcnn: run_plan: inputs must have one batch, got ", inputs[0].size(0), " and ",
                    x.size(0));
    found.inputs.push_back(found.picture[i] && x.dim() == 4 ? x : x.dim() == 4 ? as_layout(x, Layout::kNHWC) : as_contiguous(x));
  }
  found.images = inputs[0].size(0);
  for (const std::vector<int64_t>& shape : output_shapes(output_shapes_, header.outputs)) {
    if (shape.size() == 1) found.outputs.push_back(torch::stable::new_empty(inputs[0], {found.images, shape[0]}));
    else found.outputs.push_back(empty_4d(inputs[0], found.images, shape[0], shape[1], shape[2], Layout::kNHWC));
  }
  for (int64_t i = 0; i < header.values; ++i) {
    const Value& v = found.program.values[i];
    if (v.place == Place::kArena || v.place == Place::kKept) continue;
    const bool output = v.place == Place::kOutput;
    const Tensor& x = (output ? found.outputs : found.inputs)[size_t(v.index)];
    const bool map = x.dim() == 4;
    check_extents(output ? "output" : "input", v, x.size(1), map ? x.size(2) : 1, map ? x.size(3) : 1);
  }
  return found;
}

std::vector<Tensor> execute(const Plan& plan, const Tensor& weights, double* seconds) {
  std::vector<External> inputs, outputs;
  for (size_t i = 0; i < plan.inputs.size(); ++i)
    inputs.push_back(plan.picture[i] && plan.inputs[i].dim() == 4 ? as_it_lies(plan.inputs[i]) : dense(plan.inputs[i]));
  for (const Tensor& y : plan.outputs) outputs.push_back(dense(y));
  plan::run(plan.program, inputs, outputs, data<float>(weights), plan.images, seconds);
  return plan.outputs;
}

}  // namespace

std::vector<Tensor> run_plan_cpu(const std::vector<Tensor>& inputs, const Tensor& program, const Tensor& weights,
                                 const std::vector<int64_t>& output_shapes) {
  return execute(prepare(inputs, program, weights, output_shapes), weights, nullptr);
}

std::tuple<std::vector<Tensor>, Tensor> run_plan_profile_cpu(const std::vector<Tensor>& inputs, const Tensor& program,
                                                             const Tensor& weights, const std::vector<int64_t>& output_shapes) {
  const Plan plan = prepare(inputs, program, weights, output_shapes);
  Tensor seconds = empty_1d(weights, int64_t(plan.program.steps.size()), torch::headeronly::ScalarType::Double);
  double* sums = static_cast<double*>(mutable_data(seconds));
  for (size_t i = 0; i < plan.program.steps.size(); ++i) sums[i] = 0;
  return {execute(plan, weights, sums), seconds};
}

}  // namespace fastcnn

// Not in schemas.txt, which lists what every backend has: a plan is for the CPU.
STABLE_TORCH_LIBRARY_FRAGMENT(fastcnn, m) {
  m.def("run_plan(Tensor[] inputs, Tensor program, Tensor weights, int[] output_shapes) -> Tensor[]");
  m.def("run_plan_profile(Tensor[] inputs, Tensor program, Tensor weights, int[] output_shapes) -> (Tensor[] outputs, Tensor seconds)");
}

// For the planner, by ctypes: whether bfloat16 steps can run here.
extern "C" __attribute__((visibility("default"))) const char* fastcnn_plan_bf16() {
  return fastcnn::plan::active_kernels().of[int(fastcnn::plan::Op::kPointwiseBf16)].run != nullptr ? "yes" : "no";
}

STABLE_TORCH_LIBRARY_IMPL(fastcnn, CPU, m) {
  m.impl("run_plan", TORCH_BOX(&fastcnn::run_plan_cpu));
  m.impl("run_plan_profile", TORCH_BOX(&fastcnn::run_plan_profile_cpu));
}
