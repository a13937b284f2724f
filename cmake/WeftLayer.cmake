# weft_layer(NAME [SOURCE_LINK libraries...] [NO_TORCH] [NO_UNITY])
# src/NAME becomes the object library weft_NAME. *_test.cc go to the test program NAME_tests.
# Object libraries, because a static archive drops files whose only job is to register something.
# NO_UNITY: its files use the same local names, as ops and subcommands do, so each is compiled alone.
# A file that sees no torch (kernels, and all of `base`) is compiled without the precompiled header.
set(WEFT_LAYERS "" CACHE INTERNAL "")
set(WEFT_LAYER_LINKS "" CACHE INTERNAL "")

function(weft_layer name)
  cmake_parse_arguments(arg "NO_TORCH;NO_UNITY" "" "SOURCE_LINK" ${ARGN})
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS src/${name}/*.cc)
  set(tests ${sources})
  list(FILTER tests INCLUDE REGEX "_test\\.cc$")
  list(FILTER sources EXCLUDE REGEX "_test\\.cc$")
  set(kernels ${sources})
  list(FILTER kernels INCLUDE REGEX "/(kernel_cpu[a-z0-9_]*|simd/[a-z0-9_]*)\\.cc$")

  add_library(weft_${name} OBJECT ${sources})
  if(arg_NO_UNITY)
    set_target_properties(weft_${name} PROPERTIES UNITY_BUILD OFF)
  endif()
  target_include_directories(weft_${name} PUBLIC src PRIVATE ${CMAKE_BINARY_DIR}/generated)
  target_include_directories(weft_${name} SYSTEM PRIVATE ${HIGHWAY_INCLUDE_DIR} ${PCRE2_INCLUDE_DIR})
  target_link_libraries(weft_${name} PUBLIC Libtorch::cpu PRIVATE ${arg_SOURCE_LINK})
  # Fuzzing is about readers: kernels are only linked.
  set(kernel_options $<IF:$<BOOL:${WEFT_FUZZ}>,-O0;-fno-sanitize=all,-O3;-ffp-contract=fast>)
  set_source_files_properties(${kernels} PROPERTIES SKIP_PRECOMPILE_HEADERS ON COMPILE_OPTIONS "${kernel_options}")
  if(name STREQUAL ops)
    target_precompile_headers(weft_ops PRIVATE src/ops/precompiled.h)
    if(NOT WEFT_SANITIZE MATCHES "thread|fuzzer")
      set_source_files_properties(src/ops/parallel.cc PROPERTIES COMPILE_OPTIONS "-fopenmp" SKIP_PRECOMPILE_HEADERS ON)
    endif()
  elseif(NOT arg_NO_TORCH)
    target_precompile_headers(weft_${name} REUSE_FROM weft_ops)
  endif()
  set(WEFT_LAYERS ${WEFT_LAYERS} ${name} CACHE INTERNAL "")
  set(WEFT_LAYER_LINKS ${WEFT_LAYER_LINKS} ${arg_SOURCE_LINK} CACHE INTERNAL "")
  set(WEFT_TESTS_${name} ${tests} CACHE INTERNAL "")
endfunction()

# libweft.so holds all layers but the command line: one copy of every registry for the program, the CUDA library,
# plug-ins and Python.
include(GNUInstallDirs)
function(weft_program)
  add_library(weft SHARED)
  foreach(layer ${WEFT_LAYERS})
    target_sources(weft PRIVATE $<TARGET_OBJECTS:weft_${layer}>)
  endforeach()
  target_include_directories(weft PUBLIC $<BUILD_INTERFACE:${CMAKE_SOURCE_DIR}/src>
    $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}/weft>)
  target_compile_features(weft PUBLIC cxx_std_20)
  target_link_libraries(weft PUBLIC Libtorch::cpu PRIVATE ${WEFT_LAYER_LINKS})
  set_target_properties(weft PROPERTIES LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR} DEFINE_SYMBOL "")

  file(GLOB sources CONFIGURE_DEPENDS src/cli/*.cc)
  add_executable(weft_cli ${sources})
  target_include_directories(weft_cli SYSTEM PRIVATE ${CLI11_INCLUDE_DIR} ${EDIT_INCLUDE_DIR})
  target_link_libraries(weft_cli PRIVATE weft nlohmann_json::nlohmann_json ${EDIT_LIBRARY})
  target_precompile_headers(weft_cli REUSE_FROM weft_ops)
  set_target_properties(weft_cli PROPERTIES UNITY_BUILD OFF OUTPUT_NAME weft RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}
    POSITION_INDEPENDENT_CODE OFF BUILD_RPATH "$ORIGIN;${WEFT_TORCH}/lib")
endfunction()

# What `cmake --install` copies: the program, the libraries, the headers, and find_package(weft) for plug-ins.
function(weft_install)
  set(package ${CMAKE_INSTALL_LIBDIR}/cmake/weft)
  file(RELATIVE_PATH to_library /${CMAKE_INSTALL_BINDIR} /${CMAKE_INSTALL_LIBDIR})
  set_target_properties(weft PROPERTIES INSTALL_RPATH "$ORIGIN;${WEFT_TORCH}/lib")
  set_target_properties(weft_cli PROPERTIES INSTALL_RPATH "$ORIGIN/${to_library};${WEFT_TORCH}/lib")
  install(TARGETS weft EXPORT weftTargets LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
  install(TARGETS weft_cli RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
  if(WEFT_CUDA)
    install(TARGETS weft_cuda LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
  endif()
  install(DIRECTORY src/ DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/weft FILES_MATCHING PATTERN "*.h"
    PATTERN cli EXCLUDE PATTERN cuda EXCLUDE)

  include(CMakePackageConfigHelpers)
  configure_package_config_file(cmake/weftConfig.cmake.in ${CMAKE_BINARY_DIR}/weftConfig.cmake
    INSTALL_DESTINATION ${package} NO_SET_AND_CHECK_MACRO NO_CHECK_REQUIRED_COMPONENTS_MACRO)
  write_basic_package_version_file(${CMAKE_BINARY_DIR}/weftConfigVersion.cmake COMPATIBILITY SameMinorVersion)
  install(EXPORT weftTargets NAMESPACE weft:: DESTINATION ${package})
  install(FILES ${CMAKE_BINARY_DIR}/weftConfig.cmake ${CMAKE_BINARY_DIR}/weftConfigVersion.cmake
    cmake/FindLibtorch.cmake DESTINATION ${package})
endfunction()

# weft_test(NAME sources...): one program and one CTest entry, since loading libtorch costs half a second a program.
function(weft_test name)
  add_executable(${name} ${ARGN} ${CMAKE_SOURCE_DIR}/tests/main.cc)
  target_link_libraries(${name} PRIVATE weft GTest::gtest nlohmann_json::nlohmann_json)
  target_precompile_headers(${name} REUSE_FROM weft_ops)
  set_target_properties(${name} PROPERTIES UNITY_BUILD OFF POSITION_INDEPENDENT_CODE OFF BUILD_RPATH "${CMAKE_BINARY_DIR};${WEFT_TORCH}/lib")
  add_test(NAME ${name} COMMAND ${name})
  set_tests_properties(${name} PROPERTIES TIMEOUT 600 ENVIRONMENT OMP_WAIT_POLICY=passive WORKING_DIRECTORY ${CMAKE_SOURCE_DIR})
endfunction()

# weft_embed(FILE NAME HEADER): the text of FILE as `inline constexpr const char* weft::NAME` in a generated HEADER.
function(weft_embed file name header)
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${file})
  file(READ ${file} text)
  file(CONFIGURE OUTPUT ${CMAKE_BINARY_DIR}/generated/${header} @ONLY CONTENT
    "#pragma once\n\nnamespace weft {\ninline constexpr const char* @name@ = R\"(@text@)\";\n}\n")
endfunction()
