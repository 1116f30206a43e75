// SPDX-License-Identifier: Apache-2.0
// Runs plans without torch, for the sanitizers: `harness MODE THREADS CASE...`. A case is a file that cases.py writes; its
// results go to CASE.out, or the error to CASE.error.
//
//   run, late, fewer, serial  the executor of csrc/cpu/plan, on threads of this file: all of them; the last one late; one
//                             thread fewer, so that one has two parts; all parts on one thread, one after another.
//   callers                   three calls of `run` at the same time.
//   steps                     an executor of its own, every buffer of the program, every thread's scratch and what the team
//                             shares a block of its own from the heap: the executor's single block would hide an overrun.
//   barrier, race             no case: a team counts together, and a barrier keeps its steps apart; or none does.
#include <chrono>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>

#include "../../csrc/cpu/parallel.h"
#include "../../csrc/cpu/plan/run.h"

using namespace fastcnn::plan;

namespace {

std::string mode;
int threads = 1;

void together(int count, const std::function<void(int)>& body) {
  std::vector<std::thread> team;
  for (int rank = 1; rank < count; ++rank) team.emplace_back(body, rank);
  body(0);
  for (std::thread& each : team) each.join();
}

}  // namespace

namespace fastcnn {

int thread_count() { return threads; }

// The pool of the executor: count is the number of threads, grain 1.
void parallel_run(int64_t count, int64_t, RangeFunction function, void* context) {
  if (mode == "serial") {
    for (int64_t rank = 0; rank < count; ++rank) function(rank, rank + 1, context);
    return;
  }
  const int workers = mode == "fewer" ? int(count) - 1 : int(count);
  together(workers, [&](int rank) {
    if (mode == "late" && rank + 1 == workers) std::this_thread::sleep_for(std::chrono::milliseconds(20));
    function(rank, rank + 1 == workers ? count : rank + 1, context);
  });
}

}  // namespace fastcnn

namespace {

using Floats = std::unique_ptr<float[]>;

struct Outside {  // an input or output
  int64_t C, H, W, image, row, pixel, channel, count;
  Floats data;

  External external() const { return {data.get(), image, row, pixel, channel}; }
};

struct Case {
  int64_t images;
  std::vector<int64_t> program;
  int64_t weight_count;
  Floats weights;
  std::vector<Outside> inputs, outputs;
};

void read(std::ifstream& file, void* to, int64_t bytes) {
  file.read(static_cast<char*>(to), bytes);
  if (!file) throw std::logic_error("the case ends early");
}

Floats floats(std::ifstream& file, int64_t count) {
  Floats found(new float[size_t(count)]);
  read(file, found.get(), count * int64_t(sizeof(float)));
  return found;
}

Case load(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  int64_t head[5];
  read(file, head, sizeof head);
  Case found{head[0], std::vector<int64_t>(size_t(head[1])), head[2], nullptr, {}, {}};
  read(file, found.program.data(), head[1] * 8);
  found.weights = floats(file, head[2]);
  for (int64_t i = 0; i < head[3] + head[4]; ++i) {
    Outside each;
    read(file, &each, 8 * 8);
    if (i < head[3]) {
      each.data = floats(file, each.count);
      found.inputs.push_back(std::move(each));
    } else {
      each.data.reset(new float[size_t(each.count)]);
      std::memset(each.data.get(), 0xff, size_t(each.count) * sizeof(float));  // NaN
      found.outputs.push_back(std::move(each));
    }
  }
  return found;
}

std::vector<External> externals(const std::vector<Outside>& all) {
  std::vector<External> found;
  for (const Outside& each : all) found.push_back(each.external());
  return found;
}

// Each buffer of arena or kept memory, by where it begins, as long as its longest value.
class Buffers {
 public:
  Buffers(const Program& program, int64_t images) {
    std::map<std::pair<Place, int64_t>, int64_t> longest;
    for (int64_t i = 0; i < program.header->values; ++i) {
      const Value& v = program.values[i];
      int64_t& size = longest[{v.place, v.buffer}];
      size = std::max(size, v.H * v.W * v.pixel * images);
    }
    for (const auto& [key, size] : longest)
      if (key.first == Place::kArena || key.first == Place::kKept) blocks_[key].reset(new float[size_t(size)]());
  }
  float* of(const Value& v) const { return blocks_.at({v.place, v.buffer}).get(); }

 private:
  std::map<std::pair<Place, int64_t>, Floats> blocks_;
};

void run_steps(const Program& program, Case& given) {
  const Buffers buffers(program, given.images);
  std::vector<Map> maps;
  for (int64_t i = 0; i < program.header->values; ++i) {
    const Value& v = program.values[i];
    if (v.place == Place::kArena || v.place == Place::kKept) {
      maps.push_back({buffers.of(v) + v.channel, given.images, v.H, v.W, v.C, v.H * v.W * v.pixel, v.W * v.pixel, v.pixel, 1});
    } else {
      const External e = (v.place == Place::kOutput ? given.outputs : given.inputs)[size_t(v.index)].external();
      maps.push_back({e.data + v.channel * e.channel, given.images, v.H, v.W, v.C, e.image, e.row, e.pixel, e.channel});
    }
  }
  for (const Step& step : program.steps) {
    const Kernel& kernel = active_kernels().of[int(step.op)];
    Barrier barrier(threads);
    Call call{step, maps.data(), given.weights.get(), nullptr, nullptr, Team{0, threads, &barrier}};
    const int64_t scratch = aligned(kernel.scratch(call)), shared = aligned(kernel.shared(call));
    const std::unique_ptr<float, decltype(&std::free)> all(static_cast<float*>(std::aligned_alloc(64, size_t(shared + kAlignment) * sizeof(float))), &std::free);
    together(threads, [&](int rank) {
      const std::unique_ptr<float, decltype(&std::free)> mine(static_cast<float*>(std::aligned_alloc(64, size_t(scratch + kAlignment) * sizeof(float))), &std::free);
      Call each{step, maps.data(), given.weights.get(), mine.get() + kAlignment, all.get() + kAlignment, Team{rank, threads, &barrier}};
      kernel.run(each);
    });
  }
}

void check(const Program& program, const Case& given) {
  for (int64_t i = 0; i < program.header->values; ++i) {
    const Value& v = program.values[i];
    if (v.place == Place::kArena || v.place == Place::kKept) continue;
    const std::vector<Outside>& all = v.place == Place::kOutput ? given.outputs : given.inputs;
    if (size_t(v.index) >= all.size()) throw std::runtime_error("fastcnn: run_plan: inputs or outputs are missing");
    const Outside& each = all[size_t(v.index)];
    if (!v.lies_in(each.C, each.H, each.W)) throw std::runtime_error("fastcnn: run_plan: an input or output has another shape");
  }
}

void execute(const std::string& path) {
  Case given = load(path);
  try {
    const Program program = Program::parse(given.program.data(), int64_t(given.program.size()), active_kernels().lanes, given.weight_count);
    check(program, given);
    if (mode == "steps" && given.images > 0) run_steps(program, given);
    else if (mode != "steps") run(program, externals(given.inputs), externals(given.outputs), given.weights.get(), given.images, nullptr);
  } catch (const std::runtime_error& error) {
    std::ofstream(path + ".error") << error.what();
    return;
  }
  std::ofstream out(path + ".out", std::ios::binary);
  for (const Outside& each : given.outputs) out.write(reinterpret_cast<const char*>(each.data.get()), each.count * int64_t(sizeof(float)));
}

// Every thread adds to a plain number in its turn and reads what all have added: a race, or a wrong sum, if a barrier leaks.
int count_together() {
  constexpr int kRounds = 500;
  Barrier barrier(threads);
  std::vector<int64_t> parts(size_t(threads), 0);
  bool good = true;
  together(threads, [&](int rank) {
    const Team team{rank, threads, &barrier};
    for (int round = 1; round <= kRounds; ++round) {
      parts[size_t(rank)] = round * (rank + 1);
      if (mode != "race") team.wait();
      int64_t sum = 0;
      for (const int64_t each : parts) sum += each;
      team.wait();
      if (rank == 0 && sum != int64_t(round) * threads * (threads + 1) / 2) good = false;
    }
  });
  return good ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) return 2;
  mode = argv[1], threads = std::atoi(argv[2]);
  if (mode == "barrier" || mode == "race") return count_together();
  if (mode == "callers") {
    // each has cases of its own; the memory of finished calls is what they share
    together(3, [&](int caller) {
      for (int i = 3 + caller; i < argc; i += 3) execute(argv[i]);
    });
    return 0;
  }
  for (int i = 3; i < argc; ++i) execute(argv[i]);
  return 0;
}
