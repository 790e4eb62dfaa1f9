#!/usr/bin/env bash
# The wheels to carry to a machine without a network: bash ci/wheels.sh FOLDER [--stack NAME] [--python X.Y] [--machine M]
#
# Puts this project and what it needs into FOLDER and lists it; M is x86_64 or aarch64, by default this machine's, X.Y by
# default the stack's. Without torch, torch_npu and Megatron, which a machine that trains has: `--with-stack` adds the
# stack's own, of torch's requirements only those that every build has. Then, over there:
#
#   pip install --no-index --find-links FOLDER mindspeed-moe
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

folder="" name="" python="" machine="$(uname -m)" with_stack=""
while [ $# -gt 0 ]; do
    case "$1" in
        --stack) name="${2:?a name belongs to --stack}" && shift ;;
        --python) python="${2:?X.Y belongs to --python}" && shift ;;
        --machine) machine="${2:?x86_64 or aarch64 belongs to --machine}" && shift ;;
        --with-stack) with_stack=1 ;;
        -*) _fail "unknown option $1; see the head of ci/wheels.sh" ;;
        *) folder="$1" ;;
    esac
    shift
done
[ -n "$folder" ] || _fail "no folder given: bash ci/wheels.sh FOLDER [--stack NAME] [--python X.Y] [--machine M]"
use_stack ${name:+"$name"}
# Conditions such as `python_version < "3.11"` are judged by pip for the Python that it runs with.
STACK_PYTHON="${python:-$STACK_PYTHON}"
_find_python
"$FOUND_PYTHON" -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$STACK_PYTHON')" ||
    _fail "the list for Python $STACK_PYTHON is made with Python $STACK_PYTHON, which does not start here"

mkdir -p "$folder"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
"$FOUND_PYTHON" -m venv "$work/venv"
pip=("$work/venv/bin/python" -m pip --quiet)
"${pip[@]}" wheel --no-deps --wheel-dir "$folder" "$ROOT"
tags=()
# Of manylinux every tag that older wheels have, for pip takes none that is not named.
for tag in 2_34 2_31 2_28 2_27 2_26 2_24 2_17; do tags+=(--platform "manylinux_${tag}_$machine"); done
download=("${pip[@]}" download --dest "$folder" --only-binary :all: --python-version "$STACK_PYTHON" "${tags[@]}"
    --platform "manylinux2014_$machine" --progress-bar off)
mapfile -t needed < <("$work/venv/bin/python" - "$folder" <<'EOF'
import pathlib, sys, zipfile
wheel = max(pathlib.Path(sys.argv[1]).glob("mindspeed_moe-*.whl"), key=lambda path: path.stat().st_mtime)
with zipfile.ZipFile(wheel) as file:
    metadata = file.read(next(name for name in file.namelist() if name.endswith(".dist-info/METADATA"))).decode()
for line in metadata.splitlines():
    if line.startswith("Requires-Dist: ") and "extra ==" not in line and not line.startswith("Requires-Dist: torch"):
        print(line.partition(": ")[2])
EOF
)
"${download[@]}" "${needed[@]}"
if [ -n "$with_stack" ]; then
    "${download[@]}" --no-deps "torch==$STACK_TORCH" "torch-npu==$STACK_TORCH_NPU"
    "${download[@]}" --no-deps --ignore-requires-python "megatron-core==${STACK_MEGATRON_CORE%% *}"
    "${download[@]}" filelock fsspec jinja2 networkx sympy typing-extensions
fi
ls "$folder"
