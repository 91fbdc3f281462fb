// FashionPointwise: 1×1 convolution of a pending activation, with the moments of its output; and its gradient.
#include "op.h"

namespace fashion {
namespace {

using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::shape_inference::DimensionHandle;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

// Inputs 0 … 3 are z, scale, shift and kernel.
absl::Status pointwise_shape(OpKernelContext* context, PointwiseShape* shape) {
  const auto& z = context->input(0);
  const auto& kernel = context->input(3);
  if (z.dims() != 4 || z.NumElements() == 0)
    return tensorflow::errors::InvalidArgument("z must be a filled tensor [batch, height, width, channels]: received shape ",
                                               z.shape().DebugString());
  if (kernel.dims() != 4 || kernel.dim_size(0) != 1 || kernel.dim_size(1) != 1 || kernel.dim_size(2) != z.dim_size(3) ||
      kernel.dim_size(3) == 0)
    return tensorflow::errors::InvalidArgument("the kernel must have the shape [1, 1, ", z.dim_size(3),
                                               ", filters]: received ", kernel.shape().DebugString());
  *shape = {z.NumElements() / z.dim_size(3), z.dim_size(3), kernel.dim_size(3)};
  return check_vectors(context, 1, 3, shape->in);
}

struct Pointwise : Operation {
  using Operation::Operation;
  void compute(OpKernelContext* context) override {
    PointwiseShape shape;
    OP_REQUIRES_OK(context, pointwise_shape(context, &shape));
    tensorflow::TensorShape out = context->input(0).shape();
    OP_REQUIRES_OK(context, out.SetDimWithStatus(3, shape.out));
    Moments moments;
    OP_REQUIRES_OK(context, allocate(context, 0, out, &moments.y));
    OP_REQUIRES_OK(context, allocate(context, 1, {shape.out}, &moments.mean));
    OP_REQUIRES_OK(context, allocate(context, 2, {shape.out}, &moments.variance));
    const Pending input{data(context->input(0)), data(context->input(1)), data(context->input(2))};
    kernels().pointwise(shape, input, data(context->input(3)), moments, threads(context));
  }
};

struct PointwiseGradient : Operation {
  using Operation::Operation;
  void compute(OpKernelContext* context) override {
    PointwiseShape shape;
    OP_REQUIRES_OK(context, pointwise_shape(context, &shape));
    tensorflow::TensorShape out = context->input(0).shape();
    OP_REQUIRES_OK(context, out.SetDimWithStatus(3, shape.out));
    for (int i : {4, 5})
      OP_REQUIRES(context, context->input(i).shape() == out,
                  tensorflow::errors::InvalidArgument("input ", i, " must have the shape ", out.DebugString(),
                                                      ": received ", context->input(i).shape().DebugString()));
    OP_REQUIRES_OK(context, check_vectors(context, 6, 9, shape.out));
    PendingGradient to;
    float* kernel_gradient;
    OP_REQUIRES_OK(context, allocate(context, 0, context->input(0).shape(), &to.z));
    OP_REQUIRES_OK(context, allocate(context, 1, {shape.in}, &to.scale));
    OP_REQUIRES_OK(context, allocate(context, 2, {shape.in}, &to.shift));
    OP_REQUIRES_OK(context, allocate(context, 3, context->input(3).shape(), &kernel_gradient));
    const Pending input{data(context->input(0)), data(context->input(1)), data(context->input(2))};
    const MomentsGradient moments(data(context->input(7)), data(context->input(8)), shape.out,
                                  shape.rows);
    kernels().pointwise_gradient(shape, input, data(context->input(3)),
                                 {data(context->input(4)), data(context->input(5)), data(context->input(6)), moments.offset(),
                                  moments.slope()},
                                 to, kernel_gradient, threads(context));
  }
};

REGISTER_OP("FashionPointwise")
    .Input("z: float")
    .Input("scale: float")
    .Input("shift: float")
    .Input("kernel: float")
    .Output("y: float")
    .Output("mean: float")
    .Output("variance: float")
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle z, kernel;
      DimensionHandle in;
      TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 4, &z));
      TF_RETURN_IF_ERROR(c->WithRank(c->input(3), 4, &kernel));
      TF_RETURN_IF_ERROR(c->Merge(c->Dim(z, 3), c->Dim(kernel, 2), &in));
      ShapeHandle y;
      TF_RETURN_IF_ERROR(c->ReplaceDim(z, 3, c->Dim(kernel, 3), &y));
      c->set_output(0, y);
      c->set_output(1, c->Vector(c->Dim(kernel, 3)));
      c->set_output(2, c->Vector(c->Dim(kernel, 3)));
      return absl::OkStatus();
    })
    .Doc("1x1 convolution of relu6(z * scale + shift), with the mean and biased variance of its output per channel.");

REGISTER_OP("FashionPointwiseGradient")
    .Input("z: float")
    .Input("scale: float")
    .Input("shift: float")
    .Input("kernel: float")
    .Input("y: float")
    .Input("dy: float")
    .Input("mean: float")
    .Input("d_mean: float")
    .Input("d_variance: float")
    .Output("dz: float")
    .Output("d_scale: float")
    .Output("d_shift: float")
    .Output("d_kernel: float")
    .SetShapeFn([](InferenceContext* c) {
      for (int i = 0; i < 4; ++i) c->set_output(i, c->input(i));
      return absl::OkStatus();
    })
    .Doc("The gradient of FashionPointwise.");

REGISTER_KERNEL_BUILDER(Name("FashionPointwise").Device(tensorflow::DEVICE_CPU), Pointwise);
REGISTER_KERNEL_BUILDER(Name("FashionPointwiseGradient").Device(tensorflow::DEVICE_CPU), PointwiseGradient);

}  // namespace
}  // namespace fashion
