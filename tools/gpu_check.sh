#!/usr/bin/env bash
# On a machine with an NVIDIA GPU: builds the libraries, runs the test suite on the device, compute-sanitizer on a
# part of it and the benchmarks, and writes one report, with the benchmarks' JSON beside it.
#
#   tools/gpu_check.sh [REPORT]      default: gpu_report.txt
#
#   PYTHON=python3   the Python of an environment with torch and the test packages (default: .venv/bin/python if made)
#
# Exit status: 0 all is well; 1 a step failed, the report says which; 2 a wrong call; 3 there is no GPU, nothing was
# done.
set -euo pipefail

if [[ $# -gt 1 || ${1:-} == -* ]]; then
    echo "usage: tools/gpu_check.sh [REPORT]" >&2
    exit 2
fi
here=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
report=${1:-gpu_report.txt}
[[ $report == /* ]] || report=$here/$report
python=${PYTHON:-}
if [[ -z $python ]]; then
    python=python3
    [[ -x .venv/bin/python ]] && python=.venv/bin/python
fi

ask='
import sys
try:
    import torch
except ImportError as error:
    sys.exit(f"{error}; PYTHON names the environment to use")
if torch.version.cuda is None:
    sys.exit(f"torch {torch.__version__} was built without CUDA")
if not torch.cuda.is_available():
    sys.exit("torch sees no NVIDIA GPU")
print("%d.%d" % torch.cuda.get_device_capability())
'
if ! capability=$("$python" -c "$ask" 2>&1); then
    echo "gpu_check: ${capability##*$'\n'}" >&2
    exit 3
fi

failed=0
summary=()
: >"$report"

# step NAME COMMAND...: the command, its output, its status and how long it took go into the report.
step() {
    local name=$1 start=$SECONDS status=0
    shift
    echo "gpu_check: $name"
    printf '\n== %s\n$ %s\n' "$name" "$*" >>"$report"
    "$@" >>"$report" 2>&1 || status=$?
    if [[ $status -ne 0 ]]; then
        failed=1
    fi
    summary+=("$(printf '%-28s %-10s %5d s' "$name" "$([[ $status -eq 0 ]] && echo ok || echo "FAILED $status")" $((SECONDS - start)))")
}

skip() {
    echo "gpu_check: $1 left out: $2"
    printf '\n== %s\nleft out: %s\n' "$1" "$2" >>"$report"
    summary+=("$(printf '%-28s %s' "$1" "left out: $2")")
}

{
    echo "mvit_kernels on an NVIDIA GPU, $(date -u +%Y-%m-%dT%H:%MZ)"
    echo "revision $(git rev-parse HEAD 2>/dev/null || echo unknown)"
    nvidia-smi 2>/dev/null || true
} >>"$report"

export MVIT_KERNELS_CUDA=require MVIT_KERNELS_REQUIRE_CPP=1
export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-$capability}
step build "$python" setup.py --quiet build_ext --inplace
step info "$python" -m mvit_kernels info
step "tests of the CUDA backend" "$python" -m pytest -q tests/cuda tests/backends
step "all tests" "$python" -m pytest -q
part=(-m pytest -q -x -p no:cacheprovider tests/cuda/test_ops.py -k "matches_float64")
if command -v compute-sanitizer >/dev/null; then
    # Without PyTorch's cache every tensor is an allocation of its own, with an end that memcheck knows.
    for tool in memcheck racecheck synccheck; do
        step "compute-sanitizer $tool" env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" \
            --error-exitcode 9 --target-processes all --kernel-regex kns=mvit "$python" "${part[@]}"
    done
else
    skip compute-sanitizer "it is not on PATH; it comes with the CUDA toolkit"
fi
step benchmarks "$python" -m pytest -q benchmarks --device cuda --json "${report%.*}.json"

{
    printf '\n== summary\n'
    printf '%s\n' "${summary[@]}"
} >>"$report"
printf '%s\n' "${summary[@]}"
echo "gpu_check: report in $report"
exit "$failed"
