#!/usr/bin/env bash
# What takes too long for ci/test.sh: the long soak, whole self-tests, 10,000 layouts, a million records, and the faults
# and mistakes that it leaves out. bash ci/slow.sh [options of pytest]
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

RELEASE=0.16.1

make_environment test,lint
install_megatron "$RELEASE"
install_torch_npu

cd "$ROOT"
export TORCH_DEVICE_BACKEND_AUTOLOAD=0 OMP_NUM_THREADS=1

failed=0
# A choice of tests may leave nothing of a part: that is exit code 5.
run() {
    python -m pytest -s "$@" || [ $? = 5 ] || failed=1
}

PYTHONPATH="$(torch_npu_path)" python -m tests.ascend_sim --build
run -m "slow and not megatron and not simulated" "$@"
export PYTHONPATH="$(megatron_path "$RELEASE")"
run -m "slow and megatron and not simulated" --require-megatron "$@"
export PYTHONPATH="$(torch_npu_path):$PYTHONPATH"
run -m "slow and simulated" --require-simulated --require-megatron "$@"
exit "$failed"
