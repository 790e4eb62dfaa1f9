#!/usr/bin/env bash
# MindSpeed-LLM, a DeepSeek-like model (fine-grained experts, shared experts, multi-latent attention) on 8 NPUs. In
# pretrain_gpt.py, under `import torch`:
#     from mindspeed_llm import megatron_adaptor
#     import mindspeed_moe.adaptor                                      # (plugin)
# MindSpeed-LLM's own script for such a model uses alltoall_seq with --moe-alltoall-overlap-comm; that flag, and
# --moe-fb-overlap, bring dispatchers of their own, which the plugin does not reach (`mindspeed-moe doctor -- ...` says so).
# Here alltoall takes their place.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

MODEL_ARGS=(
    --use-mcore-models --spec mindspeed_llm.tasks.models.spec.deepseek_spec layer_spec --shape-order BNSD
    --transformer-impl local --first-k-dense-replace 1 --qk-layernorm
    --num-layers 27 --hidden-size 2048 --ffn-hidden-size 10944 --num-attention-heads 16
    --seq-length 4096 --max-position-embeddings 163840 --position-embedding-type rope --normalization RMSNorm --swiglu
    --disable-bias-linear --untie-embeddings-and-output-weights --bf16
    --multi-latent-attention --kv-lora-rank 512 --qk-head-dim 128 --qk-pos-emb-head-dim 64 --v-head-dim 128
)
MOE_ARGS=(
    --num-experts 64 --moe-router-topk 6 --moe-ffn-hidden-size 1408 --moe-shared-expert-intermediate-size 2816
    --moe-router-load-balancing-type seq_aux_loss --moe-aux-loss-coeff 0.001 --moe-router-pre-softmax
    --moe-token-dispatcher-type alltoall --moe-grouped-gemm --moe-permute-fusion
    --moe-npu-preprocess                                                # (plugin)
)
PARALLEL_ARGS=(
    --tensor-model-parallel-size 1 --pipeline-model-parallel-size 1 --expert-model-parallel-size 8
    --use-distributed-optimizer --micro-batch-size 1 --global-batch-size 512
)
TRAIN_ARGS=(
    --train-iters 2000 --lr 1e-5 --min-lr 1e-7 --lr-decay-style cosine --weight-decay 0.01 --clip-grad 1.0
    --data-path "${DATA_PATH:?}" --tokenizer-type PretrainedFromHF --tokenizer-name-or-path "${TOKENIZER:?}"
    --distributed-backend nccl --log-interval 1
)
torchrun --nproc-per-node 8 pretrain_gpt.py \
    "${MODEL_ARGS[@]}" "${MOE_ARGS[@]}" "${PARALLEL_ARGS[@]}" "${TRAIN_ARGS[@]}" "$@"
