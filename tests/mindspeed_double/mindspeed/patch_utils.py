"""The patch manager: registered lazily, applied everywhere at once, removed almost everywhere."""

import importlib
import sys

from mindspeed import QUIRKS

if "broken" in QUIRKS:
    raise ImportError("libascend_something.so: cannot open shared object file")


class Patch:
    def __init__(self, path):
        self.orig_module_name, _, self.orig_func_name = path.rpartition(".")
        self.orig_module = self.orig_func = None
        self.patch_func = self.final_patch_func = None
        self.wrappers = []
        self.is_applied = False

    def set_patch_func(self, new, force=False):
        if getattr(new, "__name__", "").endswith(("wrapper", "decorator")):
            if new not in self.wrappers:
                self.wrappers.append(new)
        elif self.patch_func is not None and not force:
            raise RuntimeError(f"the patch of {self.orig_func_name} exist !")
        else:
            self.patch_func = new
        self.is_applied = False

    def apply_patch(self):
        if self.is_applied:
            return
        owner, standing = _find(self.orig_module_name, self.orig_func_name)
        if self.orig_module is None or "no_removal" in QUIRKS:
            self.orig_module, self.orig_func = owner, standing
        final = self.orig_func if self.patch_func is None else self.patch_func
        for wrapper in self.wrappers:
            final = wrapper(final)
        setattr(self.orig_module, self.orig_func_name, final)
        for module in list(sys.modules.values()):
            if getattr(module, self.orig_func_name, None) is standing:
                setattr(module, self.orig_func_name, final)
        self.final_patch_func, self.is_applied = final, True


def _find(owner, name):
    try:
        module = importlib.import_module(owner)
    except ModuleNotFoundError:
        parent, _, inner = owner.rpartition(".")
        holder = getattr(importlib.import_module(parent), inner)
        if not hasattr(holder, name):
            raise RuntimeError(f"no exist {name} of {holder}") from None
        return holder, getattr(holder, name)
    if not hasattr(module, name):
        setattr(module, name, None)
    return module, getattr(module, name)


class MindSpeedPatchesManager:
    patches_info = {}

    @staticmethod
    def register_patch(path, new_func=None, force_patch=False, create_dummy=False):
        entry = MindSpeedPatchesManager.patches_info.setdefault(path, Patch(path))
        entry.set_patch_func(new_func, force_patch)

    if "partless" not in QUIRKS:

        @staticmethod
        def apply_patches():
            for entry in MindSpeedPatchesManager.patches_info.values():
                entry.apply_patch()


def _remove(entry):
    for key, holder in list(sys.modules.items()):
        if "mindspeed" in key or key == "torch.classes":  # the latter has every attribute
            continue
        if isinstance(entry.orig_module, type) and "owner_kept" not in QUIRKS:
            holder = getattr(holder, entry.orig_module_name.rpartition(".")[2], holder)
        final = entry.final_patch_func
        if final is not None and getattr(holder, entry.orig_func_name, None) is final:
            setattr(holder, entry.orig_func_name, entry.orig_func)
    entry.patch_func = entry.final_patch_func = None
    entry.is_applied = False


def _remove_patches():
    for entry in MindSpeedPatchesManager.patches_info.values():
        entry.remove_patch()
        entry.wrappers.clear()


if "no_removal" not in QUIRKS:
    Patch.remove_patch = _remove
    MindSpeedPatchesManager.remove_patches = staticmethod(_remove_patches)
