// FashionNormalise: batch normalisation on what it is made of, vectors of one value per channel: from moments, gamma and
// beta to the scale and shift that the next convolution applies, and to the new moving moments; and its gradient.
#include <cmath>

#include "op.h"

namespace fashion {
namespace {

using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

struct Normalise : Operation {
  explicit Normalise(OpKernelConstruction* context) : Operation(context) {
    OP_REQUIRES_OK(context, context->GetAttr("epsilon", &epsilon));
    OP_REQUIRES_OK(context, context->GetAttr("momentum", &momentum));
  }
  void compute(OpKernelContext* context) override {
    const int64_t channels = context->input(0).NumElements();
    OP_REQUIRES_OK(context, check_vectors(context, 0, 6, channels));
    const float* in[6];
    float* out[4];
    for (int i = 0; i < 6; ++i) in[i] = data(context->input(i));
    for (int i = 0; i < 4; ++i) OP_REQUIRES_OK(context, allocate(context, i, {channels}, &out[i]));
    for (int64_t c = 0; c < channels; ++c) {
      const float mean = in[0][c], variance = in[1][c];
      out[0][c] = in[2][c] / std::sqrt(variance + epsilon);
      out[1][c] = in[3][c] - mean * out[0][c];
      out[2][c] = in[4][c] * momentum + mean * (1 - momentum);
      out[3][c] = in[5][c] * momentum + variance * (1 - momentum);
    }
  }
  float epsilon, momentum;
};

struct NormaliseGradient : Operation {
  explicit NormaliseGradient(OpKernelConstruction* context) : Operation(context) {
    OP_REQUIRES_OK(context, context->GetAttr("epsilon", &epsilon));
  }
  void compute(OpKernelContext* context) override {
    const int64_t channels = context->input(0).NumElements();
    OP_REQUIRES_OK(context, check_vectors(context, 0, 5, channels));
    const float* in[5];
    float* out[4];
    for (int i = 0; i < 5; ++i) in[i] = data(context->input(i));
    for (int i = 0; i < 4; ++i) OP_REQUIRES_OK(context, allocate(context, i, {channels}, &out[i]));
    for (int64_t c = 0; c < channels; ++c) {
      const float mean = in[0][c], d_shift = in[4][c], deviation = std::sqrt(in[1][c] + epsilon);
      const float scale = in[2][c] / deviation;
      const float d_scale = in[3][c] - d_shift * mean;  // scale also acts through shift = beta - mean * scale
      out[0][c] = -d_shift * scale;
      out[1][c] = -0.5f * d_scale * scale / (deviation * deviation);
      out[2][c] = d_scale / deviation;
      out[3][c] = d_shift;
    }
  }
  float epsilon;
};

// All inputs are vectors of the same length, and so are all outputs.
absl::Status equal_vectors(InferenceContext* c) {
  ShapeHandle vector;
  TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 1, &vector));
  for (int i = 1; i < c->num_inputs(); ++i) TF_RETURN_IF_ERROR(c->Merge(vector, c->input(i), &vector));
  for (int i = 0; i < c->num_outputs(); ++i) c->set_output(i, vector);
  return absl::OkStatus();
}

REGISTER_OP("FashionNormalise")
    .Input("mean: float")
    .Input("variance: float")
    .Input("gamma: float")
    .Input("beta: float")
    .Input("moving_mean: float")
    .Input("moving_variance: float")
    .Attr("epsilon: float")
    .Attr("momentum: float")
    .Output("scale: float")
    .Output("shift: float")
    .Output("new_moving_mean: float")
    .Output("new_moving_variance: float")
    .SetShapeFn(equal_vectors)
    .Doc("Batch normalisation's scale and shift from the moments of a batch, and the moving moments after it.");

REGISTER_OP("FashionNormaliseGradient")
    .Input("mean: float")
    .Input("variance: float")
    .Input("gamma: float")
    .Input("d_scale: float")
    .Input("d_shift: float")
    .Attr("epsilon: float")
    .Output("d_mean: float")
    .Output("d_variance: float")
    .Output("d_gamma: float")
    .Output("d_beta: float")
    .SetShapeFn(equal_vectors)
    .Doc("The gradient of FashionNormalise's scale and shift.");

REGISTER_KERNEL_BUILDER(Name("FashionNormalise").Device(tensorflow::DEVICE_CPU), Normalise);
REGISTER_KERNEL_BUILDER(Name("FashionNormaliseGradient").Device(tensorflow::DEVICE_CPU), NormaliseGradient);

}  // namespace
}  // namespace fashion
