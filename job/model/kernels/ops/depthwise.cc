// FashionDepthwise: depthwise 3×3 convolution of a pending activation, with the moments of its output; and its gradient.
#include "op.h"

namespace fashion {
namespace {

using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::shape_inference::DimensionHandle;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

// Inputs 0 … 3 are z, scale, shift and kernel.
absl::Status depthwise_shape(OpKernelContext* context, int64_t stride, DepthwiseShape* shape) {
  const auto& z = context->input(0);
  const auto& kernel = context->input(3);
  if (z.dims() != 4 || z.NumElements() == 0)
    return tensorflow::errors::InvalidArgument("z must be a filled tensor [batch, height, width, channels]: received shape ",
                                               z.shape().DebugString());
  if (z.dim_size(1) < stride || z.dim_size(2) < stride)
    return tensorflow::errors::InvalidArgument("the map is smaller than the stride ", stride, ": received shape ",
                                               z.shape().DebugString());
  if (kernel.shape() != tensorflow::TensorShape({3, 3, z.dim_size(3), 1}))
    return tensorflow::errors::InvalidArgument("the kernel must have the shape [3, 3, ", z.dim_size(3), ", 1]: received ",
                                               kernel.shape().DebugString());
  *shape = {z.dim_size(0),          z.dim_size(1),          z.dim_size(2), z.dim_size(3),
            z.dim_size(1) / stride, z.dim_size(2) / stride, stride};
  return check_vectors(context, 1, 3, shape->channels);
}

absl::Status read_stride(OpKernelConstruction* context, int64_t* stride) {
  TF_RETURN_IF_ERROR(context->GetAttr("stride", stride));
  if (*stride == 1 || *stride == 2) return absl::OkStatus();
  return tensorflow::errors::InvalidArgument("the stride must be 1 or 2: received ", *stride);
}

struct Depthwise : Operation {
  explicit Depthwise(OpKernelConstruction* context) : Operation(context) {
    OP_REQUIRES_OK(context, read_stride(context, &stride));
  }
  void compute(OpKernelContext* context) override {
    DepthwiseShape shape;
    OP_REQUIRES_OK(context, depthwise_shape(context, stride, &shape));
    Moments moments;
    OP_REQUIRES_OK(context, allocate(context, 0, {shape.batch, shape.out_height, shape.out_width, shape.channels},
                                     &moments.y));
    OP_REQUIRES_OK(context, allocate(context, 1, {shape.channels}, &moments.mean));
    OP_REQUIRES_OK(context, allocate(context, 2, {shape.channels}, &moments.variance));
    const Pending input{data(context->input(0)), data(context->input(1)), data(context->input(2))};
    kernels().depthwise(shape, input, data(context->input(3)), moments, threads(context));
  }
  int64_t stride;
};

struct DepthwiseGradient : Operation {
  explicit DepthwiseGradient(OpKernelConstruction* context) : Operation(context) {
    OP_REQUIRES_OK(context, read_stride(context, &stride));
  }
  void compute(OpKernelContext* context) override {
    DepthwiseShape shape;
    OP_REQUIRES_OK(context, depthwise_shape(context, stride, &shape));
    const tensorflow::TensorShape out({shape.batch, shape.out_height, shape.out_width, shape.channels});
    for (int i : {4, 5})
      OP_REQUIRES(context, context->input(i).shape() == out,
                  tensorflow::errors::InvalidArgument("input ", i, " must have the shape ", out.DebugString(),
                                                      ": received ", context->input(i).shape().DebugString()));
    OP_REQUIRES_OK(context, check_vectors(context, 6, 9, shape.channels));
    PendingGradient to;
    float* kernel_gradient;
    OP_REQUIRES_OK(context, allocate(context, 0, context->input(0).shape(), &to.z));
    OP_REQUIRES_OK(context, allocate(context, 1, {shape.channels}, &to.scale));
    OP_REQUIRES_OK(context, allocate(context, 2, {shape.channels}, &to.shift));
    OP_REQUIRES_OK(context, allocate(context, 3, context->input(3).shape(), &kernel_gradient));
    const Pending input{data(context->input(0)), data(context->input(1)), data(context->input(2))};
    const MomentsGradient moments(data(context->input(7)), data(context->input(8)), shape.channels, shape.batch * shape.out_height * shape.out_width);
    kernels().depthwise_gradient(shape, input, data(context->input(3)),
                                 {data(context->input(4)), data(context->input(5)), data(context->input(6)), moments.offset(),
                                  moments.slope()},
                                 to, kernel_gradient, threads(context));
  }
  int64_t stride;
};

REGISTER_OP("FashionDepthwise")
    .Input("z: float")
    .Input("scale: float")
    .Input("shift: float")
    .Input("kernel: float")
    .Attr("stride: int")
    .Output("y: float")
    .Output("mean: float")
    .Output("variance: float")
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle z, kernel;
      DimensionHandle channels, height, width;
      int64_t stride;
      TF_RETURN_IF_ERROR(c->GetAttr("stride", &stride));
      if (stride < 1) return absl::InvalidArgumentError("the stride must be 1 or 2");
      TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 4, &z));
      TF_RETURN_IF_ERROR(c->WithRank(c->input(3), 4, &kernel));
      TF_RETURN_IF_ERROR(c->Merge(c->Dim(z, 3), c->Dim(kernel, 2), &channels));
      TF_RETURN_IF_ERROR(c->Divide(c->Dim(z, 1), stride, /*evenly_divisible=*/false, &height));
      TF_RETURN_IF_ERROR(c->Divide(c->Dim(z, 2), stride, /*evenly_divisible=*/false, &width));
      c->set_output(0, c->MakeShape({c->Dim(z, 0), height, width, channels}));
      c->set_output(1, c->Vector(channels));
      c->set_output(2, c->Vector(channels));
      return absl::OkStatus();
    })
    .Doc("Depthwise 3x3 convolution of relu6(z * scale + shift), with the mean and biased variance of its output per "
         "channel. Stride 1 pads by one all round, stride 2 by one below and to the right.");

REGISTER_OP("FashionDepthwiseGradient")
    .Input("z: float")
    .Input("scale: float")
    .Input("shift: float")
    .Input("kernel: float")
    .Input("y: float")
    .Input("dy: float")
    .Input("mean: float")
    .Input("d_mean: float")
    .Input("d_variance: float")
    .Attr("stride: int")
    .Output("dz: float")
    .Output("d_scale: float")
    .Output("d_shift: float")
    .Output("d_kernel: float")
    .SetShapeFn([](InferenceContext* c) {
      for (int i = 0; i < 4; ++i) c->set_output(i, c->input(i));
      return absl::OkStatus();
    })
    .Doc("The gradient of FashionDepthwise.");

REGISTER_KERNEL_BUILDER(Name("FashionDepthwise").Device(tensorflow::DEVICE_CPU), Depthwise);
REGISTER_KERNEL_BUILDER(Name("FashionDepthwiseGradient").Device(tensorflow::DEVICE_CPU), DepthwiseGradient);

}  // namespace
}  // namespace fashion
