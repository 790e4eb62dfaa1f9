#!/usr/bin/env bash
# Lint, types, and every test, with each megatron-core release in its own folder: bash ci/test.sh [options of pytest].
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

RELEASES="0.12.1 0.16.1"

make_environment test,lint
for release in $RELEASES; do install_megatron "$release"; done
install_torch_npu

cd "$ROOT"
export TORCH_DEVICE_BACKEND_AUTOLOAD=0 OMP_NUM_THREADS=1

echo "== lint, format, types"
ruff check .
ruff format --check .
# mypy cannot follow an editable install that maps two folders to one package, so it reads a plain copy.
rm -rf build/typecheck
pip install --quiet --no-deps --no-build-isolation --target build/typecheck .
MYPYPATH=build/typecheck mypy -p mindspeed_moe

echo "== tests without Megatron"
python -m pytest -m "not megatron and not simulated and not slow" "$@"
for release in $RELEASES; do
    echo "== tests with megatron-core $release"
    PYTHONPATH="$ROOT/.megatron/$release" python -m pytest -m "megatron and not simulated and not slow" --require-megatron "$@"
done

echo "== tests on the simulated Ascend runtime"
export PYTHONPATH="$ROOT/.torch_npu/$TORCH_RELEASE:$ROOT/.megatron/0.16.1"
python -m tests.ascend_sim --build
python -m pytest -m "simulated and not slow" --require-simulated --require-megatron "$@"
