// `warpgroup.cuh` for the CPU, on top of `emulated.hpp`: what is under way on a GPU is done at once here. Shared memory
// holds tiles as the GPU's does, pieces of sixteen bytes exchanged by the address's bits, and products read it so.
#pragma once
#include "emulated.hpp"

#ifndef KIND
#define KIND 0
#endif
#ifndef DEPTH_BYTES
#define DEPTH_BYTES 128
#endif
#define __grid_constant__

// Of a matrix, or of a picture.
struct TensorMap {
  char* base;
  long long itemsize, rows, columns, pitch, tile_rows, tile_columns, swizzle;  // pitch in bytes
  long long images, high, wide, channels, pixel_bytes, row_bytes, image_bytes;
  long long tile_channels, tile_wide, tile_high, row_step;                      // of a rectangle
  long long pixels, window_high, window_wide, pad_top, pad_left, pad_bottom, pad_right, stride_high, stride_wide;
};

struct alignas(8) Two {
  float low, high;
};

// In rows of so many bytes.
inline unsigned int exchanged(unsigned int offset, long long line = 128) {
  return offset ^ (offset >> 7 & (line == 128 ? 7 : 3)) << 4;
}

inline void arrived(Address barrier, long bytes) {
  std::lock_guard lock(my_cluster->mutex);
  Counter& counter = my_cluster->counters.at(barrier);
  counter.bytes -= bytes;
  end_of_phase(counter);
}

inline void fetch_map(const TensorMap&) {}
inline void tile_fetch(const TensorMap&, unsigned int, unsigned int) {}

inline void tile_load(Address to, const TensorMap& map, unsigned int column, unsigned int row, Address barrier) {
  const unsigned int line = map.tile_columns * map.itemsize;
  if ((line != 128 && line != 64) || (to & (8 * line - 1)) != 0 || map.tile_rows > 256) std::exit(72);
  for (unsigned int high = 0; high < map.tile_rows; ++high) {
    for (unsigned int wide = 0; wide < map.tile_columns; ++wide) {
      char* place = at_address(exchanged(to + high * line + wide * map.itemsize, line));
      if (row + high < map.rows && column + wide < map.columns) {
        std::memcpy(place, map.base + (row + high) * map.pitch + (column + wide) * map.itemsize, map.itemsize);
      } else {
        std::memset(place, 0, map.itemsize);
      }
    }
  }
  arrived(barrier, map.tile_rows * line);
}

inline void tile_load_to(unsigned short blocks, Address to, const TensorMap& map, unsigned int column, unsigned int row,
                         Address barrier) {
  for (unsigned int rank = 0; rank < 16; ++rank) {
    if (blocks >> rank & 1) tile_load(address_in_block(to, rank), map, column, row, address_in_block(barrier, rank));
  }
}

inline void tile_store(const TensorMap& map, unsigned int column, unsigned int row, Address from) {
  const unsigned int line = map.tile_columns * map.itemsize;
  if ((line != 128 && line != 64) || (from & (8 * line - 1)) != 0) std::exit(72);
  for (unsigned int high = 0; high < map.tile_rows && row + high < map.rows; ++high) {
    for (unsigned int wide = 0; wide < map.tile_columns && column + wide < map.columns; ++wide) {
      std::memcpy(map.base + (row + high) * map.pitch + (column + wide) * map.itemsize,
                  at_address(exchanged(from + high * line + wide * map.itemsize, line)), map.itemsize);
    }
  }
}

// Where channels of a pixel lie, outside of the picture nowhere.
inline char* channel_of(const TensorMap& map, long long channel, long long wide, long long high, long long image) {
  const bool inside = image >= 0 && image < map.images && high >= 0 && high < map.high && wide >= 0 && wide < map.wide;
  if (!inside || channel >= map.channels) return nullptr;
  return map.base + image * map.image_bytes + high * map.row_bytes + wide * map.pixel_bytes + channel * map.itemsize;
}

inline void channels_load(Address to, const TensorMap& map, unsigned int channel, long long wide, long long high, long long image) {
  for (unsigned int number = 0; number < map.tile_channels; ++number) {
    char* place = at_address(exchanged(to + number * map.itemsize, map.tile_channels * map.itemsize));
    const char* from = channel_of(map, channel + number, wide, high, image);
    if (from != nullptr) std::memcpy(place, from, map.itemsize);
    if (from == nullptr) std::memset(place, 0, map.itemsize);
  }
}

inline void window_load(Address to, const TensorMap& map, unsigned int channel, int wide, int high, int image,
                        unsigned int tap_wide, unsigned int tap_high, Address barrier) {
  const long long line = map.tile_channels * map.itemsize;
  if ((line != 128 && line != 64) || (to & (8 * line - 1)) != 0 || map.pixels > 1024) std::exit(72);
  // One past the last corner, as the driver is told: from the picture's lower right.
  const long long end_wide = map.wide + map.pad_right - (map.window_wide - 1);
  const long long end_high = map.high + map.pad_bottom - (map.window_high - 1);
  for (unsigned int pixel = 0; pixel < map.pixels; ++pixel, to += line) {
    channels_load(to, map, channel, wide + static_cast<int>(tap_wide), high + static_cast<int>(tap_high), image);
    wide += map.stride_wide;
    if (wide >= end_wide) wide = -map.pad_left, high += map.stride_high;
    if (high >= end_high) high = -map.pad_top, ++image;
  }
  arrived(barrier, map.pixels * line);
}

inline void pixels_load(Address to, const TensorMap& map, unsigned int channel, int wide, int high, int image, Address barrier) {
  const long long line = map.tile_channels * map.itemsize;
  if ((line != 128 && line != 64) || (to & (8 * line - 1)) != 0) std::exit(72);
  for (int down = 0; down < map.tile_high; ++down) {
    for (int right = 0; right < map.tile_wide; ++right, to += line) channels_load(to, map, channel, wide + right, high + down * map.row_step, image);
  }
  arrived(barrier, map.tile_high * map.tile_wide * line);
}

inline void pixels_store(const TensorMap& map, unsigned int channel, int wide, int high, int image, Address from) {
  const long long line = map.tile_channels * map.itemsize;
  for (int down = 0; down < map.tile_high; ++down) {
    for (int right = 0; right < map.tile_wide; ++right, from += line) {
      for (unsigned int number = 0; number < map.tile_channels; ++number) {
        char* to = channel_of(map, channel + number, wide + right, high + down, image);
        if (to != nullptr) std::memcpy(to, at_address(exchanged(from + number * map.itemsize, line)), map.itemsize);
      }
    }
  }
}

template <int BUT>
void stores_have_read() {}
inline void stores_are_one() {}
inline void show_to_stores() {}

inline void barrier_arrive(Address barrier) {
  std::lock_guard lock(my_cluster->mutex);
  Counter& counter = my_cluster->counters.at(barrier);
  --counter.pending;
  end_of_phase(counter);
}
inline void barrier_arrive_there(Address barrier) { barrier_arrive(barrier); }
inline void cluster_meet() { my_cluster->all.arrive_and_wait(); }

inline void warp_sync() { my_warp().meet.arrive_and_wait(); }

template <int REGISTERS>
void give_registers() {}
template <int REGISTERS>
void take_registers() {}

inline Two load_two(const float* from) { return Two{from[0], from[1]}; }
inline unsigned short shared_load_short(Address from) {
  unsigned short value;
  std::memcpy(&value, at_address(from), sizeof value);
  return value;
}
inline void shared_store_short(Address to, unsigned short value) { std::memcpy(at_address(to), &value, sizeof value); }

inline float of_e4m3(unsigned char bits) {
  const int exponent = bits >> 3 & 15, fraction = bits & 7;
  const float size = exponent ? std::ldexp(8.0f + fraction, exponent - 10) : std::ldexp(fraction * 1.0f, -9);
  return (exponent == 15 && fraction == 7) ? NAN : bits >> 7 ? -size : size;
}
inline unsigned char to_e4m3(float number) {
  unsigned char nearest = 0;
  float least = INFINITY;
  for (unsigned int bits = 0; bits < 127; ++bits) {  // of two as near, the even one
    const float apart = std::fabs(of_e4m3(bits) - std::fabs(number));
    if (apart < least || (apart == least && bits % 2 == 0)) least = apart, nearest = bits;
  }
  return nearest | (std::signbit(number) ? 128 : 0);
}
inline unsigned short narrow_to_e4m3(float low, float high) { return to_e4m3(low) | to_e4m3(high) << 8; }
inline unsigned short narrow_to_int8(float low, float high) {
  const auto one = [](float number) {
    const float most = number != number ? 0.0f : std::fmin(std::fmax(std::nearbyint(number), -128.0f), 127.0f);
    return static_cast<unsigned int>(static_cast<int>(most)) & 0xff;
  };
  return static_cast<unsigned short>(one(low) | one(high) << 8);
}
inline Two wide_of_e4m3(unsigned short both) {
  return Two{of_e4m3(static_cast<unsigned char>(both)), of_e4m3(static_cast<unsigned char>(both >> 8))};
}

using Matrix = unsigned long long;

// As the instruction set has it: start, and the distance of eight rows from the next eight, in sixteens of bytes; the
// last bits say that pieces are exchanged within 128 bytes.
inline Matrix matrix_at(Address address) {
  return static_cast<Matrix>((address & 0x3ffff) >> 4) | 1ull << 16 | (DEPTH_BYTES / 2ull) << 32 | (DEPTH_BYTES == 64 ? 2ull : 1ull) << 62;
}
constexpr Matrix MATRIX_STEP = 2;

#if KIND == 1
using Sum = int;
#else
using Sum = float;
#endif
constexpr unsigned int BYTES = KIND == 0 ? 2 : 1, DEPTHS = 32 / BYTES;  // of a number; numbers of one product

inline Sum of_matrix(Matrix matrix, unsigned int row, unsigned int depth) {
  const unsigned int start = (matrix & 0x3fff) << 4, eight_rows = (matrix >> 32 & 0x3fff) << 4;
  const unsigned int line = matrix >> 62 == 1 ? 128 : 64;
  if (matrix >> 62 == 0 || matrix >> 62 == 3) std::exit(73);
  const unsigned int offset = exchanged(start + row / 8 * eight_rows + row % 8 * line + depth * BYTES, line);
  unsigned short bits = 0;
  std::memcpy(&bits, at_address(my_rank << 24 | offset), BYTES);
#if KIND == 1
  return static_cast<signed char>(bits);
#elif KIND == 2
  return of_e4m3(bits);
#else
  return wide(bits);
#endif
}

// The instructions behind it are those of whole warps: nobody begins before all of its lanes have passed what they waited for.
inline void products_begin() { my_warp().meet.arrive_and_wait(); }
inline void products_commit() {}
template <int BUT>
void products_are_done() {
  my_warp().meet.arrive_and_wait();
}
template <int SIZE>
void hold(Sum (&)[SIZE]) {}

template <int SIZE>
void multiply_rows(Sum (&sum)[SIZE], Matrix a, Matrix b, unsigned int add) {
  const unsigned int warp = my_thread % 128 / 32, first = 16 * warp + my_lane() / 4;
  Sum left[2][DEPTHS];
  for (unsigned int depth = 0; depth < DEPTHS; ++depth) {
    left[0][depth] = of_matrix(a, first, depth), left[1][depth] = of_matrix(a, first + 8, depth);
  }
  for (unsigned int column = 0; column < 2 * SIZE; ++column) {
    if (column % 8 / 2 != my_lane() % 4) continue;
    for (unsigned int half = 0; half < 2; ++half) {
      Sum& one = sum[column / 8 * 4 + half * 2 + column % 2];
      Sum found = add ? one : 0;
      for (unsigned int depth = 0; depth < DEPTHS; ++depth) found += left[half][depth] * of_matrix(b, column, depth);
      one = found;
    }
  }
}

#if KIND == 0
// Of what all lanes of a warp hold of the left side, and the right side's numbers, by column and depth.
template <int SIZE, class Right>
void multiply_with(float (&sum)[SIZE], const unsigned int (&a)[4], unsigned int add, const Right& right_of) {
  Warp& warp = my_warp();
  warp.given[my_lane()] = Quad{a[0], a[1], a[2], a[3]};
  warp.meet.arrive_and_wait();
  float left[2][16];
  for (unsigned int depth = 0; depth < 16; ++depth) {
    const Quad& given = warp.given[my_lane() / 4 * 4 + depth % 8 / 2];
    const unsigned int words[2] = {depth < 8 ? given.x : given.z, depth < 8 ? given.y : given.w};
    for (unsigned int half = 0; half < 2; ++half) left[half][depth] = wide(static_cast<unsigned short>(words[half] >> 16 * (depth % 2)));
  }
  warp.meet.arrive_and_wait();
  for (unsigned int column = 0; column < 2 * SIZE; ++column) {
    if (column % 8 / 2 != my_lane() % 4) continue;
    float right[16];
    for (unsigned int depth = 0; depth < 16; ++depth) right[depth] = right_of(column, depth);
    for (unsigned int half = 0; half < 2; ++half) {
      float& one = sum[column / 8 * 4 + half * 2 + column % 2];
      float found = add ? one : 0;
      for (unsigned int depth = 0; depth < 16; ++depth) found += left[half][depth] * right[depth];
      one = found;
    }
  }
}

// Rows of b sixteen bytes apart.
template <int SIZE>
void multiply_windows(float (&sum)[SIZE], const unsigned int (&a)[4], Matrix b, unsigned int add) {
  multiply_with(sum, a, add, [&](unsigned int column, unsigned int depth) {
    unsigned short bits;
    const unsigned int offset = ((b & 0x3fff) << 4) + 16 * column + 2 * depth;
    std::memcpy(&bits, at_address(my_rank << 24 | offset), 2);
    return wide(bits);
  });
}

template <int SIZE>
void multiply_held(float (&sum)[SIZE], const unsigned int (&a)[4], Matrix b, unsigned int add) {
  multiply_with(sum, a, add, [&](unsigned int column, unsigned int depth) { return of_matrix(b, column, depth); });
}
#endif
