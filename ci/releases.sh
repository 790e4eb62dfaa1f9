#!/usr/bin/env bash
# The suite with one megatron-core release after the other: bash ci/releases.sh [RELEASE...], default: all.
#
# Per release: parity and attributes on the cpu, whole groups in one process, the ledger on the simulated npu. What ran
# goes to mindspeed_moe/evidence.json; output of pytest to build/releases/. Ends with 1 when a release failed.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

make_environment test,lint
install_torch_npu
cd "$ROOT"
export TORCH_DEVICE_BACKEND_AUTOLOAD=0 OMP_NUM_THREADS=1
[ $# -gt 0 ] || set -- $(python ci/evidence.py list)
known=" $(python ci/evidence.py list) "
for release in "$@"; do
    [[ "$known" == *" $release "* ]] || _fail "release $release is not one of:$known"
done
PYTHONPATH="$(torch_npu_path)" python -m tests.ascend_sim --build >/dev/null ||
    _fail "the simulated Ascend runtime cannot be built, see above"

mkdir -p build/releases
LOGS="$ROOT/build/releases"

# run NAME COMMAND...: output to a log of that name, whose end is shown on a failure.
run() {
    local log="$LOGS/$1.log"
    shift
    "$@" >"$log" 2>&1 || {
        tail -n 15 "$log" >&2
        echo "ci: the whole output is in build/releases/$(basename "$log")" >&2
        return 1
    }
}

run_release() {
    local release="$1" path wrong=0 out="$LOGS/$1"
    path="$(megatron_path "$release")"
    rm -f "$out"-*.json
    local tests=(python -m pytest -q -p no:cacheprovider --require-megatron)
    PYTHONPATH="$path" run "$release-cpu" "${tests[@]}" --outcomes "$out-cpu.json" \
        -m "megatron and not simulated and not slow" "${PARITY_TESTS[@]}" || wrong=1
    PYTHONPATH="$path" run "$release-one_process" "${tests[@]}" --outcomes "$out-one_process.json" \
        -m "megatron and not simulated and not slow" "${ONE_PROCESS_TESTS[@]}" || wrong=1
    path="$(torch_npu_path):$path"
    PYTHONPATH="$path" run "$release-npu" "${tests[@]}" --require-simulated --outcomes "$out-npu.json" \
        -m "simulated and not slow" "${LEDGER_TESTS[@]}" || wrong=1
    PYTHONPATH="$path" run "$release-ledgers" python -m tests.npu.evidence "$out-ledgers.json" || wrong=1
    # Locked, for another run may go on beside this one.
    flock "$LOGS/lock" python ci/evidence.py record "$release" "$TORCH_RELEASE" \
        "$out"-{cpu,one_process,npu,ledgers}.json || {
        echo "$release  failed, see above"
        wrong=1
    }
    return "$wrong"
}

# In a process of its own, so that one that cannot be installed does not end the others.
install_release() (
    install_megatron "$1"
    ! needs_triton "$1" || install_triton
)

failed=""
for release in "$@"; do
    { install_release "$release" && run_release "$release"; } || failed="$failed $release"
done
[ -z "$failed" ] || _fail "failed with:$failed"
