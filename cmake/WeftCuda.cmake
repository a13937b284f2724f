# nvcc as a C++20 compiler, and the library that holds everything CUDA. Included before libtorch is looked for, because
# that takes over the toolkit's include folder. Files named *_sm90.cu use Hopper's own instructions and are compiled for
# it alone; all others for sm_80 and newer (machine code for both, PTX for what comes later).
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 80 90a-real)
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
  set(hopper ${sources})
  list(FILTER hopper INCLUDE REGEX "_sm90\\.cu$")
  list(FILTER sources EXCLUDE REGEX "_sm90\\.cu$")
  set(options $<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr;-lineinfo>)
  add_library(weft_cuda SHARED ${sources})
  # Newer CMake would unite CUDA sources too, whose local names are alike.
  set_target_properties(weft_cuda PROPERTIES UNITY_BUILD OFF)
  if(hopper)
    add_library(weft_cuda_sm90 OBJECT ${hopper})
    set_target_properties(weft_cuda_sm90 PROPERTIES CUDA_ARCHITECTURES 90a-real UNITY_BUILD OFF)
    target_include_directories(weft_cuda_sm90 PRIVATE src)
    target_compile_options(weft_cuda_sm90 PRIVATE ${options})
    target_sources(weft_cuda PRIVATE $<TARGET_OBJECTS:weft_cuda_sm90>)
  endif()
  target_include_directories(weft_cuda PRIVATE src)
  target_compile_options(weft_cuda PRIVATE ${options})
  target_link_libraries(weft_cuda PRIVATE weft Libtorch::cuda)
  set_target_properties(weft_cuda PROPERTIES BUILD_RPATH "$ORIGIN" INSTALL_RPATH "$ORIGIN;${WEFT_TORCH}/lib"
    LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR})
endfunction()
