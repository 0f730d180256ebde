#!/usr/bin/env bash
# Builds the Python package as a wheel and runs its tests: the client against a real dpu-app on the emulator, the
# connector's states against fakes. The connector against the real vLLM is scripts/vllm/prove.py.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
    cat <<'USAGE'
Usage: scripts/test-python.sh [--yes] [-- PYTEST-ARGUMENT...]
  --yes  let setup.sh install what is missing without asking
  --     what follows goes to pytest: -- -k frozen
USAGE
}

setup=(--python)
arguments=()
while [ $# -gt 0 ]; do
    case "$1" in
        --yes) setup+=(--yes) ;;
        --)
            shift
            arguments=("$@")
            break
            ;;
        --help | -h)
            usage
            exit 0
            ;;
        *)
            usage >&2
            exit 2
            ;;
    esac
    shift
done
scripts/setup.sh "${setup[@]}"
# shellcheck source=scripts/toolchain.sh
. scripts/toolchain.sh

target=$(realpath "${CARGO_TARGET_DIR:-target}")
venv=$target/python-venv
cargo build --locked --quiet -p dpu-app
# The wheel, as a user gets it, into a directory of its own: neither the source tree nor the environment is written to.
rm -rf "$target/python-wheel"
"$venv/bin/maturin" build --quiet --locked --profile dev --manifest-path host-ctl/python/Cargo.toml --out "$target/python-wheel"
"$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --force-reinstall "$target"/python-wheel/kvlane-*.whl
cd host-ctl/python/tests
KVLANE_DPU_APP=$target/debug/dpu-app "$venv/bin/python" -m pytest --quiet -p no:cacheprovider ${arguments[@]+"${arguments[@]}"}
