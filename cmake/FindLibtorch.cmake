# Finds the libtorch inside a torch wheel or a libtorch archive, without importing torch and without a GPU toolkit.
#   Libtorch::cpu   headers, libtorch_cpu and libc10
#   Libtorch::cuda  adds libtorch_cuda, libc10_cuda and cudart; only for libraries that are opened at run time
# Input: WEFT_TORCH (cache or environment), the folder that holds include/ and lib/. Without it the first of these that is
# new enough: the torch of python3, the one that ./bootstrap installed.

function(libtorch_version folder out)
  set(line "")
  if(EXISTS "${folder}/version.py")
    file(STRINGS "${folder}/version.py" line REGEX "^__version__")
  elseif(EXISTS "${folder}/build-version")
    file(STRINGS "${folder}/build-version" line LIMIT_COUNT 1)
  endif()
  string(REGEX MATCH "[0-9]+\\.[0-9]+\\.[0-9]+" version "${line}")
  set(${out} "${version}" PARENT_SCOPE)
endfunction()

function(libtorch_candidates out)
  set(folders "")
  find_program(python NAMES python3 NO_CACHE)
  if(python)
    execute_process(
      COMMAND ${python} -c "import importlib.util as u; s = u.find_spec('torch'); print((s and s.submodule_search_locations or [''])[0])"
      WORKING_DIRECTORY / OUTPUT_VARIABLE folders OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  endif()
  set(home "$ENV{HOME}/.cache/weft")
  if(DEFINED ENV{WEFT_HOME})
    set(home "$ENV{WEFT_HOME}")
  elseif(DEFINED ENV{XDG_CACHE_HOME})
    set(home "$ENV{XDG_CACHE_HOME}/weft")
  endif()
  file(GLOB ours "${home}/torch-*/lib/python3*/site-packages/torch")
  set(${out} ${folders} ${ours} PARENT_SCOPE)
endfunction()

if(NOT WEFT_TORCH AND DEFINED ENV{WEFT_TORCH})
  set(WEFT_TORCH "$ENV{WEFT_TORCH}")
endif()
if(NOT WEFT_TORCH)
  libtorch_candidates(candidates)
  foreach(folder ${candidates})
    libtorch_version("${folder}" version)
    if(version AND NOT version VERSION_LESS "${Libtorch_FIND_VERSION}")
      set(WEFT_TORCH "${folder}")
      break()
    endif()
  endforeach()
endif()
set(WEFT_TORCH "${WEFT_TORCH}" CACHE PATH "folder of libtorch: holds include/ and lib/")
libtorch_version("${WEFT_TORCH}" Libtorch_VERSION)

# Not cached, so that another WEFT_TORCH takes effect at once.
find_library(LIBTORCH_CPU_LIBRARY torch_cpu PATHS "${WEFT_TORCH}/lib" NO_DEFAULT_PATH NO_CACHE)
find_library(LIBTORCH_C10_LIBRARY c10 PATHS "${WEFT_TORCH}/lib" NO_DEFAULT_PATH NO_CACHE)
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(Libtorch REQUIRED_VARS LIBTORCH_CPU_LIBRARY LIBTORCH_C10_LIBRARY
  VERSION_VAR Libtorch_VERSION
  REASON_FAILURE_MESSAGE "run ./bootstrap setup, or set WEFT_TORCH to a torch >= ${Libtorch_FIND_VERSION} package folder")

if(Libtorch_FOUND AND NOT TARGET Libtorch::cpu)
  add_library(Libtorch::cpu INTERFACE IMPORTED)
  target_include_directories(Libtorch::cpu SYSTEM INTERFACE
    "${WEFT_TORCH}/include" "${WEFT_TORCH}/include/torch/csrc/api/include")
  # torch ships its own fmt, which shadows Debian's in every file that sees torch's headers; use it everywhere.
  target_compile_definitions(Libtorch::cpu INTERFACE FMT_HEADER_ONLY)
  target_link_libraries(Libtorch::cpu INTERFACE "${LIBTORCH_CPU_LIBRARY}" "${LIBTORCH_C10_LIBRARY}")
  target_link_options(Libtorch::cpu INTERFACE "LINKER:--allow-shlib-undefined")
endif()
if(Libtorch_FOUND AND WEFT_CUDA AND NOT TARGET Libtorch::cuda)
  if(NOT EXISTS "${WEFT_TORCH}/lib/libtorch_cuda.so")
    message(FATAL_ERROR "WEFT_CUDA is on, but the torch in ${WEFT_TORCH} was built without CUDA")
  endif()
  add_library(Libtorch::cuda INTERFACE IMPORTED)
  set(wheels "${WEFT_TORCH}/../nvidia")
  foreach(folder "${wheels}/cu13/include" "${wheels}/cuda_runtime/include" ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
    if(EXISTS "${folder}")
      target_include_directories(Libtorch::cuda SYSTEM INTERFACE "${folder}")
    endif()
  endforeach()
  find_library(LIBTORCH_CUDART_LIBRARY NAMES libcudart.so.13 libcudart.so.12 cudart
    PATHS "${wheels}/cu13/lib" "${wheels}/cuda_runtime/lib" "${WEFT_TORCH}/lib" ${CMAKE_CUDA_IMPLICIT_LINK_DIRECTORIES}
    NO_DEFAULT_PATH NO_CACHE REQUIRED)
  target_link_libraries(Libtorch::cuda INTERFACE Libtorch::cpu
    "${WEFT_TORCH}/lib/libtorch_cuda.so" "${WEFT_TORCH}/lib/libc10_cuda.so" "${LIBTORCH_CUDART_LIBRARY}")
  target_link_options(Libtorch::cuda INTERFACE "LINKER:--no-as-needed")  # libtorch_cuda registers itself when loaded
endif()
