# What every file of ours is compiled with.
find_program(CCACHE ccache)
if(CCACHE)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CMAKE_COMMAND} -E env
    CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime
    CCACHE_BASEDIR=${CMAKE_SOURCE_DIR} CCACHE_NOHASHDIR=1 ${CCACHE})
endif()
find_program(MOLD mold)
if(MOLD)
  add_link_options(-fuse-ld=mold)
endif()

# Warnings are errors with the compiler that we test with; another one may warn about things we cannot know.
set(werror OFF)
if(CMAKE_CXX_COMPILER_ID STREQUAL GNU AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
  set(werror ON)
endif()
option(WEFT_WARNINGS_AS_ERRORS "Stop at a warning" ${werror})

# Designated initialisers leave the other members at their defaults, which is no mistake.
set(options -Wall -Wextra -Wno-missing-field-initializers -fPIC -Winvalid-pch)
if(WEFT_WARNINGS_AS_ERRORS)
  list(APPEND options -Werror)
endif()
if(CMAKE_CXX_COMPILER_ID STREQUAL GNU)
  list(APPEND options -fpch-preprocess)  # so that ccache can cache with a precompiled header
endif()
add_compile_options("$<$<COMPILE_LANGUAGE:CXX>:${options}>")
string(TOUPPER "${CMAKE_BUILD_TYPE}" type)
string(STRIP "${CMAKE_BUILD_TYPE} ${CMAKE_CXX_FLAGS} ${CMAKE_CXX_FLAGS_${type}}" build)
add_compile_definitions(WEFT_VERSION="${PROJECT_VERSION}" "WEFT_BUILD=\"${build}\"")
if(WEFT_SANITIZE)
  add_compile_options("$<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${WEFT_SANITIZE};-fno-omit-frame-pointer>")
  add_link_options(-fsanitize=${WEFT_SANITIZE})
  if(WEFT_SANITIZE MATCHES undefined)
    add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-fno-sanitize-recover=undefined>)
  endif()
endif()
