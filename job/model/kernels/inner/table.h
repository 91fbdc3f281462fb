// What the operations ask of the inner kernels, and the one table of them that each processor variant fills.
// Free of TensorFlow, so that a small driver can run the kernels alone, under sanitizers.
#pragma once
#include <cstdint>
#include <functional>

namespace fashion {

// Runs item(0) … item(count - 1), in any order, on any threads, and returns when all are done. Which items there are
// depends on shapes alone, and sums are combined in their order: so results do not depend on the number of threads.
using Item = std::function<void(int64_t)>;
using Parallel = std::function<void(int64_t count, const Item& item)>;

// An activation that is still to be computed by whoever reads it: relu6(z · scale + shift), channel by channel.
struct Pending {
  const float* z;
  const float* scale;
  const float* shift;
};

// Where the gradient with respect to a Pending goes.
struct PendingGradient {
  float* z;
  float* scale;
  float* shift;
};

// A convolution's own output y with its mean and variance over all rows, per channel.
struct Moments {
  float* y;
  float* mean;
  float* variance;
};

// The gradient with respect to y, of which mean and variance are functions too:
// total = dy + offset + slope · (y - mean), formed as it is read.
struct OutputGradient {
  const float* y;
  const float* dy;
  const float* mean;
  const float* offset;
  const float* slope;
};

struct PointwiseShape {
  int64_t rows, in, out;
};

// Maps [batch, height, width, channels] → [batch, out_height, out_width, channels].
struct DepthwiseShape {
  int64_t batch, height, width, channels, out_height, out_width, stride;
};

// Images [batch, height, width] → [batch, out_height, out_width, channels]; before: rows and columns of padding in front.
struct GreyShape {
  int64_t batch, height, width, channels, out_height, out_width, before_y, before_x;
};

// One variable's part in an Adam step; decay is weight decay times learning rate, 0 for none.
struct AdamSlice {
  float* variable;
  float* momentum;
  float* velocity;
  const float* gradient;
  int64_t size;
  float decay;
};
struct AdamRates {
  float alpha, one_minus_beta1, one_minus_beta2, epsilon;
};

struct Kernels {
  const char* name;
  void (*pointwise)(const PointwiseShape&, const Pending&, const float* kernel, const Moments&, const Parallel&);
  void (*pointwise_gradient)(const PointwiseShape&, const Pending&, const float* kernel, const OutputGradient&,
                             const PendingGradient&, float* kernel_gradient, const Parallel&);
  void (*depthwise)(const DepthwiseShape&, const Pending&, const float* kernel, const Moments&, const Parallel&);
  void (*depthwise_gradient)(const DepthwiseShape&, const Pending&, const float* kernel, const OutputGradient&,
                             const PendingGradient&, float* kernel_gradient, const Parallel&);
  void (*grey)(const GreyShape&, const float* image, const float* kernel, const Moments&, const Parallel&);
  void (*grey_gradient)(const GreyShape&, const float* image, const OutputGradient&, float* kernel_gradient,
                        const Parallel&);
  void (*adam)(const AdamSlice&, const AdamRates&);
};

}  // namespace fashion
