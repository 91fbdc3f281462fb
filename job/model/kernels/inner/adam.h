// Adam's update of a stretch of one variable, in Keras' order of operations.
#pragma once
#include <cmath>

#include "table.h"

namespace fashion::VARIANT {

inline void adam(const AdamSlice& slice, const AdamRates& rates) {
  float* __restrict variable = slice.variable;
  float* __restrict momentum = slice.momentum;
  float* __restrict velocity = slice.velocity;
  const float* __restrict gradient = slice.gradient;
  const float decay = slice.decay;
  for (int64_t i = 0; i < slice.size; ++i) {
    const float g = gradient[i], decayed = variable[i] - variable[i] * decay;
    const float m = momentum[i] += (g - momentum[i]) * rates.one_minus_beta1;
    const float v = velocity[i] += (g * g - velocity[i]) * rates.one_minus_beta2;
    variable[i] = decayed - m * rates.alpha / (std::sqrt(v) + rates.epsilon);
  }
}

}  // namespace fashion::VARIANT
