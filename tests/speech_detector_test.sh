#!/usr/bin/env bash
# examples/speech_detector, built against the installed weft that plugin_test.sh leaves: the probabilities of 16 s of speech
# agree with those of the original model in another runtime, from a file and from a pipe.   tests/speech_detector_test.sh BUILD_FOLDER
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
build=$(realpath "$1")
work=$build/tests/speech_detector_test data=tests/data/silero_vad
rm -rf "$work"
mkdir -p "$work"
export OMP_WAIT_POLICY=passive
launcher=()
if command -v ccache >/dev/null; then launcher=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache); fi
cmake -S examples/speech_detector -B "$work/build" -G Ninja -DCMAKE_BUILD_TYPE=Release \
  -DCMAKE_PREFIX_PATH="$build/tests/plugin_test/weft" "${launcher[@]}" "-DCMAKE_CXX_FLAGS=-Wall -Wextra -Werror" \
  >"$work/configure.log" || { cat "$work/configure.log"; exit 1; }
cmake --build "$work/build" >"$work/build.log" || { cat "$work/build.log"; exit 1; }
program=$work/build/speech_detector

"$program" $data/silero_vad_16k.safetensors $data/speech_16k_16s.wav --probabilities "$work/file.f32" >"$work/file.txt"
"$program" $data/silero_vad_16k.safetensors - --probabilities "$work/pipe.f32" <$data/speech_16k_16s.wav >"$work/pipe.txt"
cmp "$work/file.f32" "$work/pipe.f32"
cmp "$work/file.txt" "$work/pipe.txt"
python3 - "$work/file.f32" $data/expected_prob_500.f32 <<'PY'
import array, sys
found, expected = (array.array("f", open(path, "rb").read()) for path in sys.argv[1:])
assert len(found) == len(expected) == 500, (len(found), len(expected))
error = max(abs(a - b) for a, b in zip(found, expected))
print(f"largest difference {error:.2e}")
assert error < 1e-5
PY

fails_with() {
  local pattern=$1 status=0
  shift
  "$@" >"$work/out" 2>&1 || status=$?
  ((status == 1)) && grep -q "$pattern" "$work/out" || { echo "expected '$pattern', status 1; found $status:"; cat "$work/out"; exit 1; }
}
fails_with "not a WAV file" "$program" $data/silero_vad_16k.safetensors README.md
head -c 30 $data/speech_16k_16s.wav >"$work/short.wav"
fails_with "ends inside" "$program" $data/silero_vad_16k.safetensors "$work/short.wav"
fails_with "there is no tensor 'lstm_cell.weight_hh'" "$program" tests/data/hf_tiny/llama/model.safetensors $data/speech_16k_16s.wav
