// 1×1 convolution, backward: the gradients of its input and of its kernel, with the gradient of the batch
// normalisation behind it formed as it is read, and that of the normalisation and ReLU6 before it applied as it is written.
#pragma once
#include "pointwise.h"

namespace fashion::VARIANT {

// A kernel gradient up to this size is summed by every item on its own (it fits in its cache); a larger one is cut up.
constexpr int64_t kOwnKernelGradient = 256 * 256;

// From a tile of gradients of the activation x to those of z, scale and shift.
inline void input_gradient_tile(const PointwiseShape& shape, const Pending& input, const PendingGradient& to,
                                int64_t first, int64_t count, int64_t panel, const float* x, const float* gradient,
                                float* shift_sums, float* scale_sums) {
  for (int j = 0; j < kTileVectors; ++j) {
    const int64_t c = panel * kTileColumns + j * kLanes, n = shape.in - c;
    if (n <= 0) break;
    const V scale = load(input.scale + c, n);
    V shift_sum = load(shift_sums + c), scale_sum = load(scale_sums + c);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t at = (first + i) * shape.in + c, in_tile = i * kTileColumns + j * kLanes;
      const V g = relu6_gradient(load(x + in_tile), load(gradient + in_tile));
      shift_sum += g;
      scale_sum += g * load(input.z + at, n);
      store(to.z + at, g * scale, n);
    }
    store(shift_sums + c, shift_sum);
    store(scale_sums + c, scale_sum);
  }
}

// Rows [first, end) of the input gradient, whose copies of x and of the output's gradient begin at row `at`.
inline void input_gradient(const PointwiseShape& shape, const Pending& input, const PendingGradient& to,
                           const float* transposed, int64_t first, int64_t end, const Panels& x, const Panels& dy,
                           int64_t at, int64_t first_panel, int64_t last_panel, float* shift_sums, float* scale_sums) {
  for (int64_t p = first_panel; p < last_panel; ++p)
    for (int64_t r = first; r < end; r += kTileRows) {
      const int64_t count = std::min<int64_t>(kTileRows, end - r), copy = at + r - first;
      alignas(64) float result[kTileRows * kTileColumns];
      with_rows(count, [&](auto n) {
        tile_along<n.value>(shape.out, dy.at(copy, 0), dy.stride, transposed + p * shape.out * kTileColumns, result);
      });
      input_gradient_tile(shape, input, to, r, count, p, x.at(copy, p), result, shift_sums, scale_sums);
    }
}

// sum[k][c] += Σ over `rows` rows of x[·][k] · dy[·][c], for `columns` k of one panel of x and all of dy's panels.
inline void kernel_gradient(int64_t rows, const float* x, int64_t columns, const Panels& dy, int64_t at,
                            int64_t out_panels, float* sum) {
  const int64_t stride = out_panels * kTileColumns;
  for (int64_t p = 0; p < out_panels; ++p)
    for (int64_t k = 0; k < columns; k += kTileRows)
      with_rows(std::min<int64_t>(kTileRows, columns - k), [&](auto n) {
        tile_across<n.value>(rows, x + k, dy.at(at, p), sum + k * stride + p * kTileColumns, stride);
      });
}

// Many rows, small kernel: every item does all for its rows, and the items' kernel gradients are added up.
inline void gradient_by_rows(const PointwiseShape& shape, const Pending& input, const float* kernel,
                             const OutputGradient& output, const PendingGradient& to, float* kernel_sum,
                             const Parallel& parallel) {
  const int64_t rows = shape.rows, in = shape.in, out = shape.out;
  constexpr int64_t block_rows = 2 * kBlockRows;
  // Each item has a kernel gradient of its own: fewer items than where only moments are summed.
  const int64_t most_rows = 16 * kMostSummed / block_rows * block_rows;
  const int64_t item_rows = std::min(round_up(ceil_div(rows, 16), block_rows), most_rows);
  const int64_t items = ceil_div(rows, item_rows);
  const int64_t in_panels = ceil_div(in, kTileColumns), out_panels = ceil_div(out, kTileColumns);
  const int64_t sum_stride = out_panels * kTileColumns;
  Shared transposed(in_panels * out * kTileColumns), kernel_sums(items * in * sum_stride);
  Sums sums(items, 2, in_panels * kTileColumns);
  parallel(in_panels, [&](int64_t p) { pack_transposed(kernel, in, out, p, transposed + p * out * kTileColumns); });
  parallel(items, [&](int64_t item) {
    thread_local Scratch scratch;
    float* copies = scratch.get(Panels::size(block_rows, in) + Panels::size(block_rows, out));
    const Panels x(copies, block_rows), dy(copies + Panels::size(block_rows, in), block_rows);
    float* shift_sums = sums.cleared(item);
    float* scale_sums = shift_sums + in_panels * kTileColumns;
    float* own = kernel_sums + item * in * sum_stride;
    std::fill(own, own + in * sum_stride, 0.f);
    const int64_t last = std::min(rows, (item + 1) * item_rows);
    for (int64_t first = item * item_rows; first < last; first += block_rows) {
      const int64_t end = std::min(last, first + block_rows);
      for (int64_t r = first; r < end; ++r) {
        normalise_row(input, r, in, x, r - first);
        output_gradient_row(output, r, out, dy, r - first);
      }
      input_gradient(shape, input, to, transposed, first, end, x, dy, 0, 0, in_panels, shift_sums, scale_sums);
      for (int64_t p = 0; p < in_panels; ++p)
        kernel_gradient(end - first, x.at(0, p), std::min(kTileColumns, in - p * kTileColumns), dy, 0, out_panels,
                        own + p * kTileColumns * sum_stride);
    }
  });
  add_up(kernel_sums, items, in, sum_stride, in, out, kernel_sum, parallel);
  sums.total(0, in, to.shift);
  sums.total(1, in, to.scale);
}

// Large kernel: copies of x and of the output's gradient first, then both products, each cut into its own items.
inline void gradient_by_tiles(const PointwiseShape& shape, const Pending& input, const float* kernel,
                              const OutputGradient& output, const PendingGradient& to, float* kernel_sum,
                              const Parallel& parallel) {
  const int64_t rows = shape.rows, in = shape.in, out = shape.out;
  const Cut cut(rows, in, kBlockRows, 1);
  const int64_t out_panels = ceil_div(out, kTileColumns), sum_stride = out_panels * kTileColumns;
  Shared transposed(cut.panels * out * kTileColumns), copies(Panels::size(rows, in) + Panels::size(rows, out));
  const Panels x(copies, rows), dy(copies + Panels::size(rows, in), rows);
  constexpr int64_t copied = 16;  // rows of an item
  parallel(cut.panels + ceil_div(rows, copied), [&](int64_t item) {
    if (item < cut.panels) return pack_transposed(kernel, in, out, item, transposed + item * out * kTileColumns);
    const int64_t first = (item - cut.panels) * copied;
    for (int64_t r = first; r < std::min(rows, first + copied); ++r) {
      normalise_row(input, r, in, x, r);
      output_gradient_row(output, r, out, dy, r);
    }
  });
  Sums sums(cut.row_items, 2, cut.panels * kTileColumns);
  constexpr int64_t sweep = 576;  // rows summed in one go: a panel of them stays in the second-level cache
  parallel(cut.items + cut.panels, [&](int64_t item) {
    if (item >= cut.items) {
      thread_local Scratch scratch;
      const int64_t panel = item - cut.items, columns = std::min(kTileColumns, in - panel * kTileColumns);
      float* own = scratch.get(columns * sum_stride);
      std::fill(own, own + columns * sum_stride, 0.f);
      for (int64_t r = 0; r < rows; r += sweep)
        kernel_gradient(std::min(sweep, rows - r), x.at(r, panel), columns, dy, r, out_panels, own);
      for (int64_t k = 0; k < columns; ++k)
        std::copy_n(own + k * sum_stride, out, kernel_sum + (panel * kTileColumns + k) * out);
      return;
    }
    const int64_t row_item = item / cut.column_items, first_panel = item % cut.column_items * cut.item_panels;
    const int64_t last_panel = std::min(cut.panels, first_panel + cut.item_panels);
    float* shift_sums = sums.of(row_item);
    float* scale_sums = shift_sums + cut.panels * kTileColumns;
    for (int64_t c = first_panel * kTileColumns; c < last_panel * kTileColumns; ++c) shift_sums[c] = scale_sums[c] = 0;
    const int64_t last = std::min(rows, (row_item + 1) * cut.item_rows);
    for (int64_t r = row_item * cut.item_rows; r < last; r += kBlockRows)
      input_gradient(shape, input, to, transposed, r, std::min(last, r + kBlockRows), x, dy, r, first_panel, last_panel,
                     shift_sums, scale_sums);
  });
  sums.total(0, in, to.shift);
  sums.total(1, in, to.scale);
}

inline void pointwise_gradient(const PointwiseShape& shape, const Pending& input, const float* kernel,
                               const OutputGradient& output, const PendingGradient& to, float* kernel_gradient,
                               const Parallel& parallel) {
  const bool small = shape.in * shape.out <= kOwnKernelGradient && shape.rows >= 16 * kBlockRows;
  (small ? gradient_by_rows : gradient_by_tiles)(shape, input, kernel, output, to, kernel_gradient, parallel);
}

}  // namespace fashion::VARIANT
