// main of every test program. CUDA must be loaded before a test asks torch for it, see ops/cuda_library.h.
#include <gtest/gtest.h>

#include "ops/cuda_library.h"

int main(int argc, char** argv) {
  weft::load_cuda_library();
  testing::InitGoogleTest(&argc, argv);  // parameterised tests ask for devices here
  return RUN_ALL_TESTS();
}
