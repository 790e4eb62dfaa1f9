"""What MindSpeed's features, and a launch's own choices, do to the plugin: one table, as data.

Read from MindSpeed master (for megatron-core 0.12.1) and its branches core_r0.10.0, core_r0.14.0 to core_r0.18.0; what
was tried on which of them is in docs/mindspeed-compatibility.md. A row is for the releases of megatron-core whose
MindSpeed was read; a release without a row for a flag is not known to have it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from packaging.version import Version

from mindspeed_moe.mindspeed.arguments import is_set, same

COMPOSES = "composes"
WRAPS = "wraps ours"
TAKEN = "ours takes its place"
BYPASSED = "bypasses ours"
REFUSED = "refused"
FAILS = "fails in MindSpeed"
INEFFECTIVE = (BYPASSED, REFUSED, FAILS)

FIRST, LAST = (0, 10), (0, 19)


@dataclass(frozen=True)
class Conflict:
    """One row.

    feature: MindSpeed's name for it. when: (argument, value); True: it is set, False: it is not, a string: it is that.
    launch: a line that has it, for the reader and for the tests. effect: one of the words above.
    reason: why, in a sentence. releases: first and last megatron-core, both included.
    whole_launch: it is about what a launch leaves out, so that only a whole command line can tell.
    """

    feature: str
    when: tuple[tuple[str, Any], ...]
    launch: str
    effect: str
    reason: str
    releases: tuple[tuple[int, int], tuple[int, int]] = (FIRST, LAST)
    whole_launch: bool = False

    def applies(self, args: Mapping[str, Any], release: tuple[int, int]) -> bool:
        """Return whether a launch with these arguments and this megatron-core has it."""
        first, last = self.releases
        return first <= release <= last and all(same(args.get(name), value) for name, value in self.when)

    def span(self) -> str:
        """Return the releases as text."""
        first, last = (".".join(map(str, one)) for one in self.releases)
        return first if first == last else f"{first} to {last}"


@dataclass(frozen=True)
class Verdict:
    """A row that a launch hits."""

    conflict: Conflict

    @property
    def effect(self) -> str:
        """What it does to the plugin."""
        return self.conflict.effect

    def __str__(self) -> str:
        return f"{self.conflict.feature} {self._does()}: {self.conflict.reason}"

    def _does(self) -> str:
        words = {BYPASSED: "bypasses mindspeed_moe", REFUSED: "and mindspeed_moe exclude each other"}
        return words.get(self.effect, self.effect)


_A2A = ("moe_token_dispatcher_type", "alltoall")
_SEQ = ("moe_token_dispatcher_type", "alltoall_seq")
_TYPE = "--moe-token-dispatcher-type"
_MOE = "--num-experts 8"
_FUSED = ("moe_permute_fusion", True)
_GMM = ("moe_grouped_gemm", True)


def _at(*releases: str) -> tuple[tuple[int, int], tuple[int, int]]:
    first, last = (Version(one).release for one in (releases[0], releases[-1]))
    return (first[0], first[1]), (last[0], last[1])


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
        whole_launch=True,
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
        "moe-alltoall-overlap-comm",
        (("moe_alltoall_overlap_comm", True),),
        f"{_MOE} {_TYPE} alltoall --moe-grouped-gemm --moe-alltoall-overlap-comm",
        BYPASSED,
        "its layer has a dispatcher of its own whose class overrides preprocess",
        _at("0.12", "0.16"),
    ),
    Conflict(
        "moe-alltoall-overlap-comm",
        (("moe_alltoall_overlap_comm", True),),
        f"{_MOE} {_TYPE} alltoall --moe-alltoall-overlap-comm",
        FAILS,
        "MindSpeed's own modules for it import the legacy dispatcher, which Megatron no longer has: ImportError",
        _at("0.17", "0.18"),
    ),
    Conflict(
        "moe-fb-overlap",
        (("moe_fb_overlap", True),),
        f"{_MOE} {_TYPE} alltoall --moe-grouped-gemm --moe-fb-overlap",
        BYPASSED,
        "forward and backward overlap with a dispatcher of its own whose class overrides preprocess",
        _at("0.12", "0.16"),
    ),
    Conflict(
        "moe-fb-overlap",
        (("moe_fb_overlap", True),),
        f"{_MOE} {_TYPE} alltoall --moe-fb-overlap",
        FAILS,
        "MindSpeed's own modules for it import the legacy dispatcher, which Megatron no longer has: ImportError",
        _at("0.17", "0.18"),
    ),
    Conflict(
        "balanced-moe-experts",
        (("balanced_moe_experts", True),),
        f"{_MOE} {_TYPE} alltoall --moe-grouped-gemm --moe-fb-overlap --balanced-moe-experts",
        BYPASSED,
        "it chooses hot experts inside of a preprocess of its own",
        _at("0.12", "0.16"),
    ),
    Conflict(
        "moe-alltoall-mc2",
        (("moe_alltoall_mc2", True),),
        f"{_MOE} {_TYPE} alltoall --moe-grouped-gemm --moe-alltoall-mc2",
        BYPASSED,
        "its fused all-to-all kernels need counts by expert, which a preprocess of its own makes",
        _at("0.12", "0.12"),
    ),
    Conflict(
        "moe-alltoall-mc2",
        (("moe_alltoall_mc2", True),),
        f"{_MOE} {_TYPE} alltoall --moe-alltoall-mc2",
        FAILS,
        "MindSpeed's own modules for it import the legacy dispatcher, which Megatron no longer has: ImportError",
        _at("0.17", "0.18"),
    ),
    Conflict(
        "moe-tp-extend-ep",
        (("moe_tp_extend_ep", True), _SEQ),
        f"{_MOE} {_TYPE} alltoall_seq --moe-permutation-async-comm --moe-grouped-gemm --moe-tp-extend-ep",
        BYPASSED,
        "its dispatcher's class overrides preprocess; ExtendedPreprocess is offered to such a class (README)",
        _at("0.12", "0.16"),
    ),
    Conflict(
        "moe-tp-extend-ep",
        (("moe_tp_extend_ep", True), _A2A),
        f"{_MOE} {_TYPE} alltoall --moe-permutation-async-comm --moe-grouped-gemm --moe-tp-extend-ep",
        COMPOSES,
        "it changes only alltoall_seq; with alltoall the flag does nothing",
        _at("0.12", "0.16"),
    ),
    Conflict(
        "moe-allgather-overlap-comm",
        (("moe_allgather_overlap_comm", True),),
        f"{_MOE} {_TYPE} allgather --moe-allgather-overlap-comm",
        BYPASSED,
        "it is for the allgather dispatcher, which has no preprocess",
        _at("0.12", "0.16"),
    ),
    # ------------------------------------------------------------------ around the same dispatcher
    Conflict(
        "moe-permute-fusion, alltoall, with triton",
        (_FUSED, _A2A, ("triton", True)),
        f"{_MOE} {_TYPE} alltoall --moe-permute-fusion",
        WRAPS,
        "its sync wrapper calls ours and then lowers the sync point; the chunk table stays on the device",
        _at("0.12", "0.12"),
    ),
    Conflict(
        "moe-permute-fusion, alltoall, without triton",
        (_FUSED, _A2A, ("triton", False)),
        f"{_MOE} {_TYPE} alltoall --moe-permute-fusion",
        TAKEN,
        "its sync wrapper calls ours; its hook, which copies the chunk table to the host, gives way to ours, which has "
        "the table there already",
        _at("0.12", "0.12"),
    ),
    Conflict(
        "moe-permute-fusion, alltoall, with triton",
        (_FUSED, _A2A, ("triton", True)),
        f"{_MOE} {_TYPE} alltoall --moe-permute-fusion",
        COMPOSES,
        "fused permute and fused sorting of chunks read the number of rows and the chunk table as Megatron's do",
        _at("0.16", "0.16"),
    ),
    Conflict(
        "moe-permute-fusion, alltoall",
        (_FUSED, _A2A),
        f"{_MOE} {_TYPE} alltoall --moe-permute-fusion",
        TAKEN,
        "its sync wrapper calls ours; its hook, which copies the chunk table to the host, gives way to ours, which has "
        "the table there already",
        _at("0.14", "0.15"),
    ),
    Conflict(
        "moe-permute-fusion, alltoall, without triton",
        (_FUSED, _A2A, ("triton", False)),
        f"{_MOE} {_TYPE} alltoall --moe-permute-fusion",
        TAKEN,
        "its sync wrapper calls ours; its hook, which copies the chunk table to the host, gives way to ours, which has "
        "the table there already",
        _at("0.16", "0.16"),
    ),
    Conflict(
        "moe-permute-fusion",
        (_FUSED, _A2A),
        f"{_MOE} {_TYPE} alltoall --moe-permute-fusion",
        FAILS,
        "MindSpeed's wrapper of the dispatcher's constructor does not take pg_collection, which Megatron passes: "
        "TypeError when a layer is built, before any code of ours",
        _at("0.17", "0.18"),
    ),
    Conflict(
        "moe-permute-fusion, alltoall_seq",
        (_FUSED, _SEQ),
        f"{_MOE} {_TYPE} alltoall_seq --moe-permute-fusion",
        COMPOSES,
        "its own dispatching reads the same splits and the chunk table on the host, and waits where we let it",
        _at("0.12", "0.12"),
    ),
    Conflict(
        "moe-grouped-gemm, alltoall",
        (_GMM, _A2A),
        f"{_MOE} {_TYPE} alltoall --moe-grouped-gemm",
        COMPOSES,
        "its grouped matmul reads tokens per expert on the device, where ours leaves them for these experts",
        _at("0.12", "0.16"),
    ),
    Conflict(
        "moe-grouped-gemm, alltoall_seq",
        (_GMM, _SEQ),
        f"{_MOE} {_TYPE} alltoall_seq --moe-grouped-gemm",
        TAKEN,
        "it replaces preprocess to leave the counts on the device; ours does that too",
        _at("0.12", "0.12"),
    ),
    Conflict(
        "moe-grouped-gemm",
        (_GMM,),
        f"{_MOE} {_TYPE} alltoall --moe-grouped-gemm",
        FAILS,
        "MindSpeed's validation of arguments raises NotImplementedError for it",
        _at("0.18", "0.18"),
    ),
    Conflict(
        "preprocess of the deprecated adaptor",
        (("moe_permutation_async_comm", True),),
        f"{_MOE} {_TYPE} alltoall_seq --moe-permutation-async-comm",
        REFUSED,
        "with mindspeed.megatron_adaptor_deprecated a preprocess of MindSpeed's stands there, and `on_conflict` says "
        "whose is wanted; with mindspeed.megatron_adaptor the flag changes no preprocess",
        _at("0.10", "0.10"),
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
        _at("0.12", "0.18"),
    ),
    Conflict(
        "enable-expert-placement",
        (("enable_expert_placement", True),),
        f"{_MOE} {_TYPE} alltoall --enable-expert-placement",
        COMPOSES,
        "it works on the layer of moe-fb-overlap, which bypasses ours anyway",
        _at("0.12", "0.18"),
    ),
    Conflict(
        "moe-zero-memory",
        (("moe_zero_memory", "level0"),),
        f"{_MOE} {_TYPE} alltoall --moe-zero-memory level0",
        COMPOSES,
        "it changes what shared experts keep, not what is dispatched",
        _at("0.12", "0.18"),
    ),
    Conflict(
        "n-shared-experts",
        (("n_shared_experts", True),),
        f"{_MOE} {_TYPE} alltoall --n-shared-experts 1",
        COMPOSES,
        "another name for Megatron's shared experts, which take no part in dispatching",
        _at("0.12", "0.18"),
    ),
    Conflict(
        "fp8-format",
        (("fp8_format", True), _A2A),
        f"{_MOE} {_TYPE} alltoall --fp8-format hybrid",
        COMPOSES,
        "router padding for fp8 is a mode of ours; the spec that MindSpeed wraps for it is another one only with "
        "moe-fb-overlap",
        _at("0.12", "0.18"),
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
        "alone it changes no group; with --hccl-group-buffer-adaptive it does (see the groups)",
    ),
    Conflict(
        "hccl-group-buffer-adaptive",
        (("hccl_group_buffer_adaptive", True),),
        f"{_MOE} {_TYPE} alltoall --hccl-group-buffer-adaptive",
        COMPOSES,
        "its names for the expert groups are not Megatron's, so they keep HCCL_BUFFSIZE (see the groups)",
    ),
    Conflict(
        "disable-gloo-group",
        (("disable_gloo_group", True),),
        f"{_MOE} {_TYPE} alltoall --disable-gloo-group",
        COMPOSES,
        "no group of ours is a gloo group; ranks agree through the store of the group",
    ),
    Conflict(
        "ai-framework mindspore",
        (("ai_framework", "mindspore"),),
        f"{_MOE} {_TYPE} alltoall --ai-framework mindspore",
        REFUSED,
        "the plugin is written for torch",
    ),
)

# What Megatron takes where a launch says nothing.
_DEFAULTS = {"moe_token_dispatcher_type": "allgather"}


def verdicts(args: Mapping[str, Any], megatron: str | None, *, triton: bool | None = None) -> tuple[Verdict, ...]:
    """Return every row that a launch hits, refusals first.

    args: arguments by name, typed or not. megatron: version of megatron-core; None: the newest whose MindSpeed was
    read. triton: whether it can be imported; None: look.
    """
    release = Version(megatron).release[:2] if megatron else LAST
    known = {name: value for name, value in args.items() if value is not None}
    if is_set(known.get("use_fused_moe_token_permute_and_unpermute")):
        known["moe_permute_fusion"] = True
    seen = {**_DEFAULTS, **known, "triton": _has_triton() if triton is None else triton}
    hit = [Verdict(row) for row in CONFLICTS if row.applies(seen, (release[0], release[1]))]
    order = (REFUSED, FAILS, BYPASSED, TAKEN, WRAPS, COMPOSES)
    return tuple(sorted(hit, key=lambda verdict: order.index(verdict.effect)))


def _has_triton() -> bool:
    try:
        return importlib.util.find_spec("triton") is not None
    except (ImportError, ValueError):
        return False
