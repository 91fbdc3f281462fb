// 1×1 convolution, forward: one matrix product that normalises its left operand as it reads it and gathers the moments
// of its result while that is still in the cache.
#pragma once
#include "product.h"

namespace fashion::VARIANT {

// Rows are worked on in blocks whose normalised copy stays in the second-level cache.
constexpr int64_t kBlockRows = 48;

inline void pointwise(const PointwiseShape& shape, const Pending& input, const float* kernel, const Moments& output,
                      const Parallel& parallel) {
  const int64_t rows = shape.rows, in = shape.in, out = shape.out;
  const Cut cut(rows, out, kBlockRows, 1);
  const int64_t panel_size = in * kTileColumns;
  Shared packed(cut.panels * panel_size);
  if (!cut.by_columns) parallel(cut.panels, [&](int64_t p) { pack_panel(kernel, in, out, p, packed + p * panel_size); });
  const int64_t width = cut.panels * kTileColumns;
  Sums sums(cut.row_items, 3, width);
  parallel(cut.items, [&](int64_t item) {
    thread_local Scratch scratch;
    const int64_t row_item = item / cut.column_items, first_panel = item % cut.column_items * cut.item_panels;
    const int64_t last_panel = std::min(cut.panels, first_panel + cut.item_panels);
    const int64_t first = row_item * cut.item_rows, last = std::min(rows, first + cut.item_rows);
    if (cut.by_columns)
      for (int64_t p = first_panel; p < last_panel; ++p) pack_panel(kernel, in, out, p, packed + p * panel_size);
    const int64_t block_rows = cut.by_columns ? cut.item_rows : kBlockRows;
    const Panels x(scratch.get(Panels::size(block_rows, in)), block_rows);
    for (int64_t block = first; block < last; block += block_rows) {
      const int64_t end = std::min(last, block + block_rows);
      for (int64_t r = block; r < end; ++r) normalise_row(input, r, in, x, r - block);
      for (int64_t p = first_panel; p < last_panel; ++p) {
        const int64_t c = p * kTileColumns;
        PanelSums moments(sums.of(row_item), width, c, block > first);
        for (int64_t r = block; r < end; r += kTileRows) {
          const int64_t count = std::min<int64_t>(kTileRows, end - r);
          alignas(64) float result[kTileRows * kTileColumns];
          with_rows(count, [&](auto n) {
            tile_along<n.value>(in, x.at(r - block, 0), x.stride, packed + p * panel_size, result);
          });
          moments.take(result, count, r == first, output.y + r * out + c, out, out - c);
        }
        moments.keep();
      }
    }
  });
  const auto count = [&](int64_t item) { return std::min(cut.item_rows, rows - item * cut.item_rows); };
  sums.moments(out, count, output);
}

}  // namespace fashion::VARIANT
