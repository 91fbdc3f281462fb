// One unit for the compiler: TensorFlow's headers cost it most of its time.
#include "adam.cc"
#include "depthwise.cc"
#include "grey.cc"
#include "normalise.cc"
#include "pointwise.cc"
#include "support.cc"
