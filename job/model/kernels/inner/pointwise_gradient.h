// 1×1 convolution, backward: the gradients of its input and of its kernel, with the gradient of the batch
// normalisation behind it formed as it is read, and that of the normalisation and ReLU6 before it applied as it is written.
#pragma once
#include "pointwise.h"

namespace fashion::VARIANT {

// A kernel gradient up to this size is summed by every item on its own (it fits in its cache); a larger one is cut up.
constexpr int64_t kOwnKernelGradient = 256 * 256;

// The output's whole gradient for one row, padded with zeros up to `padded`.
inline void output_gradient_row(const OutputGradient& g, int64_t row, int64_t channels, int64_t padded, float* out) {
  const float* y = g.y + row * channels;
  const float* dy = g.dy + row * channels;
  for (int64_t c = 0; c < channels; c += kLanes) {
    const int64_t n = channels - c;
    store(out + c, load(dy + c, n) + load(g.offset + c, n) + load(g.slope + c, n) * load(y + c, n), n);
  }
  for (int64_t c = channels; c < padded; ++c) out[c] = 0;
}

// The transposed kernel's panel: kTileColumns rows of the kernel, seen as columns.
inline void pack_transposed(const float* kernel, int64_t in, int64_t out, int64_t panel, float* packed) {
  for (int64_t j = 0; j < kTileColumns; ++j) {
    const int64_t k = panel * kTileColumns + j;
    for (int64_t c = 0; c < out; ++c) packed[c * kTileColumns + j] = k < in ? kernel[k * out + c] : 0;
  }
}

// From a tile of gradients of the activation x to those of z, scale and shift.
inline void input_gradient_tile(const PointwiseShape& shape, const Pending& input, const PendingGradient& to,
                                int64_t first, int64_t count, int64_t column, const float* x, int64_t stride,
                                const float* gradient, float* shift_sums, float* scale_sums) {
  for (int j = 0; j < kTileVectors; ++j) {
    const int64_t c = column + j * kLanes, n = shape.in - c;
    if (n <= 0) break;
    const V scale = load(input.scale + c, n);
    V shift_sum = load(shift_sums + c), scale_sum = load(scale_sums + c);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t at = (first + i) * shape.in + c;
      const V g = relu6_gradient(load(x + i * stride + c), load(gradient + i * kTileColumns + j * kLanes));
      shift_sum += g;
      scale_sum += g * load(input.z + at, n);
      store(to.z + at, g * scale, n);
    }
    store(shift_sums + c, shift_sum);
    store(scale_sums + c, scale_sum);
  }
}

struct Rows {  // a block of rows with their copies of x and of the output's gradient
  int64_t first, end;
  const float* x;
  int64_t x_stride;
  const float* dy;
  int64_t dy_stride;
};

inline void input_gradient(const PointwiseShape& shape, const Pending& input, const PendingGradient& to,
                           const float* transposed, const Rows& rows, int64_t first_panel, int64_t last_panel,
                           float* shift_sums, float* scale_sums) {
  for (int64_t p = first_panel; p < last_panel; ++p)
    for (int64_t r = rows.first; r < rows.end; r += kTileRows) {
      const int64_t count = std::min<int64_t>(kTileRows, rows.end - r), at = r - rows.first;
      alignas(64) float result[kTileRows * kTileColumns];
      tile<false, false>(count, shape.out, rows.dy + at * rows.dy_stride, rows.dy_stride,
                         transposed + p * shape.out * kTileColumns, kTileColumns, result, kTileColumns);
      input_gradient_tile(shape, input, to, r, count, p * kTileColumns, rows.x + at * rows.x_stride, rows.x_stride,
                          result, shift_sums, scale_sums);
    }
}

// sum[k][c] += Σ over the rows of x[·][k] · dy[·][c], for k in [first, last) and c in [first_panel, last_panel).
inline void kernel_gradient(const Rows& rows, int64_t first, int64_t last, int64_t first_panel, int64_t last_panel,
                            float* sum, int64_t stride) {
  for (int64_t p = first_panel; p < last_panel; ++p)
    for (int64_t k = first; k < last; k += kTileRows)
      tile<true, true>(std::min<int64_t>(kTileRows, last - k), rows.end - rows.first, rows.x + k, rows.x_stride,
                       rows.dy + p * kTileColumns, rows.dy_stride, sum + k * stride + p * kTileColumns, stride);
}

// Many rows, small kernel: every item does all for its rows, and the items' kernel gradients are added up.
inline void gradient_by_rows(const PointwiseShape& shape, const Pending& input, const float* kernel,
                             const OutputGradient& output, const PendingGradient& to, float* kernel_sum,
                             const Parallel& parallel) {
  const auto [rows, in, out] = shape;
  constexpr int64_t block_rows = 2 * kBlockRows;
  const int64_t item_rows = round_up(ceil_div(rows, 16), block_rows), items = ceil_div(rows, item_rows);
  const int64_t in_panels = ceil_div(in, kTileColumns), out_panels = ceil_div(out, kTileColumns);
  const int64_t x_stride = row_stride(in), dy_stride = row_stride(out), sum_stride = out_panels * kTileColumns;
  Shared transposed(in_panels * out * kTileColumns), kernel_sums(items * in * sum_stride);
  Sums sums(items, 2, in_panels * kTileColumns);
  parallel(in_panels, [&](int64_t p) { pack_transposed(kernel, in, out, p, transposed + p * out * kTileColumns); });
  parallel(items, [&](int64_t item) {
    thread_local Scratch scratch;
    float* x = scratch.get(block_rows * (x_stride + dy_stride));
    float* dy = x + block_rows * x_stride;
    float* shift_sums = sums.cleared(item);
    float* scale_sums = shift_sums + in_panels * kTileColumns;
    float* own = kernel_sums + item * in * sum_stride;
    std::fill(own, own + in * sum_stride, 0.f);
    const int64_t last = std::min(rows, (item + 1) * item_rows);
    for (int64_t first = item * item_rows; first < last; first += block_rows) {
      const Rows block{first, std::min(last, first + block_rows), x, x_stride, dy, dy_stride};
      for (int64_t r = first; r < block.end; ++r) {
        normalise_row(input.z + r * in, input.scale, input.shift, in, x + (r - first) * x_stride);
        output_gradient_row(output, r, out, sum_stride, dy + (r - first) * dy_stride);
      }
      input_gradient(shape, input, to, transposed, block, 0, in_panels, shift_sums, scale_sums);
      kernel_gradient(block, 0, in, 0, out_panels, own, sum_stride);
    }
  });
  parallel(in, [&](int64_t k) {
    float* sum = kernel_sum + k * out;
    for (int64_t c = 0; c < out; c += kLanes) {
      V v{};
      for (int64_t item = 0; item < items; ++item) v += load(kernel_sums + (item * in + k) * sum_stride + c);
      store(sum + c, v, out - c);
    }
  });
  sums.total(0, in, to.shift);
  sums.total(1, in, to.scale);
}

// Large kernel: copies of x and of the output's gradient first, then both products, each cut into its own items.
inline void gradient_by_tiles(const PointwiseShape& shape, const Pending& input, const float* kernel,
                              const OutputGradient& output, const PendingGradient& to, float* kernel_sum,
                              const Parallel& parallel) {
  const auto [rows, in, out] = shape;
  const Cut cut(rows, in);
  const int64_t out_panels = ceil_div(out, kTileColumns), out_padded = out_panels * kTileColumns;
  const int64_t x_stride = row_stride(in), dy_stride = row_stride(out);
  Shared transposed(cut.panels * out * kTileColumns), x(rows * x_stride), dy(rows * dy_stride);
  const int64_t copies = ceil_div(rows, kTileRows);
  parallel(cut.panels + copies, [&](int64_t item) {
    if (item < cut.panels) return pack_transposed(kernel, in, out, item, transposed + item * out * kTileColumns);
    const int64_t first = (item - cut.panels) * kTileRows;
    for (int64_t r = first; r < std::min<int64_t>(rows, first + kTileRows); ++r) {
      normalise_row(input.z + r * in, input.scale, input.shift, in, x + r * x_stride);
      output_gradient_row(output, r, out, out_padded, dy + r * dy_stride);
    }
  });
  Sums sums(cut.row_items, 2, cut.panels * kTileColumns);
  constexpr int64_t strip = 4 * kTileRows, sweep = 48 * kTileRows;  // kernel rows of an item; rows summed in one go
  parallel(cut.items + ceil_div(in, strip), [&](int64_t item) {
    if (item >= cut.items) {
      thread_local Scratch scratch;
      const int64_t first = (item - cut.items) * strip, last = std::min(in, first + strip);
      float* own = scratch.get(strip * out_padded);
      std::fill(own, own + (last - first) * out_padded, 0.f);
      for (int64_t r = 0; r < rows; r += sweep) {
        const Rows block{r, std::min(rows, r + sweep), x + r * x_stride + first, x_stride, dy + r * dy_stride, dy_stride};
        kernel_gradient(block, 0, last - first, 0, out_panels, own, out_padded);
      }
      for (int64_t k = first; k < last; ++k)
        std::copy_n(own + (k - first) * out_padded, out, kernel_sum + k * out);
      return;
    }
    const int64_t row_item = item / cut.column_items, first_panel = item % cut.column_items * cut.item_panels;
    const int64_t last_panel = std::min(cut.panels, first_panel + cut.item_panels);
    float* shift_sums = sums.of(row_item);
    float* scale_sums = shift_sums + cut.panels * kTileColumns;
    for (int64_t c = first_panel * kTileColumns; c < last_panel * kTileColumns; ++c) shift_sums[c] = scale_sums[c] = 0;
    const int64_t last = std::min(rows, (row_item + 1) * cut.item_rows);
    for (int64_t r = row_item * cut.item_rows; r < last; r += kBlockRows) {
      const Rows block{r, std::min(last, r + kBlockRows), x + r * x_stride, x_stride, dy + r * dy_stride, dy_stride};
      input_gradient(shape, input, to, transposed, block, first_panel, last_panel, shift_sums, scale_sums);
    }
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
