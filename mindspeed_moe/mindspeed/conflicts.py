"""What MindSpeed's features, and a launch's own choices, do to the plugin: one table, as data.

Read from MindSpeed master (for megatron-core 0.12.1) and its branches core_r0.10.0, core_r0.14.0 to core_r0.18.0; what
was tried on which of them is in docs/mindspeed-compatibility.md. A row is for the releases of megatron-core whose
MindSpeed was read; a release without a row for a flag is not known to have it.
"""

from __future__ import annotations

from mindspeed_moe.mindspeed.conflict import BYPASSED, COMPOSES, FAILS, REFUSED, TAKEN, WRAPS, Conflict, between

_A2A = ("moe_token_dispatcher_type", "alltoall")
_SEQ = ("moe_token_dispatcher_type", "alltoall_seq")
_TYPE = "--moe-token-dispatcher-type"
_MOE = "--num-experts 8"
_FUSED = ("moe_permute_fusion", True)
_GMM = ("moe_grouped_gemm", True)
_NO_LEGACY = "MindSpeed's own modules for it import the legacy dispatcher, which Megatron no longer has: ImportError"
_HOOK_GIVES_WAY = (
    "its sync wrapper calls ours; its hook, which copies the chunk table to the host, gives way to ours, which has the "
    "table there already"
)

CONFLICTS = (
    # ------------------------------------------------------------------ is there anything to do at all
    Conflict(
        "no MoE layers",
        (("num_experts", False),),
        "--num-layers 4",
        BYPASSED,
        "without --num-experts the model has no token dispatcher",
        whole_launch=True,
    ),
    Conflict(
        "allgather dispatcher",
        (("num_experts", True), ("moe_token_dispatcher_type", "allgather")),
        f"{_MOE} {_TYPE} allgather",
        BYPASSED,
        f"it has no preprocess; it is Megatron's default: ask for {_TYPE} alltoall",
    ),
    Conflict(
        "alltoall_seq dispatcher",
        (("num_experts", True), _SEQ),
        f"{_MOE} {_TYPE} alltoall_seq",
        FAILS,
        "Megatron has no such dispatcher from 0.13 on",
        between("0.13", "0.20"),
    ),
    Conflict(
        "flex dispatcher",
        (("num_experts", True), ("moe_token_dispatcher_type", "flex")),
        f"{_MOE} {_TYPE} flex",
        BYPASSED,
        "its tokens travel by DeepEP or HybridEP, which exchange counts themselves",
    ),
    # ------------------------------------------------------------------ other dispatchers of MindSpeed's
    Conflict(
        "moe-alltoall-overlap-comm, alltoall",
        (("moe_alltoall_overlap_comm", True), _A2A),
        f"{_MOE} {_TYPE} alltoall --moe-grouped-gemm --moe-alltoall-overlap-comm",
        BYPASSED,
        "its layer has a dispatcher of its own whose class overrides preprocess",
        between("0.10", "0.16"),
    ),
    Conflict(
        "moe-alltoall-overlap-comm, moe-tp-extend-ep",
        (("moe_alltoall_overlap_comm", True), _A2A, ("moe_tp_extend_ep", True)),
        f"{_MOE} {_TYPE} alltoall --moe-grouped-gemm --moe-alltoall-overlap-comm --moe-tp-extend-ep",
        FAILS,
        "MindSpeed's validation of arguments ends it with an AssertionError",
        between("0.12", "0.12"),
    ),
    Conflict(
        "moe-alltoall-overlap-comm, alltoall_seq",
        (("moe_alltoall_overlap_comm", True), _SEQ),
        f"{_MOE} {_TYPE} alltoall_seq --moe-permutation-async-comm --moe-grouped-gemm --moe-alltoall-overlap-comm",
        BYPASSED,
        "its dispatcher asks Megatron's preprocess and reads a table on the device that only that leaves: alltoall_seq "
        "stays stock",
        between("0.10", "0.12"),
        leaves=("alltoall_seq",),
    ),
    Conflict(
        "moe-alltoall-overlap-comm",
        (("moe_alltoall_overlap_comm", True),),
        f"{_MOE} {_TYPE} alltoall --moe-alltoall-overlap-comm",
        FAILS,
        _NO_LEGACY,
        between("0.17", "0.18"),
    ),
    Conflict(
        "moe-fb-overlap",
        (("moe_fb_overlap", True),),
        f"{_MOE} {_TYPE} alltoall --moe-grouped-gemm --moe-fb-overlap",
        BYPASSED,
        "forward and backward overlap with a dispatcher of its own whose class overrides preprocess",
        between("0.12", "0.16"),
    ),
    Conflict(
        "moe-fb-overlap",
        (("moe_fb_overlap", True),),
        f"{_MOE} {_TYPE} alltoall --moe-fb-overlap",
        FAILS,
        _NO_LEGACY,
        between("0.17", "0.18"),
    ),
    Conflict(
        "balanced-moe-experts",
        (("balanced_moe_experts", True),),
        f"{_MOE} {_TYPE} alltoall --moe-grouped-gemm --moe-fb-overlap --balanced-moe-experts",
        BYPASSED,
        "it chooses hot experts inside of a preprocess of its own",
        between("0.12", "0.16"),
    ),
    Conflict(
        "moe-alltoall-mc2",
        (("moe_alltoall_mc2", True),),
        f"{_MOE} {_TYPE} alltoall --moe-grouped-gemm --moe-alltoall-mc2",
        BYPASSED,
        "its fused all-to-all kernels need counts by expert, which a preprocess of its own makes",
        between("0.12", "0.12"),
    ),
    Conflict(
        "moe-alltoall-mc2",
        (("moe_alltoall_mc2", True),),
        f"{_MOE} {_TYPE} alltoall --moe-alltoall-mc2",
        FAILS,
        _NO_LEGACY,
        between("0.17", "0.18"),
    ),
    Conflict(
        "moe-tp-extend-ep",
        (("moe_tp_extend_ep", True), _SEQ),
        f"{_MOE} {_TYPE} alltoall_seq --moe-permutation-async-comm --moe-grouped-gemm --moe-tp-extend-ep",
        BYPASSED,
        "its dispatcher's class overrides preprocess; ExtendedPreprocess is offered to such a class (README)",
        between("0.10", "0.16"),
    ),
    Conflict(
        "moe-tp-extend-ep",
        (("moe_tp_extend_ep", True), _A2A),
        f"{_MOE} {_TYPE} alltoall --moe-permutation-async-comm --moe-grouped-gemm --moe-tp-extend-ep",
        COMPOSES,
        "it changes only alltoall_seq; with alltoall the flag does nothing",
        between("0.10", "0.16"),
    ),
    Conflict(
        "moe-tp-extend-ep",
        (("moe_tp_extend_ep", True),),
        f"{_MOE} {_TYPE} alltoall --moe-tp-extend-ep",
        FAILS,
        _NO_LEGACY,
        between("0.17", "0.18"),
    ),
    Conflict(
        "moe-allgather-overlap-comm",
        (("moe_allgather_overlap_comm", True),),
        f"{_MOE} {_TYPE} allgather --moe-allgather-overlap-comm",
        BYPASSED,
        "it is for the allgather dispatcher, which has no preprocess",
        between("0.10", "0.16"),
    ),
    # ------------------------------------------------------------------ around the same dispatcher
    Conflict(
        "moe-permute-fusion, alltoall, with triton",
        (_FUSED, _A2A, ("triton", True)),
        f"{_MOE} {_TYPE} alltoall --moe-permute-fusion",
        WRAPS,
        "its sync wrapper calls ours and then lowers the sync point; the chunk table stays on the device",
        between("0.12", "0.12"),
    ),
    Conflict(
        "moe-permute-fusion, alltoall, without triton",
        (_FUSED, _A2A, ("triton", False)),
        f"{_MOE} {_TYPE} alltoall --moe-permute-fusion",
        TAKEN,
        _HOOK_GIVES_WAY,
        between("0.12", "0.12"),
    ),
    Conflict(
        "moe-permute-fusion, alltoall, with triton",
        (_FUSED, _A2A, ("triton", True)),
        f"{_MOE} {_TYPE} alltoall --moe-permute-fusion",
        COMPOSES,
        "fused permute and fused sorting of chunks read the number of rows and the chunk table as Megatron's do",
        between("0.16", "0.16"),
    ),
    Conflict(
        "moe-permute-fusion, alltoall",
        (_FUSED, _A2A),
        f"{_MOE} {_TYPE} alltoall --moe-permute-fusion",
        TAKEN,
        _HOOK_GIVES_WAY,
        between("0.14", "0.15"),
    ),
    Conflict(
        "moe-permute-fusion, alltoall, without triton",
        (_FUSED, _A2A, ("triton", False)),
        f"{_MOE} {_TYPE} alltoall --moe-permute-fusion",
        TAKEN,
        _HOOK_GIVES_WAY,
        between("0.16", "0.16"),
    ),
    Conflict(
        "moe-permute-fusion",
        (_FUSED, _A2A),
        f"{_MOE} {_TYPE} alltoall --moe-permute-fusion",
        FAILS,
        "MindSpeed's wrapper of the dispatcher's constructor does not take pg_collection, which Megatron passes: "
        "TypeError when a layer is built, before any code of ours",
        between("0.17", "0.18"),
    ),
    Conflict(
        "moe-permute-fusion, alltoall_seq",
        (_FUSED, _SEQ),
        f"{_MOE} {_TYPE} alltoall_seq --moe-permute-fusion",
        COMPOSES,
        "its own dispatching reads the same splits and the chunk table on the host, and waits where we let it",
        between("0.12", "0.12"),
    ),
    Conflict(
        "moe-grouped-gemm, alltoall",
        (_GMM, _A2A),
        f"{_MOE} {_TYPE} alltoall --moe-grouped-gemm",
        COMPOSES,
        "its grouped matmul reads tokens per expert on the device, where ours leaves them for these experts",
        between("0.12", "0.12"),
    ),
    Conflict(
        "moe-grouped-gemm, alltoall",
        (_GMM, _A2A),
        f"{_MOE} {_TYPE} alltoall --moe-grouped-gemm",
        FAILS,
        "MindSpeed's experts do not take model_comm_pgs, which Megatron passes: TypeError when a layer is built",
        between("0.14", "0.14"),
    ),
    Conflict(
        "moe-grouped-gemm, alltoall",
        (_GMM, _A2A),
        f"{_MOE} {_TYPE} alltoall --moe-grouped-gemm",
        COMPOSES,
        "its grouped matmul reads tokens per expert on the device, where ours leaves them for these experts",
        between("0.15", "0.16"),
    ),
    Conflict(
        "moe-grouped-gemm, alltoall_seq",
        (_GMM, _SEQ),
        f"{_MOE} {_TYPE} alltoall_seq --moe-grouped-gemm",
        TAKEN,
        "it replaces preprocess to leave the counts on the device; ours does that too",
        between("0.12", "0.12"),
    ),
    Conflict(
        "moe-grouped-gemm",
        (_GMM,),
        f"{_MOE} {_TYPE} alltoall --moe-grouped-gemm",
        FAILS,
        "MindSpeed's validation of arguments raises NotImplementedError for it",
        between("0.18", "0.18"),
    ),
    Conflict(
        "moe-npu-fast-ops",
        (("moe_npu_fast_ops", True), _A2A),
        f"{_MOE} {_TYPE} alltoall --moe-npu-fast-ops",
        COMPOSES,
        "it replaces permute and unpermute; a permute that is not Megatron's finds the number of rows",
    ),
    Conflict(
        "fix-router",
        (("fix_router", True),),
        f"{_MOE} {_TYPE} alltoall --fix-router",
        COMPOSES,
        "it changes which experts are chosen, before the routing map is there",
        between("0.12", "0.18"),
    ),
    Conflict(
        "enable-expert-placement",
        (("enable_expert_placement", True),),
        f"{_MOE} {_TYPE} alltoall --enable-expert-placement",
        COMPOSES,
        "alone it changes no dispatcher: it works on the layer of moe-fb-overlap, which bypasses ours",
        between("0.12", "0.18"),
    ),
    Conflict(
        "moe-zero-memory",
        (("moe_zero_memory", "level0"),),
        f"{_MOE} {_TYPE} alltoall --moe-zero-memory level0",
        COMPOSES,
        "it changes what shared experts keep, not what is dispatched",
        between("0.12", "0.18"),
    ),
    Conflict(
        "n-shared-experts",
        (("n_shared_experts", True),),
        f"{_MOE} {_TYPE} alltoall --n-shared-experts 1",
        COMPOSES,
        "another name for Megatron's shared experts, which take no part in dispatching",
        between("0.12", "0.18"),
    ),
    Conflict(
        "fp8-format",
        (("fp8_format", True), _A2A),
        f"{_MOE} {_TYPE} alltoall --fp8-format hybrid",
        COMPOSES,
        "router padding for fp8 is a mode of ours; the spec that MindSpeed wraps for it is another one only with "
        "moe-fb-overlap",
        between("0.12", "0.18"),
    ),
    Conflict(
        "overlap-moe-expert-parallel-comm",
        (("overlap_moe_expert_parallel_comm", True), _A2A),
        f"{_MOE} {_TYPE} alltoall --overlap-moe-expert-parallel-comm",
        COMPOSES,
        "Megatron's own overlap calls the same stages; counts then travel on the TPxEP group (exchange_group: auto)",
    ),
    # ------------------------------------------------------------------ groups and the whole launch
    Conflict(
        "hccl-group-buffer",
        (("hccl_group_buffer", True),),
        f"{_MOE} {_TYPE} alltoall --hccl-group-buffer ep:200",
        COMPOSES,
        "alone it changes no group; with --hccl-group-buffer-adaptive it does (see the groups). Trees for 0.10, 0.14, "
        "0.15, and 2.x and 26.0 for 0.12, do not know the names ep and tp_ep_mp: they end the launch with an error",
        between("0.10", "0.18"),
    ),
    Conflict(
        "hccl-group-buffer-adaptive",
        (("hccl_group_buffer_adaptive", True),),
        f"{_MOE} {_TYPE} alltoall --hccl-group-buffer-adaptive",
        COMPOSES,
        "its names for the expert groups are not Megatron's, so they keep HCCL_BUFFSIZE (see the groups)",
        between("0.10", "0.18"),
    ),
    Conflict(
        "disable-gloo-group",
        (("disable_gloo_group", True),),
        f"{_MOE} {_TYPE} alltoall --disable-gloo-group",
        COMPOSES,
        "no group of ours is a gloo group; ranks agree through the store of the group",
        between("0.10", "0.18"),
    ),
    Conflict(
        "ai-framework mindspore",
        (("ai_framework", "mindspore"),),
        f"{_MOE} {_TYPE} alltoall --ai-framework mindspore",
        REFUSED,
        "the plugin is written for torch",
        between("0.10", "0.18"),
    ),
)
