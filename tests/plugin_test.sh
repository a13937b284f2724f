#!/usr/bin/env bash
# A user's own mixer, as docs/plugins.md says: installs weft, builds examples/plugin against the installed package outside
# of weft's build, and checks, trains and generates with it.   tests/plugin_test.sh BUILD_FOLDER
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
build=$(realpath "$1")
# The same folder each time, so that ccache knows the compilation again.
work=$build/tests/plugin_test prefix=$build/tests/plugin_test/weft
rm -rf "$work"
mkdir -p "$work"
export OMP_WAIT_POLICY=passive  # threads that wait must not spin: other tests may run beside this one
weft=$prefix/bin/weft plugin=$work/build/libleaky_average.so

step() { printf -- '--- %s\n' "$*"; }
# expect PATTERN FILE
expect() { grep -qE "$1" "$2" || { echo "expected '$1' in:" && cat "$2" && exit 1; }; }
# fails_with PATTERN COMMAND...
fails_with() {
  local pattern=$1 status=0
  shift
  "$@" >"$work/out" 2>&1 || status=$?
  ((status == 1)) || { echo "expected exit status 1, found $status:" && cat "$work/out" && exit 1; }
  expect "$pattern" "$work/out"
}

step "install"
cmake --install "$build" --prefix "$prefix" >/dev/null
step "build the example"
launcher=()
if command -v ccache >/dev/null; then launcher=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache); fi
cmake -S examples/plugin -B "$work/build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_PREFIX_PATH="$prefix" "${launcher[@]}" \
  "-DCMAKE_CXX_FLAGS=-Wall -Wextra -Werror" >"$work/configure.log" || { cat "$work/configure.log"; exit 1; }
cmake --build "$work/build" >"$work/build.log" || { cat "$work/build.log"; exit 1; }

step "without the plug-in the mixer is unknown"
fails_with "'leaky_average' is not a mixer" "$weft" check leaky_average
fails_with "recipe.yaml:[0-9]+: .*'leaky_average' is not a mixer" \
  "$weft" train examples/plugin/recipe.yaml --set "run.dir=$work/none"

step "its options"
"$weft" mixers leaky_average --plugin "$plugin" >"$work/out"
expect "^span +float +64 +>= 2" "$work/out"

step "conformance"
"$weft" check leaky_average --plugin "$plugin" --device cpu --quiet >"$work/out" || { cat "$work/out"; exit 1; }
expect "^[0-9]+ checks passed, 0 failed" "$work/out"
"$weft" check --cases examples/plugin/cases.yaml --plugin "$plugin" --device cpu >"$work/out" || { cat "$work/out"; exit 1; }
expect "^[0-9]+ checks passed, 0 failed" "$work/out"
expect "ok +summary = whole, fp64" "$work/out"

step "train and generate"
run=$work/run
"$weft" train examples/plugin/recipe.yaml --plugin "$plugin" --set "run.dir=$run" 2>"$work/out" || { cat "$work/out"; exit 1; }
expect "step 60/60" "$work/out"
# Bytes of English that were not learned from have 8 bits; letter frequencies alone give about 4.2.
awk -F'"final_valid_bits_per_byte":' '/final_valid/ {split($2, number, /[,}]/); bits = number[1]}
  END {print "validation: " bits " bits a byte"; exit !(bits > 0 && bits < 4.2)}' "$run/log.jsonl"
"$weft" generate "$run" "In the beginning" -n 20 --ignore-end --plugin "$plugin" 2>"$work/out"
expect "20 tokens, " "$work/out"
fails_with "'leaky_average' is not a mixer" "$weft" generate "$run" "In the beginning"
