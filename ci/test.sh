#!/usr/bin/env bash
# Lint, types, and every test, with each megatron-core release in its own folder: bash ci/test.sh [options of pytest].
# With every release that is known, one after the other: bash ci/releases.sh.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

# Together they are the releases that the dispatch table calls tested on every run; a test compares.
ALL_TESTS_WITH="0.12.1 0.16.1"
ONCE_WITH=0.16.1 # of them, the one with which also those tests run that say the same with every release
CONTRACT_TESTS_WITH="0.10.0 0.19.0" # parity, attributes, contract, whole groups in one process
SIMULATED_WITH=0.16.1
LEDGER_TESTS_WITH="0.10.0 0.12.1 0.19.0" # on the simulated npu; with SIMULATED_WITH all tests do

make_environment test,lint

cd "$ROOT"
export TORCH_DEVICE_BACKEND_AUTOLOAD=0 OMP_NUM_THREADS=1

echo "== lint, format, types"
ruff check .
ruff format --check .
# mypy cannot follow an editable install that maps two folders to one package, so it reads a plain copy.
rm -rf build/typecheck
pip install --quiet --no-deps --no-build-isolation --target build/typecheck .
MYPYPATH=build/typecheck mypy -p mindspeed_moe

for release in $ALL_TESTS_WITH $CONTRACT_TESTS_WITH; do install_megatron "$release"; done
install_torch_npu
install_triton

PYTHONPATH="$(torch_npu_path)" python -m tests.ascend_sim --build

without_megatron() {
    echo "== tests without Megatron"
    python -m pytest -m "not megatron and not simulated and not slow" "$@"
}

with_megatron() {
    local release="$1" marked="megatron and not simulated and not slow"
    shift
    [ "$release" = "$ONCE_WITH" ] || marked+=" and not once"
    PYTHONPATH="$(megatron_path "$release")" python -m pytest -m "$marked" --require-megatron "$@"
}

simulated_with() {
    local release="$1"
    shift
    PYTHONPATH="$(torch_npu_path):$(megatron_path "$release")" python -m pytest \
        -m "simulated and not slow" --require-simulated --require-megatron "$@"
}

other_releases() {
    for release in $ALL_TESTS_WITH; do
        [ "$release" != "$ONCE_WITH" ] || continue
        echo "== tests with megatron-core $release"
        with_megatron "$release" "$@"
    done
    for release in $CONTRACT_TESTS_WITH; do
        echo "== tests of the contract with megatron-core $release"
        with_megatron "$release" "$@" "${PARITY_TESTS[@]}" "${ONE_PROCESS_TESTS[@]}" "${CONTRACT_TESTS[@]}"
    done
    for release in $LEDGER_TESTS_WITH; do
        echo "== ledger on the simulated Ascend runtime, megatron-core $release"
        simulated_with "$release" "$@" "${LEDGER_TESTS[@]}"
    done
    echo "== counts on the simulated Ascend runtime, megatron-core $SIMULATED_WITH"
    simulated_with "$SIMULATED_WITH" "$@" "${COUNTING_TESTS[@]}"
}

# Two lanes, for two cores: most of these tests keep one busy. -m: the second lane is a process group, which ends as a
# whole when the first one fails or is interrupted.
OTHERS=build/other-releases.log
set -m
other_releases "$@" >"$OTHERS" 2>&1 &
other=$!
set +m
trap 'kill -- "-$other" 2>/dev/null; echo "== the other releases were ended; they had come so far: $OTHERS" >&2' EXIT
without_megatron "$@"
echo "== tests with megatron-core $ONCE_WITH"
with_megatron "$ONCE_WITH" "$@"
wait "$other" && rc=0 || rc=$?
trap - EXIT
cat "$OTHERS"
[ "$rc" = 0 ] || exit "$rc"

# By themselves: they have times of their own to keep, such as how late a device is.
echo "== other tests on the simulated Ascend runtime, megatron-core $SIMULATED_WITH"
simulated_with "$SIMULATED_WITH" "$@" "${COUNTING_TESTS[@]/#/--ignore=}"
