"""Contract generations of Megatron's all-to-all dispatchers, as data. The one place that knows release numbers.

A generation is named after its contract: who copies the splits to the host and which method hosts the wait.
The facts were read from the releases' `megatron/core/transformer/moe/token_dispatcher.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from packaging.version import InvalidVersion, Version

from mindspeed_moe.errors import ContractError

TOKEN_DISPATCHER = "megatron.core.transformer.moe.token_dispatcher"
ALLTOALL = f"{TOKEN_DISPATCHER}.MoEAlltoAllTokenDispatcher"
LEGACY_MODULE = "megatron.core.transformer.moe.legacy_a2a_token_dispatcher"
LEGACY = f"{LEGACY_MODULE}.MoEAlltoAllSEQTokenDispatcher"


class Fact(NamedTuple):
    """Something that is true or false of a release, found by looking at what is about to be replaced.

    kind: attribute   `target` has the attribute `name`
          own         the attribute stands in the class's own __dict__
          parameter   the function `target` has a parameter `name`
          names       the code of the function `target` uses `name`
          module      a module called `name` can be found
    """

    kind: str
    name: str
    target: str = ALLTOALL

    def __str__(self) -> str:
        return {
            "attribute": f"{self.target} has {self.name!r}",
            "own": f"{self.target} itself defines {self.name!r}",
            "parameter": f"{self.target} has a parameter {self.name!r}",
            "names": f"{self.target} uses the name {self.name!r}",
            "module": f"there is a module {self.name}",
        }[self.kind]


INLINE_CPU_TABLE = Fact("names", "num_global_tokens_per_local_expert_cpu", f"{ALLTOALL}.preprocess")
HOST_COPY_HOOK = Fact("attribute", "_maybe_dtoh_and_synchronize")
STAGE_METHODS = Fact("attribute", "token_dispatch")
EVENT_IN_HOOK = Fact("names", "d2h_event", f"{ALLTOALL}._maybe_dtoh_and_synchronize")
CLASS_COPY_STREAM = Fact("own", "cuda_dtoh_stream")
GROUP_COLLECTION = Fact("parameter", "pg_collection", f"{ALLTOALL}.__init__")
GRAPH_ATTRIBUTES = Fact("names", "cudagraph_attrs", f"{ALLTOALL}.__init__")
NCCL_STREAM = Fact("names", "use_nccl_stream", f"{ALLTOALL}.token_dispatch")
LEGACY_DISPATCHER = Fact("module", LEGACY_MODULE)


HOOK = "hook"  # in a method of its own, which the plugin replaces
INLINE = "inline"  # by a line inside of its dispatching; the plugin's attributes wait for themselves


@dataclass(frozen=True)
class Generation:
    """One contract: the releases that keep it, what proves it, and what the adapter must know.

    releases: (major, minor) tuples.
    expected: fact -> whether it holds.
    adapter: HOOK or INLINE: how its all-to-all dispatcher waits for host values.
    attributes: its adapter, a class of a module in mindspeed_moe.preprocess.
    every_run, on_demand: the releases that the suite is run with, by `ci/test.sh` and by `ci/full.sh` alone.
    by_hand: those that no registry has, run from a checkout by `ci/full.sh --part CHECKOUT`.
    chunk_table: the attribute that holds tokens per (tp, ep) rank and local expert.
    unfolded_table: whether the table on the host keeps a dimension for each of TP and EP, [TP, EP, L], and is [E] on a
        rank without peers. Its transpose in combine then has other chunks where TP and EP are above 1: Megatron's own
        mistake, which tokens at wrong positions show.
    router_padding: the config flag under which the routing map is padded, so that the number of permuted rows
        depends on data; None where the generation has no router padding.
    permute_reads_rows: whether Megatron's own permutation reads the number of rows, not the fused one alone.
    """

    name: str
    contract: str
    releases: tuple[tuple[int, int], ...]
    expected: tuple[tuple[Fact, bool], ...]
    adapter: str
    attributes: str = "attributes.Attributes"
    every_run: tuple[str, ...] = ()
    on_demand: tuple[str, ...] = ()
    by_hand: tuple[str, ...] = ()
    chunk_table: str = "num_global_tokens_per_local_expert"
    unfolded_table: bool = False
    router_padding: str | None = None
    permute_reads_rows: bool = False

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(f'{major}.{minor}' for major, minor in self.releases)})"


def _facts(*true: Fact) -> tuple[tuple[Fact, bool], ...]:
    every = (
        INLINE_CPU_TABLE,
        HOST_COPY_HOOK,
        STAGE_METHODS,
        EVENT_IN_HOOK,
        CLASS_COPY_STREAM,
        GROUP_COLLECTION,
        GRAPH_ATTRIBUTES,
        NCCL_STREAM,
        LEGACY_DISPATCHER,
    )
    # A fact that a new generation brings says nothing about the older ones.
    return tuple((fact, fact in true) for fact in every) + tuple((fact, True) for fact in true if fact not in every)


GENERATIONS = (
    Generation(
        name="inline_copy_cpu_table",
        contract="preprocess copies to the host itself; the table is called ..._cpu; a stream wait follows later",
        releases=((0, 10),),
        adapter=INLINE,
        attributes="attributes_inline.InlineAttributes",
        on_demand=("0.10.0",),
        expected=_facts(INLINE_CPU_TABLE, LEGACY_DISPATCHER),
        chunk_table="num_global_tokens_per_local_expert_cpu",
    ),
    Generation(
        name="inline_copy",
        contract="preprocess copies to the host itself; a stream wait follows later",
        releases=((0, 11),),
        adapter=INLINE,
        attributes="attributes_inline.InlineAttributes",
        on_demand=("0.11.0",),
        expected=_facts(LEGACY_DISPATCHER),
        unfolded_table=True,
    ),
    Generation(
        name="hook_stream_wait",
        contract="_maybe_dtoh_and_synchronize copies, and waits for the whole copy stream",
        releases=((0, 12),),
        adapter=HOOK,
        every_run=("0.12.1",),
        on_demand=("0.12.0",),
        by_hand=("0.12.4",),
        expected=_facts(HOST_COPY_HOOK, LEGACY_DISPATCHER),
    ),
    Generation(
        name="hook_event_wait",
        contract="_maybe_dtoh_and_synchronize copies, and waits for an event; the layer calls six stages",
        releases=((0, 13), (0, 14), (0, 15)),
        adapter=HOOK,
        on_demand=("0.13.1", "0.14.0", "0.15.3"),
        # The class's stream (0.14) and pg_collection (0.15) came within this generation: they prove nothing about it.
        expected=tuple(
            (fact, holds)
            for fact, holds in _facts(HOST_COPY_HOOK, STAGE_METHODS, EVENT_IN_HOOK)
            if fact not in (CLASS_COPY_STREAM, GROUP_COLLECTION)
        ),
        router_padding="moe_router_padding_for_fp8",
    ),
    Generation(
        name="hook_event_wait_graphs",
        contract="like hook_event_wait; CUDA graphs may capture preprocess",
        releases=((0, 16), (0, 17)),
        adapter=HOOK,
        on_demand=("0.16.1", "0.17.1"),
        by_hand=("0.16.2",),
        expected=_facts(
            HOST_COPY_HOOK, STAGE_METHODS, EVENT_IN_HOOK, CLASS_COPY_STREAM, GROUP_COLLECTION, GRAPH_ATTRIBUTES
        ),
        router_padding="moe_router_padding_for_quantization",
    ),
    Generation(
        name="hook_event_wait_nccl_stream",
        contract="like hook_event_wait_graphs; the all-to-all may run on NCCL's own stream",
        releases=((0, 18), (0, 19), (0, 20)),
        adapter=HOOK,
        on_demand=("0.18.2", "0.19.0", "0.19.2"),
        expected=_facts(
            HOST_COPY_HOOK,
            STAGE_METHODS,
            EVENT_IN_HOOK,
            CLASS_COPY_STREAM,
            GROUP_COLLECTION,
            GRAPH_ATTRIBUTES,
            NCCL_STREAM,
        ),
        router_padding="moe_router_padding_for_quantization",
        permute_reads_rows=True,
    ),
)


def generation_named(name: str) -> Generation:
    """Return the generation of this name; StopIteration when there is none."""
    return next(one for one in GENERATIONS if one.name == name)


def names_of(*, adapter: str | None = None, legacy: bool | None = None) -> tuple[str, ...]:
    """Return the names of the generations with an adapter, and with or without the legacy dispatcher."""
    return tuple(
        one.name
        for one in GENERATIONS
        if adapter in (None, one.adapter) and legacy in (None, (LEGACY_DISPATCHER, True) in one.expected)
    )


HOOKED, INLINED, WITH_LEGACY = names_of(adapter=HOOK), names_of(adapter=INLINE), names_of(legacy=True)


def generation_of(version: str) -> Generation:
    """Return the generation that a megatron-core version string belongs to.

    A git hash or a pre-release tag in the version does not matter: the release tuple counts, and the probes
    prove the rest. Raises ContractError for a version that no generation names.
    """
    known = ", ".join(f"{major}.{minor}" for one in GENERATIONS for major, minor in one.releases)
    try:
        release = Version(version).release
    except InvalidVersion:
        raise ContractError(
            f"megatron-core calls itself {version!r}, which is no version; known releases: {known}"
        ) from None
    for generation in GENERATIONS:
        if release[:2] in generation.releases:
            return generation
    newest, oldest = GENERATIONS[-1].releases[-1], GENERATIONS[0].releases[0]
    age = "newer than" if release[:2] > newest else "older than" if release[:2] < oldest else "not among"
    raise ContractError(
        f"megatron-core {version} is {age} the releases whose contract is known ({known}); "
        f"use one of them, upgrade mindspeed-moe, or set `enabled: false`"
    )
