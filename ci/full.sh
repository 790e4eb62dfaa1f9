#!/usr/bin/env bash
# Everything: bash ci/full.sh [--stack NAME] [--part NAME] [options of pytest]; without a name every stack, every part.
# `--list` prints the parts; a checkout of Megatron-LM is one too: the part of its release. A part takes at most an hour on two idle cores; at the end stands the table of all that ran,
# and each part leaves build/table/STACK-PART.jsonl, which `python ci/table.py show FILE...` joins.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
. "$ROOT/ci/steps.sh"

# One part a release of megatron-core, named by it: parity, whole groups, contract, ledger. What ran is recorded.
parts() {
    echo lint unit megatron $STACK_MEGATRON_CORE npu runtime slow soak
}

run_part() {
    begin_part "$1"
    case "$1" in
        lint) lint ;;
        unit) step "without megatron" "" without_megatron ;;
        megatron) step "all others" "$MAIN" with_megatron "$MAIN" "${OF_RELEASES[@]/#/--ignore=}" ;;
        npu) step_simulated "all others" "$MAIN" "${LEDGER_TESTS[@]/#/--ignore=}" --ignore=tests/ascend_sim ;;
        runtime) step_simulated "simulated Ascend runtime" "$MAIN" tests/ascend_sim ;;
        slow) slow --ignore=tests/soak ;;
        soak) slow tests/soak ;;
        *) release "$1" ;;
    esac
}

OF_RELEASES=("${PARITY_TESTS[@]}" "${ONE_PROCESS_TESTS[@]}" "${CONTRACT_TESTS[@]}")

release() {
    step "parity" "$1" with_megatron "$1" "${PARITY_TESTS[@]}"
    step "one process" "$1" with_megatron "$1" "${ONE_PROCESS_TESTS[@]}"
    step "contract" "$1" with_megatron "$1" "${CONTRACT_TESTS[@]}"
    step_simulated "ledger" "$1" "${LEDGER_TESTS[@]}"
    [ -n "$NO_TORCH_NPU" ] || [ ${#OPTIONS[@]} != 0 ] || step "record" "$1" record "$1"
}

record() {
    python ci/evidence.py "${1%-checkout}" "$TABLE"
}

slow() {
    step "slow, without megatron" "" _pytest -s -m "slow and not megatron and not simulated" "$@"
    step "slow, with megatron" "$MAIN" slow_with "$(megatron_path "$MAIN")" "slow and megatron and not simulated" "$@"
    [ -n "$NO_TORCH_NPU" ] || step "slow, simulated" "$MAIN" \
        slow_with "$(torch_npu_path):$(megatron_path "$MAIN")" "slow and simulated" --require-simulated "$@"
}

slow_with() {
    install_megatron "$MAIN"
    PYTHONPATH="$1" _pytest -s -m "$2" --require-megatron "${@:3}"
}

# run_stack NAME [PART...]: one that cannot be set up is a line of the table, and does not end the others.
run_stack() (
    use_stack "$1"
    shift
    begin_part set-up
    trap 'not_set_up $?' EXIT
    set_up
    trap - EXIT
    [ $# -gt 0 ] || set -- $(parts)
    for part in "$@"; do
        if [ -d "$part" ]; then
            link_megatron "$part"
            part="$LINKED"
        fi
        run_part "$part"
    done
)

has_part() {
    [[ " $(use_stack "$1" && parts) " == *" $2 "* ]]
}

not_set_up() {
    [ "$1" = "$NOT_HERE" ] && set -- leave "no CPU build of torch $STACK_TORCH" || set -- add 0 1 ""
    "$(command -v python || echo python3)" ci/table.py "$1" "$TABLE" "$PART" everything "" "${@:2}"
    exit 0 # the table says it
}

main() {
    stacks="" part=()
    while [ $# -gt 0 ]; do
        case "$1" in
            --stack) stacks="${2:?a name belongs to --stack}" && shift ;;
            --part) part=("${2:?a name belongs to --part}") && shift ;;
            --list) for stack in $(stacks_data names); do (use_stack "$stack" && echo "$stack: $(parts)"); done && exit ;;
            *) break ;;
        esac
        shift
    done
    OPTIONS=("$@")
    if [ -d "${part:-}/megatron" ]; then
        part=("$(cd "${part[0]}" && pwd)")
        [ -n "$stacks" ] || stacks="$(stacks_data for "$(stacks_data release "${part[0]}")")"
    elif [ ${#part[@]} != 0 ]; then
        for stack in ${stacks:-$(stacks_data names)}; do ! has_part "$stack" "$part" || having+=" $stack"; done
        stacks="${having:-}"
        [ -n "$stacks" ] || _fail "there is no part ${part[0]}; bash ci/full.sh --list prints them"
    fi
    cd "$ROOT"
    mkdir -p "$TABLES"
    TABLES_OF_RUN="$(mktemp)" # of this run alone: others may run beside it
    trap 'rm -f "$TABLES_OF_RUN"' EXIT
    for stack in ${stacks:-$(stacks_data names)}; do run_stack "$stack" "${part[@]}"; done
    mapfile -t tables < <(while read -r table; do [ ! -f "$table" ] || echo "$table"; done <"$TABLES_OF_RUN")
    end_parts "${tables[@]}"
}

# In one line: what somebody changes in this file meanwhile is not read.
main "$@"; exit
