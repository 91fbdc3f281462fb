// Runs every inner kernel over awkward shapes, on two threads, with buffers of exactly the right size: meant to be compiled
// with sanitizers. Prints the sum of all results, which is the same whatever the variant, to rounding.
#include <cmath>
#include <cstdio>
#include <memory>
#include <thread>
#include <vector>

#if defined(__AMX_TILE__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "round.h"
#include "table.h"

namespace fashion::VARIANT {
extern const Kernels kernels;
}

namespace {

using namespace fashion;

const Kernels& kernels = VARIANT::kernels;
double total = 0;
unsigned state = 1;

// On the heap, exactly as long as needed: one float too far is an error that the address sanitizer sees.
std::unique_ptr<float[]> numbers(int64_t count) {
  std::unique_ptr<float[]> values(new float[count]);
  for (int64_t i = 0; i < count; ++i) values[i] = static_cast<float>((state = state * 1664525u + 1013904223u) >> 8) / 8388608.f - 1;
  return values;
}

void add(const std::unique_ptr<float[]>& values, int64_t count) {
  for (int64_t i = 0; i < count; ++i) total += std::fabs(values[i]) / count;
}

void two_threads(int64_t count, const Item& item) {
  const auto round = std::make_shared<Round>(count, &item);
  std::thread helper([round] { round->work(); });
  round->finish();
  helper.join();
}

struct Maps {  // what every convolution has besides its own shape
  Maps(int64_t in_size, int64_t in, int64_t out_size, int64_t out, int64_t kernel_size)
      : sizes{in_size, in, in, kernel_size, out_size, out, out, in_size, in, in, kernel_size} {
    for (int64_t size : sizes) values.push_back(numbers(size));
    dy = numbers(out_size), offset = numbers(out), slope = numbers(out);
  }
  Pending input() const { return {values[0].get(), values[1].get(), values[2].get()}; }
  const float* kernel() const { return values[3].get(); }
  Moments output() const { return {values[4].get(), values[5].get(), values[6].get()}; }
  OutputGradient gradient() const { return {values[4].get(), dy.get(), values[5].get(), offset.get(), slope.get()}; }
  PendingGradient to() const { return {values[7].get(), values[8].get(), values[9].get()}; }
  float* kernel_gradient() const { return values[10].get(); }
  void sum() const {
    for (size_t i = 4; i < values.size(); ++i) add(values[i], sizes[i]);
  }
  std::vector<int64_t> sizes;
  std::vector<std::unique_ptr<float[]>> values;
  std::unique_ptr<float[]> dy, offset, slope;
};

void pointwise(int64_t rows, int64_t in, int64_t out) {
  const Maps maps(rows * in, in, rows * out, out, in * out);
  const PointwiseShape shape{rows, in, out};
  kernels.pointwise(shape, maps.input(), maps.kernel(), maps.output(), two_threads);
  kernels.pointwise_gradient(shape, maps.input(), maps.kernel(), maps.gradient(), maps.to(), maps.kernel_gradient(), two_threads);
  maps.sum();
}

void depthwise(int64_t batch, int64_t height, int64_t width, int64_t c, int64_t stride) {
  const DepthwiseShape shape{batch, height, width, c, height / stride, width / stride, stride};
  const Maps maps(batch * height * width * c, c, batch * (height / stride) * (width / stride) * c, c, 9 * c);
  kernels.depthwise(shape, maps.input(), maps.kernel(), maps.output(), two_threads);
  kernels.depthwise_gradient(shape, maps.input(), maps.kernel(), maps.gradient(), maps.to(), maps.kernel_gradient(), two_threads);
  maps.sum();
}

void grey(int64_t batch, int64_t height, int64_t width, int64_t c) {
  const int64_t out_height = (height + 1) / 2, out_width = (width + 1) / 2;
  const GreyShape shape{batch, height, width, c, out_height, out_width, height % 2, width % 2};
  const Maps maps(batch * height * width, c, batch * out_height * out_width * c, c, 9 * c);
  kernels.grey(shape, maps.input().z, maps.kernel(), maps.output(), two_threads);
  kernels.grey_gradient(shape, maps.input().z, maps.gradient(), maps.kernel_gradient(), two_threads);
  for (size_t i : {4, 5, 6, 10}) add(maps.values[i], maps.sizes[i]);
}

void adam(int64_t size) {
  const auto variable = numbers(size), momentum = numbers(size), velocity = numbers(size), gradient = numbers(size);
  for (int64_t i = 0; i < size; ++i) velocity[i] = std::fabs(velocity[i]);
  kernels.adam({variable.get(), momentum.get(), velocity.get(), gradient.get(), size, 0.1f}, {0.01f, 0.1f, 0.001f, 1e-3f});
  for (const auto* values : {&variable, &momentum, &velocity}) add(*values, size);
}

}  // namespace

int main() {
#if defined(__AMX_TILE__)
  syscall(SYS_arch_prctl, 0x1023, 18);  // Linux gives the tile registers to those who ask
#endif
  pointwise(1, 1, 1), pointwise(1, 3, 5), pointwise(7, 33, 17), pointwise(12, 32, 64), pointwise(200, 40, 8);
  pointwise(1000, 24, 40), pointwise(2000, 70, 33), pointwise(300, 260, 300), pointwise(61, 5, 600);
  pointwise(2600, 260, 300);
  for (int64_t c : {1, 5, 16, 24, 33, 256})
    for (int64_t stride : {1, 2}) {
      depthwise(2, stride, stride, c, stride), depthwise(1, 2, 7, c, stride), depthwise(3, 5, 4, c, stride);
    }
  depthwise(1, 61, 44, 40, 1), depthwise(1, 61, 44, 40, 2), depthwise(70, 3, 3, 16, 1);
  for (int64_t c : {1, 8, 32, 40}) grey(1, 1, 1, c), grey(2, 5, 8, c), grey(1, 33, 32, c);
  adam(1), adam(15), adam(1000);
  std::printf("%.6f\n", total);
  return std::isfinite(total) ? 0 : 1;
}
