# Set-up shared by the scripts of this folder; sourced, not run.
#
#   make_environment EXTRAS     .venv with torch and this project, e.g. `make_environment plot`; activates it
#   install_megatron RELEASE    .megatron/RELEASE with megatron-core of that release and nothing else
#   install_torch_npu           .torch_npu/RELEASE with the torch-npu that fits, for the simulated Ascend runtime
#   install_triton              .megatron/triton-RELEASE, for the releases of Megatron that needs_triton names
#   megatron_path RELEASE       prints what PYTHONPATH needs for a release; torch_npu_path the same for torch_npu
#
# All do nothing, quickly, when everything is there. PYTHON names another interpreter than `python3`.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
TORCH_RELEASE=2.13.0
TRITON_RELEASE=3.9.0

# What runs with every release, wherever all the tests would take too long.
PARITY_TESTS=(tests/distributed/test_parity.py tests/distributed/test_attributes.py tests/distributed/test_modes.py)
ONE_PROCESS_TESTS=(tests/one_process)
CONTRACT_TESTS=(tests/unit/test_megatron_patches.py tests/unit/test_probes.py tests/unit/test_requirements.py)
LEDGER_TESTS=(tests/npu/test_cost.py)
COUNTING_TESTS=("${LEDGER_TESTS[@]}" tests/npu/test_communicators.py tests/npu/test_table.py) # no times of their own

_fail() {
    echo "ci: $*" >&2
    exit 1
}

# Every input of the installation, so that a change of one installs again.
_installation() {
    echo "torch $TORCH_RELEASE, extras $1"
    cat "$ROOT/pyproject.toml" "$ROOT/setup.py"
}

make_environment() {
    local extras="$1" python="${PYTHON:-python3}" stamp="$ROOT/.venv/installed-$1"
    command -v "$python" >/dev/null || _fail "no $python found; Python 3.10 or newer is needed"
    if [ ! -x "$ROOT/.venv/bin/python" ]; then
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
            _fail "$python is $("$python" --version 2>&1); Python 3.10 or newer is needed"
        "$python" -m venv "$ROOT/.venv" ||
            _fail "$python cannot make a virtual environment in .venv (Debian, Ubuntu: install python3-venv)"
    fi
    # A package folder of the caller's would hide what is installed here.
    unset PYTHONPATH PYTHONHOME
    . "$ROOT/.venv/bin/activate"
    if ! _installation "$extras" | cmp -s - "$stamp"; then
        python -c 'import importlib.util as u, sys; sys.exit(u.find_spec("torch") is None)' ||
            pip install --quiet --progress-bar off "torch==$TORCH_RELEASE" ||
            _fail "torch $TORCH_RELEASE cannot be installed, see above"
        (cd "$ROOT" && pip install --quiet --progress-bar off -e ".[$extras]") ||
            _fail "the project cannot be installed, see above"
        _installation "$extras" >"$stamp"
    fi
}

# _install_alone FOLDER REQUIREMENT [options of pip]: the package and nothing else into a folder of its own, or nothing
# of it. --no-deps: it needs nothing that is not there, and its metadata would bring a second torch.
_install_alone() {
    local folder="$1" requirement="$2"
    shift 2
    [ -d "$folder" ] && return
    rm -rf "$folder.part"
    pip install --quiet --progress-bar off --no-deps --target "$folder.part" "$@" "$requirement" ||
        _fail "$requirement cannot be installed, see above"
    mv "$folder.part" "$folder"
}

# --ignore-requires-python: newer releases ask for a newer Python than their code does.
install_megatron() {
    _install_alone "$ROOT/.megatron/$1" "megatron-core==$1" --ignore-requires-python
}

# In a folder of its own too: in the environment itself it would load with every `import torch`, and fail without CANN.
install_torch_npu() {
    _install_alone "$ROOT/.torch_npu/$TORCH_RELEASE" "torch-npu==$TORCH_RELEASE"
}

# Megatron 0.18 and later import triton at the top of the MoE layer's modules, where older releases do without it. The
# cpu's torch does not bring it; it can be imported without a GPU.
needs_triton() {
    [ "$(printf '%s\n' 0.18 "$1" | sort -V | head -n 1)" = 0.18 ]
}

install_triton() {
    _install_alone "$ROOT/.megatron/triton-$TRITON_RELEASE" "triton==$TRITON_RELEASE"
}

megatron_path() {
    echo "$ROOT/.megatron/$1$(! needs_triton "$1" || echo ":$ROOT/.megatron/triton-$TRITON_RELEASE")"
}

torch_npu_path() {
    echo "$ROOT/.torch_npu/$TORCH_RELEASE"
}
