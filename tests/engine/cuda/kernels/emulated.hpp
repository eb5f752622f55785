// `primitives.cuh` for the CPU: a thread for every lane, all blocks of one cluster at a time. What a warp does together
// it does here through an exchange that all its lanes meet at; barriers count bytes as the GPU's do. A wait that
// lasts ends the process with 70.
#pragma once
#include <barrier>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

#define __device__
#define __global__
#define __forceinline__ inline
#define __cluster_dims__(...)
#define __launch_bounds__(...)

using Address = unsigned int;  // rank in the cluster, and offset in the block's memory
using Barrier = unsigned long long;
struct alignas(8) Pair {
  unsigned int x, y;
};
struct alignas(16) Quad {
  unsigned int x, y, z, w;
};
struct alignas(16) Floats {
  float x, y, z, w;
};

constexpr unsigned int MEMORY = 1 << 18, BARRIERS = 1 << 16;  // where a block's barriers lie

struct Counter {
  int arrivals = 0, pending = 0, phase = 0;
  long bytes = 0;
};

struct Warp {
  std::barrier<> meet{32};
  Quad given[32];
  Address rows[32];
};

struct Block {
  explicit Block(unsigned int threads) : memory(MEMORY / 16, Quad{0x7e007e00u, 0x7e007e00u, 0x7e007e00u, 0x7e007e00u}), all(threads) {
    for (unsigned int warp = 0; warp < threads / 32; ++warp) warps.emplace_back();
  }
  std::vector<Quad> memory;  // of NaN
  std::barrier<> all;
  std::deque<Warp> warps;
  std::map<unsigned int, std::unique_ptr<std::barrier<>>> some;
};

struct Cluster {
  Cluster(unsigned int blocks, unsigned int threads) : all(blocks * threads) {
    for (unsigned int block = 0; block < blocks; ++block) this->blocks.emplace_back(threads);
  }
  std::deque<Block> blocks;
  std::barrier<> all;
  std::map<Address, Counter> counters;
  std::mutex mutex;
  std::condition_variable changed;
};

thread_local Cluster* my_cluster;
thread_local unsigned int my_rank, my_thread, my_block_index;

inline Block& my_block() { return my_cluster->blocks[my_rank]; }
inline Warp& my_warp() { return my_block().warps[my_thread / 32]; }
inline unsigned int my_lane() { return my_thread % 32; }
inline Quad* block_memory() { return my_block().memory.data(); }
inline Barrier* block_barriers() { return reinterpret_cast<Barrier*>(reinterpret_cast<char*>(block_memory()) + BARRIERS); }
inline char* at_address(Address address) {
  if ((address & 0xffffff) >= MEMORY) std::exit(71);
  return reinterpret_cast<char*>(my_cluster->blocks.at(address >> 24).memory.data()) + (address & 0xffffff);
}

inline unsigned int thread_index() { return my_thread; }
inline unsigned int block_index() { return my_block_index; }
inline unsigned int cluster_rank() { return my_rank; }
inline Address shared_address(const void* pointer) {
  return my_rank << 24 | static_cast<Address>(static_cast<const char*>(pointer) - reinterpret_cast<char*>(block_memory()));
}
inline Address address_in_block(Address own, unsigned int rank) { return (own & 0xffffff) | rank << 24; }

inline void wait_for_kernel_ahead() {}
inline void let_kernel_behind_start() {}
inline void block_sync() { my_block().all.arrive_and_wait(); }
inline void cluster_arrive() {}
inline void cluster_wait() { my_cluster->all.arrive_and_wait(); }
inline void barriers_initialised() {}
inline void warps_sync(unsigned int barrier, unsigned int threads) {
  std::barrier<>* found;
  {
    std::lock_guard lock(my_cluster->mutex);
    auto& one = my_block().some[barrier];
    if (!one) one = std::make_unique<std::barrier<>>(threads);
    found = one.get();
  }
  found->arrive_and_wait();
}

inline void end_of_phase(Counter& counter) {
  if (counter.pending == 0 && counter.bytes == 0) {
    counter.pending = counter.arrivals;
    ++counter.phase;
    my_cluster->changed.notify_all();
  }
}
inline void barrier_init(Address barrier, unsigned int arrivals) {
  std::lock_guard lock(my_cluster->mutex);
  my_cluster->counters[barrier] = Counter{static_cast<int>(arrivals), static_cast<int>(arrivals)};
}
inline void barrier_expect(Address barrier, unsigned int bytes) {
  std::lock_guard lock(my_cluster->mutex);
  Counter& counter = my_cluster->counters.at(barrier);
  counter.bytes += bytes;
  --counter.pending;
  end_of_phase(counter);
}
inline void barrier_wait(Address barrier, unsigned int parity) {
  std::unique_lock lock(my_cluster->mutex);
  const bool over = my_cluster->changed.wait_for(lock, std::chrono::seconds(60), [&] {
    return my_cluster->counters.at(barrier).phase % 2 != static_cast<int>(parity);
  });
  if (!over) std::exit(70);
}
inline void store_async(Address to, Quad value, Address barrier) {
  std::lock_guard lock(my_cluster->mutex);
  std::memcpy(at_address(to), &value, sizeof value);
  Counter& counter = my_cluster->counters.at(barrier);
  counter.bytes -= sizeof value;
  end_of_phase(counter);
}

template <class T>
T load_constant(const T* from) {
  return *from;
}
template <class T>
T load_fresh(const T* from) {
  return *from;
}
inline void shared_store(Address to, unsigned int value) { std::memcpy(at_address(to), &value, sizeof value); }
inline void shared_store(Address to, const float (&value)[4]) { std::memcpy(at_address(to), value, sizeof value); }
inline void shared_store(Address to, Pair value) { std::memcpy(at_address(to), &value, sizeof value); }
inline void shared_store(Address to, Quad value) { std::memcpy(at_address(to), &value, sizeof value); }
inline Pair shared_load(Address from) {
  Pair value;
  std::memcpy(&value, at_address(from), sizeof value);
  return value;
}
inline Quad shared_load_quad(Address from) {
  Quad value;
  std::memcpy(&value, at_address(from), sizeof value);
  return value;
}
inline void copy_ahead(Address to, const Quad* from, bool there) {
  const Quad value = there ? *from : Quad{};
  std::memcpy(at_address(to), &value, sizeof value);
}
inline void copies_commit() {}
inline void copies_are_done() {}
inline unsigned int bits_of_float(float number) {
  unsigned int bits;
  std::memcpy(&bits, &number, sizeof bits);
  return bits;
}
inline unsigned int shared_load_word(Address from) {
  unsigned int value;
  std::memcpy(&value, at_address(from), sizeof value);
  return value;
}
inline Floats shared_load_floats(Address from) {
  Floats value;
  std::memcpy(&value, at_address(from), sizeof value);
  return value;
}
inline Quad load_matrices(Address row) {
  Warp& warp = my_warp();
  warp.rows[my_lane()] = row;
  warp.meet.arrive_and_wait();
  unsigned int words[4];
  for (unsigned int matrix = 0; matrix < 4; ++matrix) {
    std::memcpy(&words[matrix], at_address(warp.rows[8 * matrix + my_lane() / 4]) + 4 * (my_lane() % 4), 4);
  }
  warp.meet.arrive_and_wait();
  return Quad{words[0], words[1], words[2], words[3]};
}
inline unsigned int from_lane(unsigned int value, unsigned int lane) {
  Warp& warp = my_warp();
  warp.given[my_lane()].x = value;
  warp.meet.arrive_and_wait();
  const unsigned int found = warp.given[lane].x;
  warp.meet.arrive_and_wait();
  return found;
}
template <class T>
T from_lane(T value, unsigned int lane) {
  unsigned int bits;
  std::memcpy(&bits, &value, sizeof bits);
  bits = from_lane(bits, lane);
  std::memcpy(&value, &bits, sizeof bits);
  return value;
}
inline unsigned int half_of(unsigned int both, unsigned int which) { return both >> 16 * which & 0xffff; }
inline unsigned int transposed(unsigned int value) {
  Warp& warp = my_warp();
  warp.given[my_lane()].x = value;
  warp.meet.arrive_and_wait();
  const unsigned int column = my_lane() / 4, row = 2 * (my_lane() % 4);  // of what was given
  const unsigned int low = half_of(warp.given[row * 4 + column / 2].x, column % 2);
  const unsigned int high = half_of(warp.given[(row + 1) * 4 + column / 2].x, column % 2);
  warp.meet.arrive_and_wait();
  return low | high << 16;
}

#ifdef BFLOAT16
inline float wide(unsigned short bits) {
  const unsigned int word = static_cast<unsigned int>(bits) << 16;
  float value;
  std::memcpy(&value, &word, 4);
  return value;
}
inline unsigned short rounded(float value) {
  unsigned int word;
  std::memcpy(&word, &value, 4);
  return static_cast<unsigned short>((word + 0x7fff + (word >> 16 & 1)) >> 16);
}
#else
inline float wide(unsigned short bits) {
  _Float16 value;
  std::memcpy(&value, &bits, 2);
  return static_cast<float>(value);
}
inline unsigned short rounded(float value) {
  const _Float16 half = static_cast<_Float16>(value);
  unsigned short bits;
  std::memcpy(&bits, &half, 2);
  return bits;
}
#endif
inline unsigned int narrow(float low, float high) { return rounded(low) | static_cast<unsigned int>(rounded(high)) << 16; }

inline void multiply_add(float (&sum)[4], const Quad& a, unsigned int b_low, unsigned int b_high) {
  static thread_local unsigned int left[32][4], right[32][2];
  Warp& warp = my_warp();
  warp.given[my_lane()] = a;
  warp.meet.arrive_and_wait();
  std::memcpy(left, warp.given, sizeof left);
  warp.meet.arrive_and_wait();
  warp.given[my_lane()] = Quad{b_low, b_high, 0, 0};
  warp.meet.arrive_and_wait();
  for (unsigned int lane = 0; lane < 32; ++lane) right[lane][0] = warp.given[lane].x, right[lane][1] = warp.given[lane].y;
  warp.meet.arrive_and_wait();
  for (unsigned int number = 0; number < 4; ++number) {
    const unsigned int row = my_lane() / 4 + number / 2 * 8, column = my_lane() % 4 * 2 + number % 2;
    for (unsigned int k = 0; k < 16; ++k) {
      const float one = wide(half_of(left[row % 8 * 4 + k % 8 / 2][row / 8 + k / 8 * 2], k % 2));
      sum[number] += one * wide(half_of(right[column * 4 + k % 8 / 2][k / 8], k % 2));
    }
  }
}

inline void multiply_add_half(float (&sum)[4], unsigned int a_upper, unsigned int a_lower, unsigned int b) {
  multiply_add(sum, Quad{a_upper, a_lower, 0, 0}, b, 0);
}

inline void multiply_add(int (&sum)[4], const Quad& a, unsigned int b_low, unsigned int b_high) {
  static thread_local signed char left[32][4][4], right[32][4][4];
  Warp& warp = my_warp();
  warp.given[my_lane()] = a;
  warp.meet.arrive_and_wait();
  std::memcpy(left, warp.given, sizeof left);
  warp.meet.arrive_and_wait();
  warp.given[my_lane()] = Quad{b_low, b_high, 0, 0};
  warp.meet.arrive_and_wait();
  std::memcpy(right, warp.given, sizeof right);
  warp.meet.arrive_and_wait();
  for (unsigned int number = 0; number < 4; ++number) {
    const unsigned int row = my_lane() / 4 + number / 2 * 8, column = my_lane() % 4 * 2 + number % 2;
    for (unsigned int k = 0; k < 32; ++k) {
      const int one = left[row % 8 * 4 + k % 16 / 4][row / 8 + k / 16 * 2][k % 4];
      sum[number] += one * right[column * 4 + k % 16 / 4][k / 16][k % 4];
    }
  }
}
inline void multiply_add_half(int (&sum)[4], unsigned int a_upper, unsigned int a_lower, unsigned int b) {
  multiply_add(sum, Quad{a_upper, a_lower, 0, 0}, b, 0);
}
inline float whole_to_float(int number) {
  if (number >= 1 << 22 || number <= -(1 << 22)) std::exit(73);
  return static_cast<float>(number);
}
inline float byte_to_float(unsigned int word, unsigned int which) {
  return static_cast<float>(static_cast<signed char>(word >> 8 * which & 0xff));
}
inline unsigned int bytes(float first, float second, float third, float fourth) {
  unsigned int all = 0, shift = 0;
  for (float each : {first, second, third, fourth}) {
    const float whole = std::fmin(std::fmax(std::nearbyint(each), -128.0f), 127.0f);
    all |= (static_cast<unsigned int>(static_cast<int>(whole)) & 0xff) << shift;
    shift += 8;
  }
  return all;
}

inline float power_of_two(float exponent) { return std::exp2(exponent); }
inline float reciprocal(float number) { return 1.0f / number; }
inline float rough_tanh(float number) { return std::tanh(number); }

inline float number_of(unsigned int bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline unsigned int bits_of(float number) {
  unsigned int bits;
  std::memcpy(&bits, &number, 4);
  return bits;
}

inline float greater(float one, float other) { return one != one ? one : other != other ? other : one > other ? one : other; }
inline float smaller(float one, float other) { return one != one ? one : other != other ? other : one < other ? one : other; }

inline float number_of_half(unsigned int bits) {
  const unsigned short half = static_cast<unsigned short>(bits);
  _Float16 value;
  std::memcpy(&value, &half, 2);
  return static_cast<float>(value);
}
inline unsigned int half_of_number(float number) {
  const _Float16 half = static_cast<_Float16>(number);
  unsigned short bits;
  std::memcpy(&bits, &half, 2);
  return bits;
}
inline float low_of_halves(unsigned int both) { return number_of_half(both & 0xffff); }
inline float high_of_halves(unsigned int both) { return number_of_half(both >> 16); }
inline unsigned int halves_multiply_add(unsigned int one, unsigned int other, unsigned int sum) {
  const float low = low_of_halves(one) * low_of_halves(other) + low_of_halves(sum);
  const float high = high_of_halves(one) * high_of_halves(other) + high_of_halves(sum);
  return half_of_number(low) | half_of_number(high) << 16;
}
inline unsigned int halves_add(unsigned int one, unsigned int other) {
  return half_of_number(low_of_halves(one) + low_of_halves(other)) |
         half_of_number(high_of_halves(one) + high_of_halves(other)) << 16;
}
inline unsigned int halves_of_numbers(float low, float high) { return half_of_number(low) | half_of_number(high) << 16; }
inline unsigned int greater_of_halves(unsigned int one, unsigned int other) {
  return halves_of_numbers(std::fmax(low_of_halves(one), low_of_halves(other)), std::fmax(high_of_halves(one), high_of_halves(other)));
}
inline unsigned int smaller_of_halves(unsigned int one, unsigned int other) {
  return halves_of_numbers(std::fmin(low_of_halves(one), low_of_halves(other)), std::fmin(high_of_halves(one), high_of_halves(other)));
}
inline unsigned int halves_add_bounded(unsigned int one, unsigned int other) {
  return greater_of_halves(halves_add(one, other), 0);
}
inline unsigned int permuted(unsigned int first, unsigned int second, unsigned int selector) {
  const unsigned long long bytes = first | static_cast<unsigned long long>(second) << 32;
  unsigned int found = 0;
  for (unsigned int digit = 0; digit < 4; ++digit) {
    found |= static_cast<unsigned int>(bytes >> 8 * (selector >> 4 * digit & 7) & 0xff) << 8 * digit;
  }
  return found;
}

inline unsigned int int8_bits(float number) {
  const float within = number != number ? 0.0f : number < -128.0f ? -128.0f : number > 127.0f ? 127.0f : number;
  return static_cast<unsigned char>(static_cast<int>(std::nearbyint(within)));
}
inline unsigned int packed_int8(float first, float second, float third, float fourth) {
  return int8_bits(first) | int8_bits(second) << 8 | int8_bits(third) << 16 | int8_bits(fourth) << 24;
}

inline unsigned int greater_of_both(unsigned int one, unsigned int other) {
  return narrow(greater(wide(one & 0xffff), wide(other & 0xffff)), greater(wide(one >> 16), wide(other >> 16)));
}
inline unsigned int smaller_of_both(unsigned int one, unsigned int other) {
  return narrow(smaller(wide(one & 0xffff), wide(other & 0xffff)), smaller(wide(one >> 16), wide(other >> 16)));
}

// One cluster after the other.
template <class Kernel>
void launch(unsigned int grid, unsigned int cluster, unsigned int threads, Kernel kernel) {
  for (unsigned int first = 0; first < grid; first += cluster) {
    Cluster blocks(cluster, threads);
    std::vector<std::thread> running;
    for (unsigned int number = 0; number < cluster * threads; ++number) {
      running.emplace_back([&, number] {
        my_cluster = &blocks, my_rank = number / threads, my_thread = number % threads;
        my_block_index = first + my_rank;
        kernel();
      });
    }
    for (std::thread& each : running) each.join();
  }
}
