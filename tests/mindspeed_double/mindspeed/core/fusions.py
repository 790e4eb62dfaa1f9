"""Fused permute, as far as a dispatcher can tell: plain torch, which gives what Megatron's own gives."""

import functools

import torch
from megatron.core.transformer.moe import moe_utils

# Held at module level, as MindSpeed does: modules of its name are left out when patches are removed.
from megatron.core.transformer.moe.moe_utils import permute as megatron_permute
from megatron.core.transformer.moe.moe_utils import unpermute as megatron_unpermute

layers_seen = 0


def seen_wrapper(forward):
    @functools.wraps(forward)
    def wrapper(*args, **kwargs):
        global layers_seen
        layers_seen += 1
        return forward(*args, **kwargs)

    return wrapper


def permute(tokens, routing_map, probs=None, num_out_tokens=None, fused=False, drop_and_pad=False):
    assert num_out_tokens is not None, "the kernel allocates by the number of rows"
    return megatron_permute(
        tokens, routing_map, probs=probs, num_out_tokens=int(num_out_tokens), fused=False, drop_and_pad=drop_and_pad
    )


def unpermute(permuted_tokens, sorted_indices, restore_shape, probs=None, routing_map=None, fused=False, **more):
    return megatron_unpermute(
        permuted_tokens, sorted_indices, restore_shape, probs=probs, routing_map=routing_map, fused=False, **more
    )


def sort_chunks_wrapper(sort):
    @functools.wraps(sort)
    def wrapper(input, split_sizes, sorted_idxs, probs=None, fused=False):
        assert split_sizes.device.type == "cpu", "chunks are sorted on the host"
        return sort(input, split_sizes, sorted_idxs, probs=probs, fused=False)

    return wrapper


def _sort_on_host(dispatcher):
    dispatcher.permute_idx_device = None
    indices = torch.arange(dispatcher.num_experts * dispatcher.tp_size)
    local = dispatcher.num_local_experts
    dispatcher.sort_input_by_local_experts = indices.reshape(-1, local).T.ravel()
    dispatcher.restore_output_by_local_experts = indices.reshape(local, -1).T.ravel()


def init_wrapper(init):
    @functools.wraps(init)
    def wrapper(self, *args, **kwargs):
        init(self, *args, **kwargs)
        _sort_on_host(self)

    return wrapper


def narrow_init_wrapper(init):
    @functools.wraps(init)
    def wrapper(self, num_local_experts, local_expert_indices, config):
        init(self, num_local_experts, local_expert_indices, config)
        _sort_on_host(self)

    return wrapper


def maybe_dtoh_and_synchronize(self, point, tokens_per_expert=None):
    if not self.drop_and_pad and point == self.cuda_dtoh_point:
        for name in ("input_splits", "output_splits", "output_splits_tp"):
            value = getattr(self, name)
            setattr(self, name, moe_utils.maybe_move_tensor_to_cpu(value, as_numpy=True))
        self.num_out_tokens = moe_utils.maybe_move_tensor_to_cpu(self.num_out_tokens)
        if self.num_local_experts > 1:
            table = self.num_global_tokens_per_local_expert
            self.num_global_tokens_per_local_expert = moe_utils.maybe_move_tensor_to_cpu(table)
    return tokens_per_expert


def preprocess_sync_wrapper(preprocess):
    @functools.wraps(preprocess)
    def wrapper(self, routing_map):
        counts = preprocess(self, routing_map)
        if self.num_local_experts > 1 and self.config.moe_permute_fusion:
            self._maybe_update_cuda_sync_point("before_permutation_2")
        return counts

    return wrapper
