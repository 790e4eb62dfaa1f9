"""Packages, because two folders become one package: `patches/` is installed as `mindspeed_moe.patches`.

Everything else (metadata, tools) is declared in pyproject.toml.
"""

from setuptools import find_packages, setup

PATCHES = ["mindspeed_moe.patches"] + [f"mindspeed_moe.patches.{name}" for name in find_packages("patches")]

setup(
    packages=find_packages(include=["mindspeed_moe", "mindspeed_moe.*"]) + PATCHES,
    package_dir={"mindspeed_moe.patches": "patches"},
)
