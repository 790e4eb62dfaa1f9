#!/usr/bin/env bash
# Train a small Megatron-Core GPT with MoE layers on four local processes: bash ci/demo.sh [options of the demo].
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

make_environment plot,report
install_megatron 0.16.1

export PYTHONPATH="$ROOT/.megatron/0.16.1" TORCH_DEVICE_BACKEND_AUTOLOAD=0
exec mindspeed-moe demo "$@"
