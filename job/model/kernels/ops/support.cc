// The choice of a processor's kernels, TensorFlow's threads, and the checks that all operations share.
#include <cstring>
#include <memory>

#include "../inner/round.h"
#include "op.h"
#include "tensorflow/core/platform/threadpool.h"
#if defined(FASHION_AMX)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace fashion {

namespace avx512 {
extern const Kernels kernels;
}
namespace avx2 {
extern const Kernels kernels;
}
namespace plain {
extern const Kernels kernels;
}
#if defined(FASHION_AMX)
namespace amx {
extern const Kernels kernels;
}
#endif
#if defined(FASHION_AVX512BF16)
namespace avx512bf16 {
extern const Kernels kernels;
}
#endif

namespace {

bool runs_here(const Kernels& candidate) {
#if defined(__x86_64__)
  if (&candidate == &avx512::kernels)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("fma");
#if defined(FASHION_AVX512BF16)
  if (&candidate == &avx512bf16::kernels) return runs_here(avx512::kernels) && __builtin_cpu_supports("avx512bf16");
#endif
#if defined(FASHION_AMX)
  if (&candidate == &amx::kernels) {
    // Linux gives a process the tile registers when it asks for them.
    constexpr int kAskFor = 0x1023, kTileData = 18;
    return runs_here(avx512::kernels) && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("amx-bf16") &&
           syscall(SYS_arch_prctl, kAskFor, kTileData) == 0;
  }
#endif
  if (&candidate == &avx2::kernels) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  return true;
}

// The fastest first; last those that round to bfloat16, which are for who asks for them.
const Kernels* const variants[] = {
#if defined(__x86_64__)
    &avx512::kernels,     &avx2::kernels,
#endif
    &plain::kernels,
#if defined(FASHION_AMX)
    &amx::kernels,
#endif
#if defined(FASHION_AVX512BF16)
    &avx512bf16::kernels,
#endif
};

const Kernels* fastest() {
  for (const Kernels* candidate : variants)
    if (runs_here(*candidate)) return candidate;
  return &plain::kernels;
}

std::atomic<const Kernels*>& active() {
  static std::atomic<const Kernels*> chosen{fastest()};
  return chosen;
}

}  // namespace

const Kernels& kernels() { return *active().load(std::memory_order_relaxed); }

Parallel threads(tensorflow::OpKernelContext* context) {
  const auto* workers = context->device()->tensorflow_cpu_worker_threads();
  return [workers](int64_t count, const Item& item) {
    const int64_t helpers = std::min<int64_t>(workers->num_threads, count) - 1;
    if (helpers <= 0) {
      for (int64_t i = 0; i < count; ++i) item(i);
      return;
    }
    const auto round = std::make_shared<Round>(count, &item);
    try {
      for (int64_t i = 0; i < helpers; ++i) workers->workers->Schedule([round] { round->work(); });
    } catch (const std::bad_alloc&) {  // those that were found help, and use what would be gone if this didn't wait
    }
    round->finish();
  };
}

absl::Status check_vectors(tensorflow::OpKernelContext* context, int first, int last, int64_t channels) {
  for (int i = first; i < last; ++i)
    if (context->input(i).dims() != 1 || context->input(i).dim_size(0) != channels)
      return tensorflow::errors::InvalidArgument("input ", i, " must be a vector of ", channels, " values: received shape ",
                                                 context->input(i).shape().DebugString());
  return absl::OkStatus();
}

absl::Status allocate(tensorflow::OpKernelContext* context, int index, const tensorflow::TensorShape& shape, float** out) {
  tensorflow::Tensor* tensor = nullptr;
  TF_RETURN_IF_ERROR(context->allocate_output(index, shape, &tensor));
  *out = data(tensor);
  return absl::OkStatus();
}

MomentsGradient::MomentsGradient(const float* d_mean, const float* d_variance, int64_t channels, int64_t rows)
    : values_(2 * channels) {
  for (int64_t c = 0; c < channels; ++c) {
    values_[c] = d_mean[c] / rows;
    values_[channels + c] = 2 * d_variance[c] / rows;
  }
}

}  // namespace fashion

extern "C" {

// Uses the named variant ("avx512", "avx2", "plain", "amx", "avx512bf16"), or the fastest one that runs here for an empty
// name; gives the name of the one in use, or null if the named one does not run here.
const char* fashion_kernels_select(const char* name) {
  if (*name == 0) {
    fashion::active() = fashion::fastest();
    return fashion::kernels().name;
  }
  for (const fashion::Kernels* candidate : fashion::variants)
    if (std::strcmp(candidate->name, name) == 0 && fashion::runs_here(*candidate)) {
      fashion::active() = candidate;
      return candidate->name;
    }
  return nullptr;
}

}  // extern "C"
