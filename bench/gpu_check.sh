#!/usr/bin/env bash
# Everything that needs a GPU, in one go: builds for this GPU, runs the tests on it, the sanitizers on small sizes,
# the benches, and leaves JSON under bench/results/. Works without a network; needs Python, nvcc, torch with CUDA, numpy,
# pytest, pybind11, scikit-build-core, cmake and ninja. Every step has a limit, all of them under 8 minutes.
#
#   bench/gpu_check.sh [FOLDER]     logs and results go into FOLDER, too
set -uo pipefail
cd "$(dirname "$0")/.."

out=${1:-build/gpu_check}
mkdir -p "$out"
python=${PYTHON:-python3}
export PATH="${CUDA_HOME:-/usr/local/cuda}/bin:$PATH" PYTHONPATH="tests${PYTHONPATH:+:$PYTHONPATH}"
failed=()
step() { # step NAME SECONDS COMMAND...
  local name=$1 limit=$2 start=$SECONDS
  shift 2
  echo "=== $name"
  if timeout -k 5 "$limit" "$@" > "$out/${name// /_}.log" 2>&1; then
    echo "--- $name: passed, $((SECONDS - start)) s"
  else
    echo "--- $name: FAILED, $((SECONDS - start)) s"
    tail -n 25 "$out/${name// /_}.log"
    failed+=("$name")
  fi
}

nvidia-smi --query-gpu=name,driver_version,compute_cap --format=csv,noheader || exit 1

# Its own architecture alone, and no loops on the processor: those have run elsewhere.
step "build" 150 env SKBUILD_CMAKE_DEFINE="GOSSAMER_CUDA=ON;GOSSAMER_SIMT=OFF" SKBUILD_BUILD_DIR=build/gpu \
  "$python" -m pip install --no-deps --no-build-isolation --no-index -e .
"$python" -c 'from gossamer.gpu.cuda import why_unavailable as w; raise SystemExit(w())' || exit 1

step "tests" 70 "$python" -m pytest -q tests/gpu/test_cuda.py tests/kernels/test_cuda_device.py
if command -v compute-sanitizer > /dev/null; then
  # Without torch's cache every tensor is an allocation of its own, so that a step beyond its end is seen. Filters are
  # by substrings of mangled names; older tools call the option otherwise.
  filter=$(compute-sanitizer --help 2>&1 | grep -o -m 1 -E -- '--kernel-(name|regex)' | head -n 1)
  for tool in memcheck racecheck; do
    step "$tool" 40 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" --error-exitcode 9 \
      ${filter:+"$filter" kns=gossamer} "$python" -m pytest -q -x tests/kernels/test_cuda_device.py -k "test_small and (int8 or between)"
  done
else
  echo "--- sanitizers: skipped, compute-sanitizer is not on PATH"
fi
step "bench" 105 "$python" bench/gpu_kernels.py --shapes 11008x4096 14336x4096 --tokens 1 4 16 32
tail -n 30 "$out/bench.log"
step "decode" 70 "$python" bench/gpu_decode.py
tail -n 5 "$out/decode.log"
cp bench/results/gpu_kernels.json bench/results/gpu_decode.json "$out/" 2> /dev/null

echo "all in $SECONDS s; failed: ${failed[*]:-nothing}"
[ ${#failed[@]} -eq 0 ]
