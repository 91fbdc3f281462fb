// FashionAdam: one step of Adam or AdamW on all variables at once, in Keras' order of operations.
#include <algorithm>
#include <cmath>
#include <functional>

#include "op.h"
#include "tensorflow/core/framework/resource_mgr.h"
#include "tensorflow/core/framework/resource_var.h"

namespace fashion {
namespace {

using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::Var;

constexpr int64_t kStretch = 32 * 1024;  // values of an item: small enough to balance, large enough not to count

// A tensor that someone still reads is copied before it changes: a value read earlier in the step must stay as it was.
absl::Status make_own(OpKernelContext* context, Var* variable) {
  Tensor* tensor = variable->tensor();
  if (tensor->RefCountIsOne()) return absl::OkStatus();
  Tensor copy;
  TF_RETURN_IF_ERROR(context->allocate_temp(tensorflow::DT_FLOAT, tensor->shape(), &copy));
  std::copy_n(data(*tensor), tensor->NumElements(), data(&copy));
  *tensor = copy;
  return absl::OkStatus();
}

struct Adam : Operation {
  explicit Adam(OpKernelConstruction* context) : Operation(context) {
    OP_REQUIRES_OK(context, context->GetAttr("N", &count));
    OP_REQUIRES_OK(context, context->GetAttr("decayed", &decayed));
    OP_REQUIRES_OK(context, context->GetAttr("beta_1", &beta1));
    OP_REQUIRES_OK(context, context->GetAttr("beta_2", &beta2));
    OP_REQUIRES_OK(context, context->GetAttr("one_minus_beta_1", &rates.one_minus_beta1));
    OP_REQUIRES_OK(context, context->GetAttr("one_minus_beta_2", &rates.one_minus_beta2));
    OP_REQUIRES_OK(context, context->GetAttr("epsilon", &rates.epsilon));
    OP_REQUIRES(context, static_cast<int>(decayed.size()) == count,
                tensorflow::errors::InvalidArgument("decayed must have ", count, " values: received ", decayed.size()));
  }

  void compute(OpKernelContext* context) override {
    for (int i = 4 * count; i < 4 * count + 3; ++i)
      OP_REQUIRES(context, context->input(i).NumElements() == 1,
                  tensorflow::errors::InvalidArgument("step, learning rate and weight decay must be scalars"));
    const auto step = static_cast<float>(context->input(4 * count).flat<int64_t>()(0));
    const float rate = data(context->input(4 * count + 1))[0], weight_decay = data(context->input(4 * count + 2))[0];
    AdamRates now = rates;
    now.alpha = rate * std::sqrt(1 - std::pow(beta2, step)) / (1 - std::pow(beta1, step));
    std::vector<tensorflow::core::RefCountPtr<Var>> variables(3 * count);
    std::vector<AdamSlice> slices;
    for (int i = 0; i < 3 * count; ++i) {
      tensorflow::ResourceHandle handle;
      OP_REQUIRES_OK(context, HandleFromInput(context, i, &handle));
      OP_REQUIRES_OK(context, LookupResource(context, handle, &variables[i]));
    }
    // In the same order everywhere, so that two such operations never wait for each other.
    std::vector<tensorflow::mutex*> mutexes;
    for (auto& variable : variables) mutexes.push_back(variable->mu());
    std::sort(mutexes.begin(), mutexes.end(), std::less<>());
    OP_REQUIRES(context, std::adjacent_find(mutexes.begin(), mutexes.end()) == mutexes.end(),
                tensorflow::errors::InvalidArgument("a variable was given twice"));
    std::vector<tensorflow::mutex_lock> locks;
    locks.reserve(mutexes.size());
    for (auto* mutex : mutexes) locks.emplace_back(*mutex);
    for (int i = 0; i < count; ++i) {
      const Tensor& gradient = context->input(3 * count + i);
      float* values[3];
      for (int part = 0; part < 3; ++part) {
        Var* variable = variables[part * count + i].get();
        OP_REQUIRES(context,
                    variable->is_initialized && variable->tensor()->dtype() == tensorflow::DT_FLOAT &&
                        variable->tensor()->shape() == gradient.shape(),
                    tensorflow::errors::InvalidArgument("variable ", i, " and its moments must be float32 of its gradient's shape ",
                                                        gradient.shape().DebugString()));
        OP_REQUIRES_OK(context, make_own(context, variable));
        values[part] = data(variable->tensor());
      }
      const int64_t size = gradient.NumElements();
      for (int64_t first = 0; first < size; first += kStretch)
        slices.push_back({values[0] + first, values[1] + first, values[2] + first, data(gradient) + first,
                          std::min(kStretch, size - first), decayed[i] ? weight_decay * rate : 0.f});
    }
    threads(context)(slices.size(), [&](int64_t i) { kernels().adam(slices[i], now); });
  }

  int count;
  std::vector<bool> decayed;
  float beta1, beta2;
  AdamRates rates{};  // all but alpha, which depends on the step
};

REGISTER_OP("FashionAdam")
    .Input("variables: N * resource")
    .Input("momentums: N * resource")
    .Input("velocities: N * resource")
    .Input("gradients: N * float")
    .Input("step: int64")
    .Input("learning_rate: float")
    .Input("weight_decay: float")
    .Attr("N: int >= 1")
    .Attr("decayed: list(bool)")
    .Attr("beta_1: float")
    .Attr("beta_2: float")
    .Attr("one_minus_beta_1: float")
    .Attr("one_minus_beta_2: float")
    .Attr("epsilon: float")
    .SetIsStateful()
    .SetShapeFn(tensorflow::shape_inference::NoOutputs)
    .Doc("One step of Adam (step counts from 1), with decoupled weight decay for the variables marked in `decayed`.");

REGISTER_KERNEL_BUILDER(Name("FashionAdam").Device(tensorflow::DEVICE_CPU), Adam);

}  // namespace
}  // namespace fashion
