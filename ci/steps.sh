# The steps of ci/test.sh and ci/full.sh, and their table; sourced after setup.sh. A step that fails ends no other one.
#
#   set_up                      the stack's environment, torch_npu and simulated runtime
#   begin_part NAME             the steps that follow belong to it; their table is build/table/STACK-NAME.jsonl
#   step WHAT RELEASE COMMAND   runs a command; RELEASE of megatron-core or ""
#   step_simulated WHAT RELEASE ARGUMENTS_OF_PYTEST   on the simulated npu, or a line that says why not
#   without_megatron, with_megatron RELEASE, simulated_with RELEASE ... ARGUMENTS_OF_PYTEST   are commands for step

TABLES="$ROOT/build/table"
OPTIONS=() # of pytest, the caller's

set_up() {
    make_environment test,lint
    MAIN="${STACK_MEGATRON_CORE%% *}"
    install_torch_npu || true
    cd "$ROOT"
    export TORCH_DEVICE_BACKEND_AUTOLOAD=0 OMP_NUM_THREADS=1
    mkdir -p "$TABLES"
    [ -n "$NO_TORCH_NPU" ] || PYTHONPATH="$(torch_npu_path)" python -m tests.ascend_sim --build ||
        _fail "the simulated Ascend runtime cannot be built, see above"
}

begin_part() {
    PART="$1" TABLE="$TABLES/$STACK-$1.jsonl"
    export STACK STACK_TORCH_NPU # the table names them
    rm -f "$TABLE"
    [ -z "${TABLES_OF_RUN:-}" ] || echo "$TABLE" >>"$TABLES_OF_RUN"
}

step() {
    local what="$1" release="$2" begin="$SECONDS" code=0
    shift 2
    echo "== $STACK, $PART: $what${release:+, megatron-core $release}"
    rm -f "$(outcomes_of "$what")"
    (OUTCOMES="$(outcomes_of "$what")" && "$@") || code=$?
    python ci/table.py add "$TABLE" "$PART" "$what" "$release" "$((SECONDS - begin))" "$code" "$(outcomes_of "$what")"
}

outcomes_of() {
    echo "$TABLES/$STACK-$PART-${1// /_}.xml"
}

step_simulated() {
    if [ -n "$NO_TORCH_NPU" ]; then
        python ci/table.py leave "$TABLE" "$PART" "$1" "$2" "$NO_TORCH_NPU"
    else
        step "$1" "$2" simulated_with "${@:2}"
    fi
}

_pytest() {
    local code=0
    python -m pytest --junitxml "$OUTCOMES" --durations=10 --durations-min=5 "$@" "${OPTIONS[@]}" || code=$?
    # A choice of the caller's may leave nothing of a step.
    [ "$code" != 5 ] || [ ${#OPTIONS[@]} = 0 ] || code=0
    return "$code"
}

without_megatron() {
    _pytest -m "not megatron and not simulated and not slow" "$@"
}

with_megatron() {
    local release="$1"
    shift
    install_megatron "$release"
    PYTHONPATH="$(megatron_path "$release")" _pytest -m "megatron and not simulated and not slow" --require-megatron "$@"
}

simulated_with() {
    local release="$1"
    shift
    install_megatron "$release"
    PYTHONPATH="$(torch_npu_path):$(megatron_path "$release")" \
        _pytest -m "simulated and not slow" --require-simulated --require-megatron "$@"
}

lint() {
    step "lint" "" ruff check .
    step "format" "" ruff format --check .
    step "types" "" types
}

# mypy cannot follow an editable install that maps two folders to one package, so it reads a plain copy.
types() {
    rm -rf build/typecheck
    pip install --quiet --no-deps --no-build-isolation --target build/typecheck . &&
        MYPYPATH=build/typecheck mypy -p mindspeed_moe
}

# A table without a failure, or 1.
end_parts() {
    echo
    python ci/table.py show "$@"
}
