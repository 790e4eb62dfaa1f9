#!/usr/bin/env bash
# Train a small Megatron-Core GPT with MoE layers on four local processes: bash ci/demo.sh [--stack NAME] [options of the demo].
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

take_stack "$@"
make_environment plot,report
install_megatron "${STACK_MEGATRON_CORE%% *}"

export PYTHONPATH="$(megatron_path "${STACK_MEGATRON_CORE%% *}")" TORCH_DEVICE_BACKEND_AUTOLOAD=0
exec mindspeed-moe demo "${REST[@]}"
