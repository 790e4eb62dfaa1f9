"""What the MindSpeed on the path offers, found by looking at what is there, never by a branch's name or version.

And what has to be put around its managers, so that the plugin hears of what they do to its patches.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindspeed_moe.errors import MindSpeedError

# Importing one of these patches Megatron; the attribute says whether that has happened, where there is one.
ADAPTORS = {
    "mindspeed.megatron_adaptor": "_IS_FEATURES_PATCHED",
    "mindspeed.megatron_adaptor_deprecated": None,
    "mindspeed_llm.tasks.megatron_adaptor_v2": None,
}

# (module, name) of what a feature needs; read from the trees that docs/mindspeed-compatibility.md names
_PARTS = {
    "manager": ("mindspeed.patch_utils", "MindSpeedPatchesManager"),
    "features": ("mindspeed.features_manager.features_manager", "MindSpeedFeaturesManager"),
    "base": ("mindspeed.features_manager.feature", "MindSpeedFeature"),
}
_MANAGER_NEEDS = ("patches_info", "register_patch", "apply_patches")
_FEATURES_NEED = ("FEATURES_LIST", "set_features_list", "register_features_args")
_ENTRY_NEEDS = ("orig_module", "orig_func", "patch_func", "wrappers", "is_applied", "apply_patch")


@dataclass(frozen=True)
class Tree:
    """The parts of a MindSpeed: its patch manager, its features manager, the base class of its features.

    removes: whether its patches can be taken back, without which there is no `repatch` either; a tree that cannot
        (0.8, 0.10) looks for the original anew whenever a patch is touched, so that ours would be taken for it.
    """

    folder: str
    manager: Any
    features: Any
    base: type
    removes: bool


def adaptor_ran() -> bool:
    """Return whether MindSpeed's adaptor, or that of MindSpeed-LLM, has patched Megatron in this process."""
    for name, told_by in ADAPTORS.items():
        module = sys.modules.get(name)
        if module is None or getattr(module.__spec__, "_initializing", False):
            continue
        if told_by is None or getattr(module, told_by, True):
            return True
    return False


def load_tree() -> Tree:
    """Import the managers of the MindSpeed on the path; that patches nothing.

    Raises MindSpeedError naming what is missing or broken.
    """
    folder = _folder()
    parts = {role: _part(folder, *where) for role, where in _PARTS.items()}
    for role, names in (("manager", _MANAGER_NEEDS), ("features", _FEATURES_NEED)):
        for name in names:
            if not hasattr(parts[role], name):
                raise MindSpeedError(f"MindSpeed in {folder}: {parts[role].__name__} has no {name}; {_ADVICE}")
    module = sys.modules[_PARTS["manager"][0]]
    entry = getattr(module, "Patch", None) or _home_of_patch(parts["manager"])
    removes = hasattr(parts["manager"], "remove_patches") and hasattr(entry, "remove_patch")
    return Tree(folder, parts["manager"], parts["features"], parts["base"], removes)


def launch_arguments(tree: Tree) -> Any:
    """Return the arguments that MindSpeed itself goes by: Megatron's when they are there, else what it has parsed."""
    return _part(tree.folder, "mindspeed.args_utils", "get_full_args")()


def require_entry(tree: Tree, path: str) -> Any:
    """Return the manager's entry for a path, None when there is none; MindSpeedError when it is of another kind."""
    entry = tree.manager.patches_info.get(path)
    missing = [name for name in _ENTRY_NEEDS if entry is not None and not hasattr(entry, name)]
    if missing:
        raise MindSpeedError(f"MindSpeed in {tree.folder}: its entry for {path} has no {missing[0]}; {_ADVICE}")
    return entry


def keep_listed(features: Any, feature: Any) -> Callable[[], None]:
    """See to it that a list which is set anew (MindSpeed-LLM) still ends with our feature; returns what undoes that."""
    set_list = features.set_features_list

    @functools.wraps(set_list)
    def set_features_list(features_list: Any) -> None:
        set_list([one for one in features_list if one is not feature] + [feature])

    return _stand_in(features, "set_features_list", set_features_list)


def before(manager: Any, name: str, first: Callable[[], object]) -> Callable[[], None]:
    """Call `first` before a function of the manager's; returns what undoes that.

    Before it removes all patches, ours come out as a whole: it knows nothing of units, nor of wrappers around us.
    """
    function = getattr(manager, name)

    @functools.wraps(function)
    def preceded(*args: Any, **kwargs: Any) -> Any:
        first()
        return function(*args, **kwargs)

    return _stand_in(manager, name, preceded)


def _stand_in(owner: Any, name: str, function: Callable[..., Any]) -> Callable[[], None]:
    """Put a static function in the place of an owner's; returns what puts back what was there."""
    original = vars(owner).get(name)
    setattr(owner, name, staticmethod(function))

    def undo() -> None:
        if original is None:  # inherited
            delattr(owner, name)
        else:
            setattr(owner, name, original)

    return undo


_ADVICE = (
    "this tree is not known: use one of docs/mindspeed-compatibility.md, or set `mindspeed: off` or `on_conflict: skip`"
)


def _folder() -> str:
    try:
        spec = importlib.util.find_spec("mindspeed")
    except (ImportError, ValueError) as error:
        raise MindSpeedError(f"mindspeed cannot be found: {error}") from error
    if spec is None or spec.origin is None:
        raise MindSpeedError("mindspeed is not on the path")
    return str(Path(spec.origin).parent)


def _part(folder: str, module: str, name: str) -> Any:
    try:
        found = importlib.import_module(module)
    except Exception as error:  # whatever its dependencies raise while they load
        raise MindSpeedError(
            f"MindSpeed in {folder}: {module} cannot be imported ({type(error).__name__}: {error}); {_ADVICE}"
        ) from error
    try:
        return getattr(found, name)
    except AttributeError:
        raise MindSpeedError(f"MindSpeed in {folder}: {module} has no {name}; {_ADVICE}") from None


def _home_of_patch(manager: Any) -> Any:
    return getattr(sys.modules.get(manager.__module__), "Patch", None)
