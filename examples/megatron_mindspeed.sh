#!/usr/bin/env bash
# Megatron-LM with MindSpeed on one machine with 8 NPUs. The import makes it a launch with the plugin; the flag only says
# so aloud.
# In pretrain_gpt.py, under `import torch`:
#     import mindspeed.megatron_adaptor
#     import mindspeed_moe.adaptor                                      # (plugin)
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

MODEL_ARGS=(
    --num-layers 24 --hidden-size 2048 --num-attention-heads 16 --ffn-hidden-size 5632
    --seq-length 4096 --max-position-embeddings 4096 --position-embedding-type rope --normalization RMSNorm
    --swiglu --disable-bias-linear --untie-embeddings-and-output-weights --bf16
)
MOE_ARGS=(
    --num-experts 64 --moe-router-topk 6 --moe-ffn-hidden-size 1408
    --moe-router-load-balancing-type aux_loss --moe-aux-loss-coeff 0.01
    --moe-token-dispatcher-type alltoall --moe-grouped-gemm --moe-permute-fusion
    --moe-npu-preprocess                                                # (plugin)
)
PARALLEL_ARGS=(
    --tensor-model-parallel-size 1 --pipeline-model-parallel-size 1 --expert-model-parallel-size 8
    --use-distributed-optimizer --micro-batch-size 1 --global-batch-size 64
)
TRAIN_ARGS=(
    --train-iters 1000 --lr 1e-4 --min-lr 1e-5 --lr-decay-style cosine --weight-decay 0.1 --clip-grad 1.0
    --data-path "${DATA_PATH:?}"
    --tokenizer-type GPT2BPETokenizer --vocab-file "${VOCAB_FILE:?}" --merge-file "${MERGE_FILE:?}"
    --distributed-backend nccl --transformer-impl local --log-interval 1
)
torchrun --nproc-per-node 8 pretrain_gpt.py \
    "${MODEL_ARGS[@]}" "${MOE_ARGS[@]}" "${PARALLEL_ARGS[@]}" "${TRAIN_ARGS[@]}" "$@"
