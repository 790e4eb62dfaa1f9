# Set-up shared by the scripts of this folder; sourced, not run. What is installed is data: mindspeed_moe/stacks.json.
#
#   use_stack [NAME]            STACK_TORCH and its kin of that stack, or of the default one
#   take_stack ARGUMENTS        the same for a command line that may begin with `--stack NAME`; REST holds the others
#   make_environment EXTRAS     .venv/STACK with torch and this project, e.g. `make_environment plot`; activates it
#   install_megatron RELEASE    megatron-core of that release in a folder of its own, with triton where it needs that
#   link_megatron CHECKOUT      the same of a checkout of Megatron-LM; LINKED is then what stands for a release
#   install_torch_npu           the stack's torch-npu in a folder of its own, for the simulated Ascend runtime; 1, and
#                               NO_TORCH_NPU says why, where it cannot be had or used
#   megatron_path RELEASE       prints what PYTHONPATH needs for a release; torch_npu_path the same for torch_npu
#
# All do nothing, quickly, when everything is there. PYTHON names the interpreter to take instead of the stack's.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

export PIP_DISABLE_PIP_VERSION_CHECK=1

# What runs with every release, wherever all the tests would take too long.
PARITY_TESTS=(tests/distributed/test_parity.py tests/distributed/test_attributes.py tests/distributed/test_modes.py)
ONE_PROCESS_TESTS=(tests/one_process)
CONTRACT_TESTS=(tests/unit/test_megatron_patches.py tests/unit/test_probes.py tests/unit/test_requirements.py)
LEDGER_TESTS=(tests/npu/test_cost.py)

NOT_HERE=3 # exit code: the stack is none for this machine

_fail() {
    echo "ci: $*" >&2
    exit "${CODE:-1}"
}

# stacks_data ARGUMENTS: what ci/stacks.py prints, with any Python that starts.
stacks_data() {
    local python
    for python in "${PYTHON:-python3}" python3 python3.{10..13} /usr/bin/python3; do
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 7))' 2>/dev/null || continue
        "$python" -B "$ROOT/ci/stacks.py" "$@"
        return
    done
    _fail "no Python starts; Python $(sed -n 's/^requires-python = ">=\(.*\)"/\1/p' "$ROOT/pyproject.toml") or newer is needed"
}

use_stack() {
    local data
    data="$(stacks_data shell "$@")" || exit 1
    eval "$data"
    HOME_OF_STACK="$ROOT/.venv/$STACK"
}

take_stack() {
    local name=()
    if [ "${1:-}" = --stack ]; then
        name=("${2:?a name belongs to --stack: $(stacks_data names)}")
        shift 2
    fi
    REST=("$@")
    use_stack "${name[@]}"
}

# Every place where an interpreter of version $1 may be. A shim of pyenv may end with an error, so it is run before it is
# taken, and what stands behind the shims is looked at too.
_pythons() {
    local root
    type -ap "python$1" || true
    {
        echo "${PYENV_ROOT:-}"
        pyenv root 2>/dev/null || true
        tr : '\n' <<<"$PATH" | sed -n 's#/shims/*$##p'
        echo "${HOME:-}/.pyenv"
    } | while read -r root; do
        [ -z "$root" ] || compgen -G "$root/versions/$1.*/bin/python" || true
    done
}

# _starts PYTHON CONDITION: it runs, can make an environment, and its version (a tuple `v`) is as wanted.
_starts() {
    "$1" -c "import ensurepip, sys, venv; v = sys.version_info[:2]; sys.exit(not ($2))" >/dev/null 2>&1
}

# Sets FOUND_PYTHON: the stack's own where it starts, else the machine's.
_find_python() {
    local python wanted="v == (${STACK_PYTHON/./, })"
    if [ -n "${PYTHON:-}" ]; then
        _starts "$PYTHON" "v >= (3, 10)" ||
            _fail "PYTHON=$PYTHON does not start, has no venv, or is older than 3.10 ($("$PYTHON" --version 2>&1))"
        FOUND_PYTHON="$PYTHON"
        return
    fi
    while read -r python; do
        ! _starts "$python" "$wanted" || {
            FOUND_PYTHON="$python"
            return
        }
    done < <(_pythons "$STACK_PYTHON")
    for python in python3 /usr/bin/python3; do
        ! _starts "$python" "v >= (3, 10)" || {
            FOUND_PYTHON="$python"
            return
        }
    done
    _fail "stack $STACK needs Python $STACK_PYTHON, or a python3 of 3.10 or newer, with venv (Debian, Ubuntu: python3-venv)," \
        "and none starts; PYTHON may name one"
}

# _offered PACKAGE RELEASE: whether pip finds a wheel of it for this environment's Python.
_offered() {
    local offered
    offered=", $(pip index versions "$1" 2>/dev/null | sed -n 's/^Available versions: //p'),"
    [[ "$offered" == *", $2,"* ]]
}

# cpu, cuda, ...: for what the installed torch was built.
torch_build() {
    python "$ROOT/ci/table.py" build
}

_install_torch() {
    local version
    version="$(python -c 'import platform; print(platform.python_version())')"
    if _offered torch "$STACK_TORCH+cpu"; then
        pip install --quiet --progress-bar off "torch==$STACK_TORCH+cpu"
    elif [ "$STACK_CPU_BUILD" = required ]; then
        CODE=$NOT_HERE _fail "stack $STACK runs only with a CPU build of torch $STACK_TORCH, and pip finds none for Python $version"
    elif _offered torch "$STACK_TORCH"; then
        pip install --quiet --progress-bar off "torch==$STACK_TORCH"
    else
        _fail "pip finds no torch $STACK_TORCH for Python $version: install Python $STACK_PYTHON, or name one by PYTHON"
    fi || _fail "torch $STACK_TORCH cannot be installed, see above"
}

# Every input of the installation, so that a change of one installs again.
_installation() {
    echo "$STACK_TORCH, extras $1"
    cat "$ROOT/pyproject.toml" "$ROOT/setup.py"
}

make_environment() {
    local extras="$1" stamp="$HOME_OF_STACK/installed-$1"
    # A package folder of the caller's would hide what is installed here.
    unset PYTHONPATH PYTHONHOME
    if [ ! -x "$HOME_OF_STACK/bin/python" ] || [ "$(cat "$HOME_OF_STACK/release" 2>/dev/null)" != "$STACK_TORCH" ]; then
        _find_python
        rm -rf "$HOME_OF_STACK"
        echo "ci: setting up $STACK: $("$FOUND_PYTHON" --version), torch $STACK_TORCH" >&2
        "$FOUND_PYTHON" -m venv "$HOME_OF_STACK" || _fail "$FOUND_PYTHON cannot make a virtual environment"
        . "$HOME_OF_STACK/bin/activate"
        _install_torch
        echo "$STACK_TORCH" >"$HOME_OF_STACK/release"
    fi
    . "$HOME_OF_STACK/bin/activate"
    if ! _installation "$extras" | cmp -s - "$stamp"; then
        (cd "$ROOT" && pip install --quiet --progress-bar off -e ".[$extras]") ||
            _fail "the project cannot be installed, see above"
        # Last, for pip brings it back as long as torch asks for it: MindSpeed and Megatron do other things where
        # NVIDIA's triton can be imported, which no Ascend machine has.
        pip uninstall --quiet --yes triton 2>/dev/null
        _installation "$extras" >"$stamp"
    fi
}

# _install_alone NAME RELEASE [options of pip]: the package and nothing else into a folder of its own, or nothing of it.
# --no-deps: it needs nothing that is not there, and its metadata would bring a second torch.
_install_alone() {
    local folder="$HOME_OF_STACK/$1/$2" requirement="$1==$2"
    shift 2
    [ -d "$folder" ] && return
    rm -rf "$folder.part"
    pip install --quiet --progress-bar off --no-deps --target "$folder.part" "$@" "$requirement" ||
        _fail "$requirement cannot be installed, see above"
    mv "$folder.part" "$folder"
}

# --ignore-requires-python: newer releases ask for a newer Python than their code does.
install_megatron() {
    _install_alone megatron-core "$1" --ignore-requires-python
    ! needs_triton "$1" || _install_alone triton "$STACK_TRITON"
}

# Its package alone, for beside it lie others that would hide ours.
link_megatron() {
    local checkout
    checkout="$(cd "$1" && pwd)"
    LINKED="$(stacks_data release "$checkout")" || exit 1
    LINKED+=-checkout
    mkdir -p "$HOME_OF_STACK/megatron-core/$LINKED"
    ln -sfn "$checkout/megatron" "$HOME_OF_STACK/megatron-core/$LINKED/megatron"
}

# In a folder of its own: in the environment itself it would load with every `import torch`, and fail without CANN.
install_torch_npu() {
    NO_TORCH_NPU=""
    if [ "$STACK_CPU_BUILD" != preferred ] && [ "$(torch_build)" != cpu ]; then
        NO_TORCH_NPU="torch $STACK_TORCH is a $(torch_build) build, beside which torch-npu $STACK_TORCH_NPU aborts on import; put a CPU build where pip finds it (PIP_FIND_LINKS=FOLDER) and remove .venv/$STACK"
    elif [ ! -d "$(torch_npu_path)" ] && ! _offered torch-npu "$STACK_TORCH_NPU"; then
        NO_TORCH_NPU="pip finds no torch-npu $STACK_TORCH_NPU for $(python --version); install Python $STACK_PYTHON, and remove .venv/$STACK"
    elif ! command -v cmake >/dev/null || ! command -v "${CXX:-g++}" >/dev/null; then
        NO_TORCH_NPU="the simulated Ascend runtime is built with CMake and a C++ compiler (cmake, g++), and one is missing"
    fi
    if [ -n "$NO_TORCH_NPU" ]; then
        echo "ci: what needs torch_npu is not run: $NO_TORCH_NPU" >&2
        return 1
    fi
    _install_alone torch-npu "$STACK_TORCH_NPU"
}

# Newer releases import triton at the top of the MoE layer's modules. It can be imported without a GPU.
needs_triton() {
    grep -qs "^ *import triton" "$HOME_OF_STACK/megatron-core/$1"/megatron/core/transformer/moe/*.py
}

megatron_path() {
    echo "$HOME_OF_STACK/megatron-core/$1$(! needs_triton "$1" || echo ":$HOME_OF_STACK/triton/$STACK_TRITON")"
}

torch_npu_path() {
    echo "$HOME_OF_STACK/torch-npu/$STACK_TORCH_NPU"
}
