#!/usr/bin/env bash
# MindSpeed-LLM, a Mixtral-like model (8 experts, top-2; 8 layers) on 8 NPUs. In pretrain_gpt.py, under `import torch`:
#     from mindspeed_llm import megatron_adaptor
#     import mindspeed_moe.adaptor                                      # (plugin)
# MindSpeed-LLM sets its own list of features; the plugin stays in it, whichever of the two lines comes first.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

MODEL_ARGS=(
    --use-mcore-models --num-layers 8 --hidden-size 4096 --ffn-hidden-size 14336 --num-attention-heads 32
    --group-query-attention --num-query-groups 8 --seq-length 4096 --max-position-embeddings 32768
    --position-embedding-type rope --normalization RMSNorm --swiglu --disable-bias-linear
    --untie-embeddings-and-output-weights --make-vocab-size-divisible-by 1 --bf16
)
MOE_ARGS=(
    --num-experts 8 --moe-router-topk 2 --moe-router-load-balancing-type aux_loss --moe-aux-loss-coeff 0.02
    --moe-token-dispatcher-type alltoall --moe-grouped-gemm --moe-permute-fusion
    --mindspeed-moe-config "$(dirname "${BASH_SOURCE[0]}")/moe.yaml"    # (plugin)
)
PARALLEL_ARGS=(
    --tensor-model-parallel-size 1 --pipeline-model-parallel-size 1 --expert-model-parallel-size 8
    --use-distributed-optimizer --micro-batch-size 1 --global-batch-size 32
)
TRAIN_ARGS=(
    --train-iters 2000 --lr 1e-5 --min-lr 1e-7 --lr-decay-style cosine --weight-decay 0.01 --clip-grad 1.0
    --data-path "${DATA_PATH:?}" --tokenizer-type PretrainedFromHF --tokenizer-name-or-path "${TOKENIZER:?}"
    --distributed-backend nccl --log-interval 1
)
torchrun --nproc-per-node 8 pretrain_gpt.py \
    "${MODEL_ARGS[@]}" "${MOE_ARGS[@]}" "${PARALLEL_ARGS[@]}" "${TRAIN_ARGS[@]}" "$@"
