#!/usr/bin/env bash
# The gate: lint, types, unit tests, parity, whole groups in one process, the ledger on the simulated npu, the report in a
# browser, on one stack: bash ci/test.sh [--stack NAME] [options of pytest]. Everything, on every stack: bash ci/full.sh.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
. "$ROOT/ci/steps.sh"

take_stack "$@"
OPTIONS=("${REST[@]}")
set_up
install_megatron "$MAIN"

# Two lanes, for two cores: most of these tests keep one busy. -m: the second lane is a process group, which ends as a
# whole when the first one is interrupted.
begin_part gate
SECOND="$TABLES/$STACK-gate-second-lane.log"
second_lane() {
    step_simulated "ledger" "$MAIN" "${LEDGER_TESTS[@]}"
    step "parity" "$MAIN" with_megatron "$MAIN" "${PARITY_TESTS[@]}"
    step "one process with megatron" "$MAIN" with_megatron "$MAIN" "${ONE_PROCESS_TESTS[@]}"
}
set -m
second_lane >"$SECOND" 2>&1 &
second=$!
set +m
trap 'kill -- "-$second" 2>/dev/null; echo "ci: the second lane was ended; it had come so far: $SECOND" >&2' EXIT
lint
step "unit" "" without_megatron tests/unit tests/oracle tests/one_process
step "contract" "$MAIN" with_megatron "$MAIN" "${CONTRACT_TESTS[@]}"
step "report in a browser" "" without_megatron tests/browser
wait "$second" || true
trap - EXIT
cat "$SECOND"
end_parts "$TABLE"
