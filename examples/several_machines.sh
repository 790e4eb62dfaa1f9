#!/usr/bin/env bash
# Several machines with torchrun: run this on each of them, with its own NODE_RANK:
#     NNODES=4 NODE_RANK=0 MASTER_ADDR=10.0.0.1 bash examples/several_machines.sh
# In pretrain_gpt.py, under `import torch`:
#     import mindspeed.megatron_adaptor
#     import mindspeed_moe.adaptor                                      # (plugin)
# Every rank must have the same plugin, of the same version and configuration: the ranks compare that once, through the
# store, before their first exchange, and each ends with a message when they differ.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

MOE_ARGS=(
    --num-experts 128 --moe-router-topk 8 --moe-ffn-hidden-size 768
    --moe-router-load-balancing-type aux_loss --moe-aux-loss-coeff 0.001
    --moe-token-dispatcher-type alltoall --moe-grouped-gemm --moe-permute-fusion
    --expert-model-parallel-size 32 --hccl-group-buffer-adaptive --disable-gloo-group
    --moe-npu-preprocess                                                # (plugin)
)
torchrun --nnodes "${NNODES:?}" --node-rank "${NODE_RANK:?}" --nproc-per-node 8 \
    --master-addr "${MASTER_ADDR:?}" --master-port "${MASTER_PORT:-29500}" pretrain_gpt.py \
    --num-layers 48 --hidden-size 2048 --num-attention-heads 32 --seq-length 4096 --max-position-embeddings 4096 \
    --tensor-model-parallel-size 1 --pipeline-model-parallel-size 1 --micro-batch-size 1 --global-batch-size 1024 \
    --train-iters 1000 --lr 1e-5 --bf16 --swiglu --disable-bias-linear --data-path "${DATA_PATH:?}" \
    --tokenizer-type PretrainedFromHF --tokenizer-name-or-path "${TOKENIZER:?}" --distributed-backend nccl \
    "${MOE_ARGS[@]}" "$@"
