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

python -m pytest -m "slow and not megatron and not simulated" -s "$@"
PYTHONPATH="$(megatron_path "$RELEASE")" python -m pytest \
    -m "slow and megatron and not simulated" --require-megatron -s "$@"
PYTHONPATH="$(torch_npu_path)" python -m tests.ascend_sim --build
PYTHONPATH="$(torch_npu_path):$(megatron_path "$RELEASE")" python -m pytest \
    -m "slow and simulated" --require-simulated --require-megatron -s "$@"
