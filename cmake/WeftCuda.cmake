# nvcc as a C++20 compiler for sm_90a, and the library that holds everything CUDA. Included before libtorch is looked
# for, because that takes over the toolkit's include folder.
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 90a-real)
endif()
enable_language(CUDA)
if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake 3.25 knows no C++20 for nvcc
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
  list(APPEND CMAKE_CUDA_COMPILE_FEATURES cuda_std_20)
endif()
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_RUNTIME_LIBRARY None)  # cudart comes with torch, shared

function(weft_cuda_library)
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS src/cuda/*.cc src/cuda/*.cu src/ops/*.cu)
  add_library(weft_cuda SHARED ${sources})
  target_include_directories(weft_cuda PRIVATE src)
  target_compile_options(weft_cuda PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr;-lineinfo>)
  target_link_libraries(weft_cuda PRIVATE weft Libtorch::cuda)
  set_target_properties(weft_cuda PROPERTIES BUILD_RPATH "$ORIGIN" INSTALL_RPATH "$ORIGIN;${WEFT_TORCH}/lib"
    LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR})
endfunction()
