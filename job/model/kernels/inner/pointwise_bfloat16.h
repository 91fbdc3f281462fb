// 1×1 convolution, forward and backward, by products of bfloat16; sums and all else are in float32.
//
// What is fused is the same as in pointwise.h and pointwise_gradient.h. Operands are copied, as they are formed, into squares
// of 32×32 (square.h): `rows` (a left operand, value after value) and `pairs` (a right operand: the values of two rows by
// turns).
#pragma once
#include "product.h"
#include "square.h"

namespace fashion::VARIANT {

constexpr int64_t kBlockRows = 2 * kSide;  // that are copied, and then multiplied, at a time
static_assert(kSide == kTileColumns && kLanes == 16);

inline V rounded_row(V low, V high) { return (V)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low); }

inline V rounded_pairs(V even, V odd) {
  const __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)even));
  const __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)odd));
  return (V)_mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}

inline void keep(Half* to, V v) { store(reinterpret_cast<float*>(to), v); }

// A matrix in squares: panel after panel of 32 columns, each all rows long. One cache line more lies between panels.
struct Squares {
  Squares(float* memory, int64_t rows) : data(reinterpret_cast<Half*>(memory)), stride(rows * kSide + 32) {}
  static int64_t floats(int64_t rows, int64_t columns) { return ceil_div(columns, kSide) * (rows * kSide + 32) / 2; }
  Half* at(int64_t row, int64_t panel) const { return data + panel * stride + row * kSide; }
  Half* data;
  int64_t stride;
};

// Two vectors of relu6(z · scale + shift) at the channels [c, c + 32); zeros beyond the last row or channel.
struct Activation {
  const Pending& input;
  int64_t rows, channels;
  V operator()(int64_t row, int64_t c) const {
    const int64_t n = channels - c;
    if (row >= rows || n <= 0) return V{};
    return relu6(load(input.z + row * channels + c, n) * load(input.scale + c, n) + load(input.shift + c, n));
  }
};

// The same of the output's whole gradient.
struct Gradient {
  const OutputGradient& g;
  int64_t rows, channels;
  V operator()(int64_t row, int64_t c) const {
    const int64_t n = channels - c, at = row * channels + c;
    if (row >= rows || n <= 0) return V{};
    return output_gradient(g, load(g.dy + at, n), load(g.y + at, n), c, n);
  }
};

// The kernel [in, out], and the same transposed.
struct Plain {
  const float* data;
  int64_t rows, columns;
  V operator()(int64_t row, int64_t c) const {
    const int64_t n = columns - c;
    return row >= rows || n <= 0 ? V{} : load(data + row * columns + c, n);
  }
};

// 32 rows of a matrix from `row` on, in one panel, as a left operand.
template <class Values>
inline void copy_rows(const Values& values, int64_t row, int64_t panel, Half* to) {
  const int64_t c = panel * kSide;
  for (int64_t r = 0; r < kSide; ++r, to += kSide) keep(to, rounded_row(values(row + r, c), values(row + r, c + kLanes)));
}

// The same as a right operand.
template <class Values>
inline void copy_pairs(const Values& values, int64_t row, int64_t panel, Half* to) {
  for (int64_t r = 0; r < kSide; r += 2, to += 2 * kSide)
    for (int j = 0; j < 2; ++j) {
      const int64_t c = panel * kSide + j * kLanes;
      keep(to + j * kSide, rounded_pairs(values(row + r, c), values(row + r + 1, c)));
    }
}

// The same, transposed, as a left operand: its rows are the panel's columns.
template <class Values>
inline void copy_transposed_rows(const Values& values, int64_t row, int64_t panel, Half* to) {
  for (int j = 0; j < 2; ++j) {
    V block[kLanes];
    const int64_t c = panel * kSide + j * kLanes;
    for (int i = 0; i < kLanes; ++i) block[i] = rounded_pairs(values(row + 2 * i, c), values(row + 2 * i + 1, c));
    transpose(block);
    for (int i = 0; i < kLanes; ++i) keep(to + (j * kLanes + i) * kSide, block[i]);
  }
}

// A matrix, transposed, as a right operand: 32 of its columns (from `column` on) by 32 of its rows (from `row` on).
inline void copy_transposed_pairs(const Plain& values, int64_t row, int64_t column, Half* to) {
  for (int j = 0; j < 2; ++j) {
    V block[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      const int64_t r = row + j * kLanes + i;
      block[i] = rounded_row(values(r, column), values(r, column + kLanes));
    }
    transpose(block);
    for (int i = 0; i < kLanes; ++i) keep(to + i * 2 * kSide + j * kSide, block[i]);
  }
}

inline void pointwise(const PointwiseShape& shape, const Pending& input, const float* kernel, const Moments& output,
                      const Parallel& parallel) {
  const int64_t rows = shape.rows, in = shape.in, out = shape.out;
  const Cut cut(rows, out, kBlockRows, kSide);
  const int64_t depth = ceil_div(in, kSide), width = cut.panels * kSide;
  Shared packed(Squares::floats(depth * kSide, out));
  const Squares weights(packed, depth * kSide);
  const Plain kernel_values{kernel, in, out};
  const auto pack = [&](int64_t p) {
    for (int64_t k = 0; k < depth; ++k) copy_pairs(kernel_values, k * kSide, p, weights.at(k * kSide, p));
  };
  if (!cut.by_columns) parallel(cut.panels, pack);
  Sums sums(cut.row_items, 3, width);
  const Activation activation{input, rows, in};
  parallel(cut.items, [&](int64_t item) {
    const Tiles tiles;
    thread_local Scratch scratch;
    const int64_t row_item = item / cut.column_items, first_panel = item % cut.column_items * cut.item_panels;
    const int64_t last_panel = std::min(cut.panels, first_panel + cut.item_panels);
    const int64_t first = row_item * cut.item_rows, last = std::min(rows, first + cut.item_rows);
    if (cut.by_columns)
      for (int64_t p = first_panel; p < last_panel; ++p) pack(p);
    const int64_t block_rows = cut.by_columns ? cut.item_rows : kBlockRows;
    const Squares x(scratch.get(Squares::floats(block_rows, in)), block_rows);
    for (int64_t block = first; block < last; block += block_rows) {
      const int64_t end = std::min(last, block + block_rows);
      for (int64_t r = block; r < end; r += kSide)
        for (int64_t k = 0; k < depth; ++k) copy_rows(activation, r, k, x.at(r - block, k));
      for (int64_t p = first_panel; p < last_panel; ++p) {
        const int64_t c = p * kSide;
        PanelSums moments(sums.of(row_item), width, c, block > first);
        for (int64_t r = block; r < end; r += kSide) {
          alignas(64) float result[kSquare];
          multiply<false>(depth, x.at(r - block, 0), x.stride, weights.at(0, p), result, kSide);
          moments.take(result, std::min(kSide, end - r), r == first, output.y + r * out + c, out, out - c);
        }
        moments.keep();
      }
    }
  });
  const auto count = [&](int64_t item) { return std::min(cut.item_rows, rows - item * cut.item_rows); };
  sums.moments(out, count, output);
}

// From a square of gradients of the activation to those of z, scale and shift.
inline void input_gradient_square(const PointwiseShape& shape, const Pending& input, const PendingGradient& to,
                                  int64_t first, int64_t panel, const float* gradient, float* shift_sums,
                                  float* scale_sums) {
  for (int j = 0; j < 2; ++j) {
    const int64_t c = panel * kSide + j * kLanes, n = shape.in - c;
    if (n <= 0) break;
    const V scale = load(input.scale + c, n), shift = load(input.shift + c, n);
    V shift_sum = load(shift_sums + c), scale_sum = load(scale_sums + c);
    for (int64_t i = 0; i < std::min(kSide, shape.rows - first); ++i) {
      const int64_t at = (first + i) * shape.in + c;
      const V z = load(input.z + at, n);
      const V g = relu6_gradient(z * scale + shift, load(gradient + i * kSide + j * kLanes));
      shift_sum += g;
      scale_sum += g * z;
      store(to.z + at, g * scale, n);
    }
    store(shift_sums + c, shift_sum);
    store(scale_sums + c, scale_sum);
  }
}

// The three copies that both gradients read, of `rows` rows (a multiple of 32).
struct GradientCopies {
  GradientCopies(float* memory, int64_t rows, int64_t in, int64_t out)
      : x(memory, rows), dy(memory + Squares::floats(rows, in), rows),
        dy_pairs(memory + Squares::floats(rows, in) + Squares::floats(rows, out), rows) {}
  static int64_t floats(int64_t rows, int64_t in, int64_t out) {
    return Squares::floats(rows, in) + 2 * Squares::floats(rows, out);
  }
  // 32 rows from `row` on, kept as those from `at` on.
  void fill(const Activation& activation, const Gradient& gradient, int64_t row, int64_t at) const {
    for (int64_t p = 0; p * kSide < activation.channels; ++p) copy_transposed_rows(activation, row, p, x.at(at, p));
    for (int64_t p = 0; p * kSide < gradient.channels; ++p) {
      copy_rows(gradient, row, p, dy.at(at, p));
      copy_pairs(gradient, row, p, dy_pairs.at(at, p));
    }
  }
  Squares x, dy, dy_pairs;
};

// Many rows, small kernel: every item does all for its rows, and the items' kernel gradients are added up.
inline void gradient_by_rows(const PointwiseShape& shape, const Pending& input, const Squares& transposed,
                             const OutputGradient& output, const PendingGradient& to, float* kernel_sum,
                             const Parallel& parallel) {
  const int64_t rows = shape.rows, in = shape.in, out = shape.out;
  const int64_t item_rows = std::min(round_up(ceil_div(rows, 16), kBlockRows), 16 * kMostSummed / kBlockRows * kBlockRows);
  const int64_t items = ceil_div(rows, item_rows);
  const int64_t in_panels = ceil_div(in, kSide), out_panels = ceil_div(out, kSide);
  const int64_t in_width = in_panels * kSide, out_width = out_panels * kSide;
  Shared kernel_sums(items * in_width * out_width);
  Sums sums(items, 2, in_width);
  const Activation activation{input, rows, in};
  const Gradient gradient{output, rows, out};
  parallel(items, [&](int64_t item) {
    const Tiles tiles;
    thread_local Scratch scratch;
    const GradientCopies copies(scratch.get(GradientCopies::floats(kBlockRows, in, out)), kBlockRows, in, out);
    float* shift_sums = sums.cleared(item);
    float* own = kernel_sums + item * in_width * out_width;
    std::fill(own, own + in_width * out_width, 0.f);
    const int64_t last = std::min(rows, (item + 1) * item_rows);
    for (int64_t first = item * item_rows; first < last; first += kBlockRows) {
      for (int64_t r = 0; r < kBlockRows; r += kSide) copies.fill(activation, gradient, first + r, r);
      for (int64_t p = 0; p < in_panels; ++p) {
        for (int64_t r = 0; r < kBlockRows && first + r < last; r += kSide) {
          alignas(64) float result[kSquare];
          multiply<false>(out_panels, copies.dy.at(r, 0), copies.dy.stride, transposed.at(0, p), result, kSide);
          input_gradient_square(shape, input, to, first + r, p, result, shift_sums, shift_sums + in_width);
        }
        for (int64_t q = 0; q < out_panels; ++q)
          multiply<true>(kBlockRows / kSide, copies.x.at(0, p), kSquare, copies.dy_pairs.at(0, q),
                         own + p * kSide * out_width + q * kSide, out_width);
      }
    }
  });
  add_up(kernel_sums, items, in_width, out_width, in, out, kernel_sum, parallel);
  sums.total(0, in, to.shift);
  sums.total(1, in, to.scale);
}

// Large kernel: the copies first, then both products, each cut into its own items.
inline void gradient_by_tiles(const PointwiseShape& shape, const Pending& input, const Squares& transposed,
                              const OutputGradient& output, const PendingGradient& to, float* kernel_sum,
                              const Parallel& parallel) {
  const int64_t rows = shape.rows, in = shape.in, out = shape.out;
  const Cut cut(rows, in, kBlockRows, kSide);
  const int64_t all_rows = round_up(rows, kSide), out_panels = ceil_div(out, kSide), in_width = cut.panels * kSide;
  Shared memory(GradientCopies::floats(all_rows, in, out));
  const GradientCopies copies(memory, all_rows, in, out);
  const Activation activation{input, rows, in};
  const Gradient gradient{output, rows, out};
  parallel(all_rows / kSide, [&](int64_t item) { copies.fill(activation, gradient, item * kSide, item * kSide); });
  Sums sums(cut.row_items, 2, in_width);
  parallel(cut.items + cut.panels, [&](int64_t item) {
    const Tiles tiles;
    alignas(64) float result[kSquare];
    if (item >= cut.items) {
      const int64_t p = item - cut.items;
      for (int64_t q = 0; q < out_panels; ++q) {
        multiply<false>(all_rows / kSide, copies.x.at(0, p), kSquare, copies.dy_pairs.at(0, q), result, kSide);
        for (int64_t k = 0; k < std::min(kSide, in - p * kSide); ++k)
          std::copy_n(result + k * kSide, std::min(kSide, out - q * kSide), kernel_sum + (p * kSide + k) * out + q * kSide);
      }
      return;
    }
    const int64_t row_item = item / cut.column_items, first_panel = item % cut.column_items * cut.item_panels;
    const int64_t last_panel = std::min(cut.panels, first_panel + cut.item_panels);
    float* shift_sums = sums.of(row_item);
    float* scale_sums = shift_sums + in_width;
    for (int64_t c = first_panel * kSide; c < last_panel * kSide; ++c) shift_sums[c] = scale_sums[c] = 0;
    const int64_t last = std::min(rows, (row_item + 1) * cut.item_rows);
    for (int64_t p = first_panel; p < last_panel; ++p)
      for (int64_t r = row_item * cut.item_rows; r < last; r += kSide) {
        multiply<false>(out_panels, copies.dy.at(r, 0), copies.dy.stride, transposed.at(0, p), result, kSide);
        input_gradient_square(shape, input, to, r, p, result, shift_sums, scale_sums);
      }
  });
  sums.total(0, in, to.shift);
  sums.total(1, in, to.scale);
}

// A kernel gradient up to this size is summed by every item on its own; a larger one is cut up.
constexpr int64_t kOwnKernelGradient = 256 * 256;

inline void pointwise_gradient(const PointwiseShape& shape, const Pending& input, const float* kernel,
                               const OutputGradient& output, const PendingGradient& to, float* kernel_gradient,
                               const Parallel& parallel) {
  const int64_t out_panels = ceil_div(shape.out, kSide);
  Shared packed(Squares::floats(out_panels * kSide, shape.in));
  const Squares transposed(packed, out_panels * kSide);
  const Plain kernel_values{kernel, shape.in, shape.out};
  parallel(ceil_div(shape.in, kSide), [&](int64_t p) {
    for (int64_t q = 0; q < out_panels; ++q)
      copy_transposed_pairs(kernel_values, p * kSide, q * kSide, transposed.at(q * kSide, p));
  });
  const bool small = shape.in * shape.out <= kOwnKernelGradient && shape.rows >= 16 * kBlockRows;
  (small ? gradient_by_rows : gradient_by_tiles)(shape, input, transposed, output, to, kernel_gradient, parallel);
}

}  // namespace fashion::VARIANT
