// FashionGrey: the first convolution, of a grey image that the kernel sees as several equal channels; and its gradient.
#include "op.h"

namespace fashion {
namespace {

using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::shape_inference::DimensionHandle;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

// Padding as in TensorFlow's "SAME": the odd row or column comes last.
int64_t padding_before(int64_t size) { return std::max<int64_t>(0, ((size + 1) / 2 - 1) * 2 + 3 - size) / 2; }

// Inputs 0 and 1 are the image and the kernel [3, 3, equal channels, filters].
absl::Status grey_shape(OpKernelContext* context, GreyShape* shape) {
  const auto& image = context->input(0);
  const auto& kernel = context->input(1);
  if (image.dims() != 4 || image.dim_size(3) != 1 || image.NumElements() == 0)
    return tensorflow::errors::InvalidArgument("the image must be a filled tensor [batch, height, width, 1]: received shape ",
                                               image.shape().DebugString());
  if (kernel.dims() != 4 || kernel.dim_size(0) != 3 || kernel.dim_size(1) != 3 || kernel.NumElements() == 0)
    return tensorflow::errors::InvalidArgument("the kernel must have the shape [3, 3, channels, filters]: received ",
                                               kernel.shape().DebugString());
  const int64_t height = image.dim_size(1), width = image.dim_size(2);
  *shape = {image.dim_size(0), height,          width, kernel.dim_size(3), (height + 1) / 2, (width + 1) / 2,
            padding_before(height), padding_before(width)};
  return absl::OkStatus();
}

// That of the output, if there can be one of so many values.
absl::Status out_shape(const GreyShape& shape, tensorflow::TensorShape* out) {
  return tensorflow::TensorShape::BuildTensorShape({shape.batch, shape.out_height, shape.out_width, shape.channels}, out);
}

struct Grey : Operation {
  using Operation::Operation;
  void compute(OpKernelContext* context) override {
    GreyShape shape;
    OP_REQUIRES_OK(context, grey_shape(context, &shape));
    tensorflow::TensorShape out;
    OP_REQUIRES_OK(context, out_shape(shape, &out));
    Moments moments;
    OP_REQUIRES_OK(context, allocate(context, 0, out, &moments.y));
    OP_REQUIRES_OK(context, allocate(context, 1, {shape.channels}, &moments.mean));
    OP_REQUIRES_OK(context, allocate(context, 2, {shape.channels}, &moments.variance));
    const auto& kernel = context->input(1);
    std::vector<float> folded(9 * shape.channels, 0.f);
    for (int64_t tap = 0; tap < 9; ++tap)
      for (int64_t channel = 0; channel < kernel.dim_size(2); ++channel)
        for (int64_t c = 0; c < shape.channels; ++c)
          folded[tap * shape.channels + c] += data(kernel)[(tap * kernel.dim_size(2) + channel) * shape.channels + c];
    kernels().grey(shape, data(context->input(0)), folded.data(), moments, threads(context));
  }
};

struct GreyGradient : Operation {
  using Operation::Operation;
  void compute(OpKernelContext* context) override {
    GreyShape shape;
    OP_REQUIRES_OK(context, grey_shape(context, &shape));
    tensorflow::TensorShape out;
    OP_REQUIRES_OK(context, out_shape(shape, &out));
    for (int i : {2, 3})
      OP_REQUIRES(context, context->input(i).shape() == out,
                  tensorflow::errors::InvalidArgument("input ", i, " must have the shape ", out.DebugString(),
                                                      ": received ", context->input(i).shape().DebugString()));
    OP_REQUIRES_OK(context, check_vectors(context, 4, 7, shape.channels));
    float* kernel_gradient;
    OP_REQUIRES_OK(context, allocate(context, 0, context->input(1).shape(), &kernel_gradient));
    const MomentsGradient moments(data(context->input(5)), data(context->input(6)), shape.channels, shape.batch * shape.out_height * shape.out_width);
    std::vector<float> folded(9 * shape.channels);
    kernels().grey_gradient(shape, data(context->input(0)),
                            {data(context->input(2)), data(context->input(3)), data(context->input(4)), moments.offset(),
                                  moments.slope()},
                            folded.data(), threads(context));
    // The channels are equal, and so are their gradients.
    for (int64_t tap = 0; tap < 9; ++tap)
      for (int64_t channel = 0; channel < context->input(1).dim_size(2); ++channel, kernel_gradient += shape.channels)
        std::copy_n(folded.data() + tap * shape.channels, shape.channels, kernel_gradient);
  }
};

REGISTER_OP("FashionGrey")
    .Input("image: float")
    .Input("kernel: float")
    .Output("y: float")
    .Output("mean: float")
    .Output("variance: float")
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle image, kernel;
      TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 4, &image));
      TF_RETURN_IF_ERROR(c->WithRank(c->input(1), 4, &kernel));
      DimensionHandle size[2];
      for (int i : {0, 1}) {
        TF_RETURN_IF_ERROR(c->Add(c->Dim(image, 1 + i), 1, &size[i]));
        TF_RETURN_IF_ERROR(c->Divide(size[i], 2, /*evenly_divisible=*/false, &size[i]));
      }
      c->set_output(0, c->MakeShape({c->Dim(image, 0), size[0], size[1], c->Dim(kernel, 3)}));
      c->set_output(1, c->Vector(c->Dim(kernel, 3)));
      c->set_output(2, c->Vector(c->Dim(kernel, 3)));
      return absl::OkStatus();
    })
    .Doc("3x3 convolution with stride 2 of a grey image, as if its plane were repeated for every input channel of the "
         "kernel, with the mean and biased variance of its output per channel.");

REGISTER_OP("FashionGreyGradient")
    .Input("image: float")
    .Input("kernel: float")
    .Input("y: float")
    .Input("dy: float")
    .Input("mean: float")
    .Input("d_mean: float")
    .Input("d_variance: float")
    .Output("d_kernel: float")
    .SetShapeFn([](InferenceContext* c) {
      c->set_output(0, c->input(1));
      return absl::OkStatus();
    })
    .Doc("The gradient of FashionGrey with respect to its kernel.");

REGISTER_KERNEL_BUILDER(Name("FashionGrey").Device(tensorflow::DEVICE_CPU), Grey);
REGISTER_KERNEL_BUILDER(Name("FashionGreyGradient").Device(tensorflow::DEVICE_CPU), GreyGradient);

}  // namespace
}  // namespace fashion
