// 1×1 convolution, forward: one matrix product that normalises its left operand as it reads it and gathers the moments
// of its result while that is still in the cache.
#pragma once
#include "panels.h"

namespace fashion::VARIANT {

// Rows are worked on in blocks whose normalised copy stays in the second-level cache.
constexpr int64_t kBlockRows = 48;

// How a product of `rows` rows and `columns` columns is cut into items: by rows where there are many, else by columns.
struct Cut {
  Cut(int64_t rows, int64_t columns) : panels(ceil_div(columns, kTileColumns)) {
    by_columns = rows <= 4 * kBlockRows;
    item_rows = by_columns ? rows : round_up(ceil_div(rows, 48), kBlockRows);
    row_items = ceil_div(rows, item_rows);
    item_panels = by_columns ? ceil_div(panels, 16) : panels;
    column_items = ceil_div(panels, item_panels);
    items = row_items * column_items;
  }
  int64_t panels, item_rows, row_items, item_panels, column_items, items;
  bool by_columns;
};

inline void pointwise(const PointwiseShape& shape, const Pending& input, const float* kernel, const Moments& output,
                      const Parallel& parallel) {
  const auto [rows, in, out] = shape;
  const Cut cut(rows, out);
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
    float* pivots = sums.of(row_item);
    float* total = pivots + width;
    float* squares = total + width;
    for (int64_t c = first_panel * kTileColumns; c < last_panel * kTileColumns; ++c) total[c] = squares[c] = 0;
    if (cut.by_columns)
      for (int64_t p = first_panel; p < last_panel; ++p) pack_panel(kernel, in, out, p, packed + p * panel_size);
    const int64_t block_rows = cut.by_columns ? cut.item_rows : kBlockRows;
    const Panels x(scratch.get(Panels::size(block_rows, in)), block_rows);
    for (int64_t block = first; block < last; block += block_rows) {
      const int64_t end = std::min(last, block + block_rows);
      for (int64_t r = block; r < end; ++r) normalise_row(input, r, in, x, r - block);
      for (int64_t p = first_panel; p < last_panel; ++p) {
        const int64_t c = p * kTileColumns;
        V pivot[kTileVectors], sum[kTileVectors], square[kTileVectors];
        for (int j = 0; j < kTileVectors; ++j) {
          pivot[j] = block > first ? load(pivots + c + j * kLanes) : V{};
          sum[j] = load(total + c + j * kLanes);
          square[j] = load(squares + c + j * kLanes);
        }
        for (int64_t r = block; r < end; r += kTileRows) {
          const int64_t count = std::min<int64_t>(kTileRows, end - r);
          alignas(64) float result[kTileRows * kTileColumns];
          with_rows(count, [&](auto n) {
            tile_along<n.value>(in, x.at(r - block, 0), x.stride, packed + p * panel_size, result);
          });
          if (r == first)
            for (int j = 0; j < kTileVectors; ++j) store(pivots + c + j * kLanes, pivot[j] = load(result + j * kLanes));
          for (int64_t i = 0; i < count; ++i)
            for (int j = 0; j < kTileVectors; ++j) {
              const V y = load(result + i * kTileColumns + j * kLanes), distance = y - pivot[j];
              sum[j] += distance;
              square[j] += distance * distance;
              const int64_t n = out - c - j * kLanes;
              if (n > 0) store(output.y + (r + i) * out + c + j * kLanes, y, n);
            }
        }
        for (int j = 0; j < kTileVectors; ++j) {
          store(total + c + j * kLanes, sum[j]);
          store(squares + c + j * kLanes, square[j]);
        }
      }
    }
  });
  const auto count = [&](int64_t item) { return std::min(cut.item_rows, rows - item * cut.item_rows); };
  sums.moments(out, count, output);
}

}  // namespace fashion::VARIANT
