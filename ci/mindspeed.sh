#!/usr/bin/env bash
# The plugin under a real MindSpeed, on the simulated Ascend runtime: bash ci/mindspeed.sh TREE MEGATRON_LM.
#
# TREE is a checkout of MindSpeed, MEGATRON_LM the source of the Megatron-LM release that it is for (which goes with which:
# mindspeed_moe/stacks.json); the wheel is not enough, for MindSpeed reads megatron.training. The stack is the one that runs
# that release of Megatron. On two ranks, a
# MoE layer with MindSpeed's own grouped-matmul experts and fused permute runs forward and backward: MindSpeed alone, with
# the plugin, after two `repatch`, switched off and on by one, and disabled. Every tensor must be equal to MindSpeed's
# alone, and the ledger must tell that the plugin is in effect exactly where it should be.
#
# Kernels that CANN would bring are stood in for by plain torch (tests/real_mindspeed/stand_ins.py). Both checkouts are
# only read. Nothing here runs on real hardware.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

[ $# -eq 2 ] || _fail "no tree given: bash ci/mindspeed.sh TREE MEGATRON_LM (checkouts of MindSpeed and Megatron-LM)"
tree="$(cd "$1" && pwd)" megatron="$(cd "$2" && pwd)"
[ -f "$tree/mindspeed/patch_utils.py" ] || _fail "$tree is no checkout of MindSpeed"
release="$(stacks_data release "$megatron")" || exit 1
stack="$(stacks_data for "$release")" || exit 1
use_stack "$stack"
make_environment test,lint
install_torch_npu
cd "$ROOT"
work="$ROOT/build/mindspeed-$STACK"
packages="$work/packages"
# What MindSpeed and megatron.training import; without their own dependencies, which would bring a second torch.
if [ ! -d "$packages" ]; then
    mkdir -p "$work"
    pip install --quiet --progress-bar off --no-deps --target "$packages.part" \
        protobuf einops decorator attrs psutil scipy six regex cloudpickle tqdm ||
        _fail "what MindSpeed imports cannot be installed, see above"
    mv "$packages.part" "$packages"
fi
link_megatron "$megatron"
# From 0.16 on MindSpeed cannot be imported without triton.
options=()
! grep -qs "mindspeed.ops.triton" "$tree/mindspeed/features_manager/megatron_basic/requirements_basic.py" ||
    options+=(--triton)
# A size for the expert-parallel group: 2.x, 0.14 and 0.15.3 do not know its name.
! grep -qs '"ep"' "$tree/mindspeed/core/hccl_buffer/hccl_adaptive_func.py" || options+=(--ep-buffer)

echo "== MindSpeed $(git -C "$tree" rev-parse --short HEAD 2>/dev/null || echo "of unknown commit")," \
    "megatron-core $release; stack $STACK: $(python --version), torch $STACK_TORCH, torch_npu $STACK_TORCH_NPU, simulated"
export TORCH_DEVICE_BACKEND_AUTOLOAD=0 OMP_NUM_THREADS=1 TORCHDYNAMO_DISABLE=1
PYTHONPATH="$(torch_npu_path)" python -m tests.ascend_sim \
    env PYTHONPATH="$ROOT/tests:$ROOT:$(torch_npu_path):$tree:$(megatron_path "$LINKED"):$packages" \
    python -m real_mindspeed.launch "$work/ranks" "${options[@]}"
