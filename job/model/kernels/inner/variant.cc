// All inner kernels for one kind of processor: compiled once for each, with VARIANT as its name and its own flags.
#include "adam.h"
#include "depthwise.h"
#include "grey.h"
#if defined(__AVX512BF16__)
#include "pointwise_bfloat16.h"
#else
#include "pointwise_gradient.h"
#endif
#include "table.h"

#define FASHION_TEXT(x) #x
#define FASHION_NAME(x) FASHION_TEXT(x)

namespace fashion::VARIANT {

extern const Kernels kernels;
const Kernels kernels = {FASHION_NAME(VARIANT), pointwise, pointwise_gradient, depthwise, depthwise_gradient,
                         grey,                  grey_gradient, adam};

}  // namespace fashion::VARIANT
