// SPDX-License-Identifier: Apache-2.0
// One fiber per CUDA thread: a stack of its own and a switch that costs some ten instructions, so that a block of 1024
// threads is cheap.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <new>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace simt {

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStack = size_t(512) << 10;  // red zones, and nothing shares a slot
#else
constexpr size_t kStack = size_t(128) << 10;
#endif

#if defined(__x86_64__)
// Saves the callee-saved registers on the running stack, then takes over the other one.
extern "C" void fastcnn_simt_switch(void** save, void* resume);
asm(R"(
.text
.weak fastcnn_simt_switch
.type fastcnn_simt_switch, @function
fastcnn_simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size fastcnn_simt_switch, .-fastcnn_simt_switch
)");
#endif

class Fiber {
 public:
  Fiber() = default;
  Fiber(const Fiber&) = delete;
  ~Fiber() { discard(); }

  // Enters the fiber, at `entry` the first time; comes back when the fiber calls leave().
  void enter(void (*entry)()) {
    if (memory_ == nullptr) prepare(entry);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&host_fake_, stack(), kStack);
#endif
#if defined(__x86_64__)
    fastcnn_simt_switch(&host_, own_);
#else
    swapcontext(&host_, &own_);
#endif
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(host_fake_, nullptr, nullptr);
#endif
  }

  // The first thing an entry function does.
  void arrived() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &host_bottom_, &host_size_);
#endif
  }

  void leave() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&fake_, host_bottom_, host_size_);
#endif
#if defined(__x86_64__)
    fastcnn_simt_switch(&own_, host_);
#else
    swapcontext(&own_, &host_);
#endif
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake_, &host_bottom_, &host_size_);
#endif
  }

  // Forgets a fiber that was left in the middle of a kernel.
  void discard() {
#if defined(__SANITIZE_ADDRESS__)
    if (memory_ != nullptr)
      __asan_unpoison_memory_region(stack(), kStack);  // the frames that never returned; the pages will serve others
#endif
    if (memory_ != nullptr) munmap(memory_, kStack + page());
    memory_ = nullptr;
  }

 private:
  static size_t page() { return size_t(sysconf(_SC_PAGESIZE)); }
  char* stack() const { return static_cast<char*>(memory_) + page(); }

  void prepare(void (*entry)()) {
    memory_ =
        mmap(nullptr, kStack + page(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory_ == MAP_FAILED) {
      memory_ = nullptr;
      throw std::bad_alloc();
    }
    mprotect(memory_, page(), PROT_NONE);  // a stack overflow is a fault, not a neighbour's damage
#if defined(__x86_64__)
    constexpr int kSavedRegisters = 6;
    void** top = reinterpret_cast<void**>(stack() + kStack - 64);
    *--top = nullptr;  // where entry would return to: it never does
    *--top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < kSavedRegisters; ++i) *--top = nullptr;
    own_ = top;
#else
    getcontext(&own_);
    own_.uc_stack.ss_sp = stack();
    own_.uc_stack.ss_size = kStack;
    own_.uc_link = nullptr;
    makecontext(&own_, entry, 0);
#endif
  }

  void* memory_ = nullptr;
#if defined(__x86_64__)
  void* own_ = nullptr;
  void* host_ = nullptr;
#else
  ucontext_t own_, host_;
#endif
#if defined(__SANITIZE_ADDRESS__)
  void* fake_ = nullptr;
  void* host_fake_ = nullptr;
  const void* host_bottom_ = nullptr;
  size_t host_size_ = 0;
#endif
};

}  // namespace simt
