"""A launch in miniature: `python -m under_mindspeed.scenario STEP... -- ARGS...` prints what stands after each step.

One JSON object a step, or an `error` at which it ends. Steps are imports in some order, and what happens to a launch
that runs.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import Any

from under_mindspeed.owners import owners

TOKEN_DISPATCHER = "megatron.core.transformer.moe.token_dispatcher"


def standing() -> dict[str, Any]:
    """Whose code is at the two methods of the dispatcher, told by the code itself, and what the plugin says of it."""
    module = sys.modules.get(TOKEN_DISPATCHER)
    found: dict[str, Any] = {}
    if module is not None:
        dispatcher = module.MoEAlltoAllTokenDispatcher
        found["preprocess"] = _owners(vars(dispatcher)["preprocess"])
        found["beneath"], found["wrappers"] = _beneath(dispatcher), _wrappers(dispatcher.preprocess)
        layer = sys.modules.get("megatron.core.transformer.moe.moe_layer")
        if layer is not None:
            found["layer"] = layer.MoELayer.__module__.partition(".")[0]
            found["constructor"] = _owners(layer.MoELayer.__init__)
        if "_maybe_dtoh_and_synchronize" in vars(dispatcher):
            found["hook"] = _owners(vars(dispatcher)["_maybe_dtoh_and_synchronize"])
    legacy = sys.modules.get("megatron.core.transformer.moe.legacy_a2a_token_dispatcher")
    found["seq"] = _owners(legacy.MoEAlltoAllSEQTokenDispatcher.preprocess) if legacy is not None else None
    api = sys.modules.get("mindspeed_moe.api")
    plan = api.status() if api is not None else None
    if plan is not None:
        found["patches"] = sum(patch.state == "apply" and patch.unit == "alltoall" for patch in plan.patches)
        found["notes"] = list(plan.notes)
        found["implementation"] = plan.implementation("alltoall")
    found["listed"] = sum(
        feature.feature_name == "moe_npu_preprocess"
        for feature in getattr(
            sys.modules.get("mindspeed.features_manager.features_manager"), "MindSpeedFeaturesManager", Nothing
        ).FEATURES_LIST
    )
    return found


def _wrappers(function: Any) -> list[str]:
    """The packages of all functions that a function keeps, one within the other."""
    found = []
    while function is not None:
        found.append(function.__globals__["__name__"].partition(".")[0])
        kept = [cell.cell_contents for cell in function.__closure__ or ()]
        function = next((one for one in kept if hasattr(one, "__globals__")), None)
    return found


def _beneath(dispatcher: Any) -> list[str]:
    """Whose code ours passes on to, beneath somebody's wrapper; nothing while it works itself, or is not there."""
    if "mindspeed_moe.patching" not in sys.modules:
        return []
    switch = importlib.import_module("mindspeed_moe.patching.target").beneath(dispatcher.preprocess, dispatcher)
    return [] if switch is None or switch.to is None else _owners(switch.to)


class Nothing:
    FEATURES_LIST = ()


def _owners(function: Any) -> list[str]:
    return ["ours" if name == "mindspeed_moe" else name for name in owners(function)]


def _adaptor() -> None:
    importlib.import_module("mindspeed.megatron_adaptor")


def _quiet_adaptor() -> None:
    from mindspeed.deprecate import NoExecuteFunction

    with NoExecuteFunction():
        importlib.import_module("mindspeed.megatron_adaptor")


def _run_adaptor() -> None:
    import mindspeed.features_manager as features
    from mindspeed.megatron_adaptor import patch_features

    features.set_default_features_list()
    patch_features()


def _repatch(**changes: Any) -> None:
    from mindspeed.megatron_adaptor import repatch

    repatch(changes)


def _wipe() -> None:
    from mindspeed.features_manager import MindSpeedFeaturesManager, create_features_list

    MindSpeedFeaturesManager.set_features_list(create_features_list())


def _disable() -> None:
    importlib.import_module("mindspeed_moe").disable()


def _as_verl() -> None:
    """What verl does with examples/verl_override.yaml."""
    import yaml

    data = yaml.safe_load((Path(__file__).parents[2] / "examples/verl_override.yaml").read_text())
    _repatch(**data["actor_rollout_ref"]["actor"]["megatron"]["override_transformer_config"])


def _second_copy() -> None:
    """As when another folder's copy had been imported before: other modules, the same feature."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "mindspeed_moe"]:
        del sys.modules[name]
    importlib.import_module("mindspeed_moe.adaptor")


def _validate(args: Any) -> None:
    """What MindSpeed does with Megatron's Namespace, and again with every TransformerConfig."""
    from mindspeed.features_manager.features_manager import MindSpeedFeaturesManager

    MindSpeedFeaturesManager.validate_features_args(args)
    for feature in MindSpeedFeaturesManager.FEATURES_LIST:
        feature.pre_validate_args(args)
        feature.post_validate_args(args)


def _config() -> Any:
    from megatron.core.transformer.transformer_config import TransformerConfig

    sizes = {"num_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "num_moe_experts": 4}
    config = TransformerConfig(**sizes, add_bias_linear=False)  # which 0.12 asks for beside experts
    config.moe_npu_preprocess = None  # MindSpeed copies every argument onto it
    return config


def _typed() -> Any:
    from mindspeed.args_utils import get_full_args

    args = get_full_args()
    args.num_experts, args.moe_npu_preprocess = 4, None
    return args


def _try(step: str) -> None:
    try:
        STEPS[step]()
    except Exception as error:
        FAILED.append(f"{type(error).__name__}: {error}")


def _experts_decide() -> None:
    """As on an accelerator, where the layer's experts decide where their counts are left: MoELayer is patched too."""
    from dataclasses import replace

    planning = importlib.import_module("mindspeed_moe.planning")
    lookup = planning.lookup

    def with_choice(*arguments: Any) -> Any:
        decision = lookup(*arguments)
        return replace(decision, tokens_per_expert="auto") if decision.row is not None else decision

    planning.lookup = with_choice


def _user_replacement() -> None:
    """Somebody else's preprocess, which calls nothing of what stood there."""
    sys.modules[TOKEN_DISPATCHER].MoEAlltoAllTokenDispatcher.preprocess = lambda self, routing_map: None


def _remove() -> None:
    """Somebody takes all patches out through MindSpeed's manager, without a pass that tells features."""
    sys.modules["mindspeed.patch_utils"].MindSpeedPatchesManager.remove_patches()


def _user_patch() -> None:
    """Somebody else puts a wrapper around what stands there, around every manager."""
    dispatcher = sys.modules[TOKEN_DISPATCHER].MoEAlltoAllTokenDispatcher
    standing = dispatcher.preprocess

    def of_a_user(self: Any, routing_map: Any) -> Any:
        return standing(self, routing_map)

    dispatcher.preprocess = of_a_user


FAILED: list[str] = []
STEPS = {
    "adaptor": _adaptor,
    "quiet adaptor": _quiet_adaptor,
    "run adaptor": _run_adaptor,
    "managers": lambda: importlib.import_module("mindspeed.features_manager"),
    "llm": lambda: importlib.import_module("mindspeed_llm").megatron_adaptor,
    "megatron": lambda: importlib.import_module(TOKEN_DISPATCHER),
    "plugin": lambda: importlib.import_module("mindspeed_moe.adaptor"),
    "repatch": _repatch,
    "wipe": _wipe,
    "off": lambda: _repatch(moe_npu_preprocess=False),
    "on": lambda: _repatch(moe_npu_preprocess=True),
    "disable": _disable,
    "second copy": _second_copy,
    "verl": _as_verl,
    "try plugin": lambda: _try("plugin"),
    "validate namespace": lambda: _validate(_typed()),
    "validate config": lambda: _validate(_config()),
    "mindspore in the end": lambda: _validate(argparse.Namespace(**{**vars(_typed()), "ai_framework": "mindspore"})),
    "try bad file": lambda: _try("bad file"),
    "bad file": lambda: _repatch(mindspeed_moe_config="/nowhere.yaml"),
    "overlap off": lambda: _repatch(moe_alltoall_overlap_comm=False),
    "overlap on": lambda: _repatch(moe_alltoall_overlap_comm=True),
    "experts decide": _experts_decide,
    "user patch": _user_patch,
    "user replacement": _user_replacement,
    "remove": _remove,
    "try repatch": lambda: _try("repatch"),
    "enable beside": lambda: importlib.import_module("mindspeed_moe").enable({"mindspeed": "off", "device": "cpu"}),
    "enable": lambda: importlib.import_module("mindspeed_moe").enable(),
    "llm repatch": lambda: sys.modules["mindspeed_llm.tasks.megatron_adaptor_v2"].repatch({}),
}


def main() -> None:
    words = sys.argv[1:]
    steps, arguments = words[: words.index("--")], words[words.index("--") + 1 :]
    sys.argv[1:] = arguments
    for step in steps:
        try:
            STEPS[step]()
        except Exception as error:
            print(json.dumps({"step": step, "error": f"{type(error).__name__}: {error}"}), flush=True)
            return
        print(json.dumps({"step": step, "failed": " ".join(FAILED), **standing()}), flush=True)


if __name__ == "__main__":
    main()
