// SPDX-License-Identifier: Apache-2.0
// The traffic of a kernel, from the requests that vec.cuh reports: bytes asked for, use of the 32-byte sectors, bytes
// that leave L1, DRAM bytes behind a model of the L2. The n-th helper call of each lane of a warp is one request of
// that warp, so a helper is reached by every live lane (the access is predicated, the call is not branched around). A
// model: it knows no time, no registers, no replays.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <string>
#include <tuple>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "simt_grid.h"

namespace simt {

constexpr uint64_t kSector = 32;
constexpr uint64_t kLine = 128;

struct Buffer {
  std::string name;
  const char* base;
  size_t bytes;
  uint64_t address;  // its place in a device's memory: buffers start at multiples of 512 bytes there
};

struct Request {
  uint64_t address;
  uint64_t block;
  uint32_t ordinal;  // among the thread's own requests
  uint16_t thread;
  uint8_t bytes, buffer;
  bool store;
};

struct BufferTraffic {
  double requested = 0, useful = 0, sectors = 0;
  double efficiency() const { return sectors > 0 ? useful / (double(kSector) * sectors) : 1; }
};

struct Traffic {
  std::map<std::string, BufferTraffic> buffers;
  double left_l1 = 0;  // bytes, when a block never asks twice for a sector
  double requests = 0;
};

class Recorder {
 public:
  bool on = false;

  void start(const std::vector<std::tuple<std::string, uintptr_t, size_t>>& buffers) {
    *this = Recorder();
    uint64_t address = 0;
    for (const auto& [name, base, bytes] : buffers) {
      buffers_.push_back({name, reinterpret_cast<const char*>(base), bytes, address});
      address = (address + bytes + 511) / 512 * 512;
    }
    on = true;
  }

  void add(const void* pointer, int bytes, bool predicate, bool store, Site site) {
    const Grid& g = grid();
    if (g.block_number != block_ || ordinals_.empty()) {
      block_ = g.block_number;
      ordinals_.assign(kMaxThreads, 0);
      sites_.clear();
    }
    const uint32_t ordinal = ordinals_[g.current]++;
    const auto found = sites_.emplace(uint64_t(g.current / kWarp) << 32 | ordinal, site).first;
    if (!(found->second == site))
      throw Error("lanes of one warp reach different accesses: " + found->second.text() + " and " + site.text());
    if (!predicate) return;
    const char* p = static_cast<const char*>(pointer);
    for (size_t i = 0; i < buffers_.size(); ++i) {
      const Buffer& buffer = buffers_[i];
      if (p < buffer.base || p + bytes > buffer.base + buffer.bytes) continue;
      log_.push_back({buffer.address + uint64_t(p - buffer.base), block_, ordinal, uint16_t(g.current), uint8_t(bytes),
                      uint8_t(i), store});
      return;
    }
    throw Error("an access outside every tensor at " + site.text());
  }

  Traffic figures() {
    sort();
    Traffic result;
    std::unordered_set<uint64_t> sectors, addresses, of_block;
    for (size_t begin = 0, end = 0; begin < log_.size(); begin = end) {
      const Request& first = log_[begin];
      if (begin == 0 || log_[begin - 1].block != first.block) of_block.clear();
      sectors.clear(), addresses.clear();
      BufferTraffic& buffer = result.buffers[buffers_[first.buffer].name];
      for (; end < log_.size() && key(log_[end]) == key(first); ++end) {
        const Request& r = log_[end];
        buffer.requested += r.bytes;
        addresses.insert(r.address);  // a broadcast is one use
        sectors.insert(r.address / kSector);
        if (r.store) result.left_l1 += r.bytes;
        else if (of_block.insert(r.address / kSector).second) result.left_l1 += double(kSector);
      }
      buffer.useful += double(addresses.size()) * first.bytes;
      buffer.sectors += double(sectors.size());
      ++result.requests;
    }
    return result;
  }

  // DRAM bytes behind a least-recently-used L2 of `capacity` bytes, lines of 128 bytes filled by sectors, with
  // `resident` blocks in flight that take turns, one request of every warp a turn. With one block at a time even the
  // worst kernel would find all it needs in the cache.
  double dram_bytes(size_t capacity, size_t resident) {
    sort();
    Cache cache(std::max<size_t>(1, capacity / kLine));
    std::vector<size_t> starts;
    for (size_t i = 0; i < log_.size(); ++i)
      if (i == 0 || log_[i].block != log_[i - 1].block) starts.push_back(i);
    starts.push_back(log_.size());
    std::vector<std::pair<size_t, size_t>> live;
    for (size_t next = 0; next + 1 < starts.size() || !live.empty();) {
      for (; live.size() < resident && next + 1 < starts.size(); ++next)
        live.push_back({starts[next], starts[next + 1]});
      for (auto& [at, end] : live)
        for (const uint32_t turn = log_[at].ordinal; at < end && log_[at].ordinal == turn; ++at) cache.touch(log_[at]);
      live.erase(std::remove_if(live.begin(), live.end(), [](const auto& b) { return b.first == b.second; }),
                 live.end());
    }
    return cache.finish();
  }

 private:
  struct Cache {
    struct Line {
      uint64_t number = ~uint64_t(0);
      size_t newer = 0, older = 0;
      uint32_t written = 0;  // a bit per 4 bytes
      uint8_t read = 0;      // a bit per sector
    };

    explicit Cache(size_t capacity) : capacity_(capacity), lines_(1) {}  // lines_[0] holds the ends of the list

    void touch(const Request& r) {
      const uint64_t number = r.address / kLine;
      const auto found = where_.find(number);
      size_t at = found == where_.end() ? take(number) : found->second;
      unlink(at);
      link(at);
      Line& line = lines_[at];
      const uint8_t sector = uint8_t(1u << (r.address % kLine / kSector));
      if (r.store) {
        const uint32_t words = r.bytes >= 4 ? (1u << (r.bytes / 4)) - 1 : 1u;
        line.written |= words << (r.address % kLine / 4);
      } else if (!(line.read & sector)) {
        line.read |= sector;
        bytes_ += double(kSector);
      }
    }

    double finish() {
      for (size_t i = 1; i < lines_.size(); ++i) write_back(lines_[i]);
      return bytes_;
    }

   private:
    size_t take(uint64_t number) {
      size_t at = lines_.size();
      if (at <= capacity_) {
        lines_.emplace_back();
        lines_[at].newer = lines_[at].older = at;
      } else {
        at = lines_[0].newer;  // the end of the list: the least recently used
        write_back(lines_[at]);
        where_.erase(lines_[at].number);
      }
      lines_[at].number = number, lines_[at].written = 0, lines_[at].read = 0;
      where_[number] = at;
      return at;
    }

    void unlink(size_t at) {
      Line& line = lines_[at];
      lines_[line.newer].older = line.older, lines_[line.older].newer = line.newer;
    }

    void link(size_t at) {
      Line &line = lines_[at], &ends = lines_[0];
      line.older = ends.older, line.newer = 0;
      lines_[ends.older].newer = at, ends.older = at;
    }

    // A sector that was written in part is read first, unless it was read before.
    void write_back(const Line& line) {
      for (int s = 0; s < 4; ++s) {
        const uint32_t words = line.written >> (8 * s) & 0xffu;
        if (words == 0) continue;
        bytes_ += double(kSector) * (words != 0xffu && !(line.read >> s & 1u) ? 2 : 1);
      }
    }

    size_t capacity_;
    std::vector<Line> lines_;
    std::unordered_map<uint64_t, size_t> where_;
    double bytes_ = 0;
  };

  static std::tuple<uint64_t, uint32_t, uint16_t, uint8_t> key(const Request& r) {
    return {r.block, r.ordinal, uint16_t(r.thread / kWarp), r.buffer};
  }

  void sort() {
    std::sort(log_.begin(), log_.end(), [](const Request& a, const Request& b) {
      return std::tie(a.block, a.ordinal, a.thread) < std::tie(b.block, b.ordinal, b.thread);
    });
  }

  std::vector<Buffer> buffers_;
  std::vector<Request> log_;
  std::vector<uint32_t> ordinals_;
  std::unordered_map<uint64_t, Site> sites_;
  uint64_t block_ = 0;
};

inline Recorder& recorder() {
  static Recorder instance;
  return instance;
}

// Called by vec.cuh for every global access.
inline void access(const void* pointer, int bytes, bool predicate, bool store, Site site) {
  if (predicate && reinterpret_cast<uintptr_t>(pointer) % uintptr_t(bytes) != 0)
    throw Error("an access of " + std::to_string(bytes) + " bytes is misaligned at " + site.text() + ", " +
                "thread " + std::to_string(grid().current));
  if (recorder().on) recorder().add(pointer, bytes, predicate, store, site);
}

}  // namespace simt
