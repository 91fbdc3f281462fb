// What all operations share: TensorFlow's headers, its threads as the kernels' Parallel, and the checks of shapes.
#pragma once
#include <new>
#include <string>

#include "../inner/table.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace fashion {

// Both are in support.cc.
const Kernels& kernels();                                // of the variant in use
Parallel threads(tensorflow::OpKernelContext* context);  // TensorFlow's own pool

inline const float* data(const tensorflow::Tensor& tensor) { return tensor.flat<float>().data(); }
inline float* data(tensorflow::Tensor* tensor) { return tensor->flat<float>().data(); }

// An operation that finds no memory says so, as TensorFlow's own do, and doesn't take the process along.
class Operation : public tensorflow::OpKernel {
 public:
  using OpKernel::OpKernel;
  void Compute(tensorflow::OpKernelContext* context) final {
    try {
      compute(context);
    } catch (const std::bad_alloc&) {
      context->CtxFailure(tensorflow::errors::ResourceExhausted("out of memory in ", name()));
    }
  }

 private:
  virtual void compute(tensorflow::OpKernelContext* context) = 0;
};

// Every one of the inputs [first, last) is a vector of `channels`.
absl::Status check_vectors(tensorflow::OpKernelContext* context, int first, int last, int64_t channels);

// Allocates output `index` and gives its data.
absl::Status allocate(tensorflow::OpKernelContext* context, int index, const tensorflow::TensorShape& shape, float** out);

// Gradients of the moments, turned into what is added to the gradient of y: see OutputGradient.
class MomentsGradient {
 public:
  MomentsGradient(const float* d_mean, const float* d_variance, int64_t channels, int64_t rows);
  const float* offset() const { return values_.data(); }
  const float* slope() const { return values_.data() + values_.size() / 2; }

 private:
  std::vector<float> values_;
};

}  // namespace fashion
