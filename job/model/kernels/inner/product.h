// What matrix products in float32 and in bfloat16 share: how they are cut into items, the moments of a result while it is
// written, and the adding up of kernel gradients.
#pragma once
#include <algorithm>

#include "panels.h"

namespace fashion::VARIANT {

// A product of `rows` rows and `columns` columns, cut by rows where there are many, else by columns.
//
// block: rows that are copied, and then multiplied, at a time. unit: those that a product takes at least.
struct Cut {
  Cut(int64_t rows, int64_t columns, int64_t block, int64_t unit) : panels(ceil_div(columns, kTileColumns)) {
    by_columns = rows <= 4 * block;
    item_rows = by_columns ? round_up(rows, unit)
                           : std::min(round_up(ceil_div(rows, 48), block), kMostSummed / block * block);
    row_items = ceil_div(rows, item_rows);
    item_panels = by_columns ? ceil_div(panels, 16) : panels;
    column_items = ceil_div(panels, item_panels);
    items = row_items * column_items;
  }
  int64_t panels, item_rows, row_items, item_panels, column_items, items;
  bool by_columns;
};

// The sums that moments are made of, of one panel's columns: in registers while an item's rows come tile by tile.
class PanelSums {
 public:
  // sums: an item's three rows of `width`, for columns from c on, as Sums::moments takes them. begun: they hold some rows.
  PanelSums(float* sums, int64_t width, int64_t c, bool begun) : sums_(sums + c), width_(width) {
    for (int j = 0; j < kTileVectors; ++j) {
      pivot_[j] = begun ? load(sums_ + j * kLanes) : V{};
      sum_[j] = begun ? load(sums_ + width + j * kLanes) : V{};
      square_[j] = begun ? load(sums_ + 2 * width + j * kLanes) : V{};
    }
  }
  // The next `count` rows; `first`: they are the item's first, one of which is the pivot. y: where they are written, rows
  // of `out` values, of which `columns` from the panel's first on are left.
  void take(const float* tile, int64_t count, bool first, float* y, int64_t out, int64_t columns) {
    if (first)
      for (int j = 0; j < kTileVectors; ++j) pivot_[j] = load(tile + count / 2 * kTileColumns + j * kLanes);
    for (int64_t i = 0; i < count; ++i)
      for (int j = 0; j < kTileVectors; ++j) {
        const V value = load(tile + i * kTileColumns + j * kLanes), distance = value - pivot_[j];
        sum_[j] += distance;
        square_[j] += distance * distance;
        const int64_t n = columns - j * kLanes;
        if (n > 0) store(y + i * out + j * kLanes, value, n);
      }
  }
  void keep() const {
    for (int j = 0; j < kTileVectors; ++j) {
      store(sums_ + j * kLanes, pivot_[j]);
      store(sums_ + width_ + j * kLanes, sum_[j]);
      store(sums_ + 2 * width_ + j * kLanes, square_[j]);
    }
  }

 private:
  float* sums_;
  int64_t width_;
  V pivot_[kTileVectors], sum_[kTileVectors], square_[kTileVectors];
};

// total [in, out]: the sum over items of theirs [`rows`, `stride`].
inline void add_up(const float* of_items, int64_t items, int64_t rows, int64_t stride, int64_t in, int64_t out, float* total,
                   const Parallel& parallel) {
  parallel(in, [&](int64_t k) {
    for (int64_t c = 0; c < out; c += kLanes) {
      V v{};
      for (int64_t item = 0; item < items; ++item) v += load(of_items + (item * rows + k) * stride + c);
      store(total + k * out + c, v, out - c);
    }
  });
}

}  // namespace fashion::VARIANT
