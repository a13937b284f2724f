#include "io/tasks/finite.h"

#include "base/error.h"
#include "io/datasets/permutation.h"

namespace weft {

at::Tensor finite_rows(Split split, int64_t first, int64_t rows, int64_t size, uint64_t seed) {
  auto numbers = at::empty({rows}, at::kLong);
  auto* out = numbers.data_ptr<int64_t>();
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t number = first + i;
    if (split == Split::test) {
      invariant(number < size, "test example {} of {}", number, size);
      out[i] = number;
    } else {
      const uint64_t epoch = static_cast<uint64_t>(number / size);
      out[i] = Permutation(size, mix_bits(seed) + epoch).at(number % size);
    }
  }
  return numbers;
}

}  // namespace weft
