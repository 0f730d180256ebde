#!/usr/bin/env bash
# The Python package as a release wheel (abi3: one for Python 3.10 and later), and a smoke test of it in a fresh
# environment. It runs with this machine's glibc or a newer one: build it on the oldest system that it is for (maturin
# names the manylinux).
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
    cat <<'USAGE'
Usage: scripts/wheel.sh [--yes] [--out DIR] [--sdk] [--smoke [--vllm PYTHON]]
  --yes          let setup.sh install what is missing without asking
  --out DIR      where the wheel goes [default: target/python-wheel-release]
  --sdk          for a card: linked with DOCA's libraries, which must be installed here; runs where they are
  --smoke        install it in a new environment, import it, name a chunk's keys, and load the connector's options
  --vllm PYTHON  with --smoke: also import the connector with that interpreter's vLLM, which is not written to
USAGE
}

setup=(--python)
out=
build=()
smoke=false
vllm=
while [ $# -gt 0 ]; do
    case "$1" in
        --yes) setup+=(--yes) ;;
        --out)
            out=${2:?--out needs a directory}
            shift
            ;;
        --sdk) build+=(--no-default-features --features sdk --auditwheel skip) ;;
        --smoke) smoke=true ;;
        --vllm)
            vllm=${2:?--vllm needs an interpreter}
            shift
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
out=${out:-$target/python-wheel-release}
venv=$target/python-venv
mkdir -p "$out"
rm -f "$out"/kvlane-*.whl
"$venv/bin/maturin" build --quiet --locked --manifest-path host-ctl/python/Cargo.toml --out "$out" ${build[@]+"${build[@]}"}
wheel=$(realpath "$out"/kvlane-*.whl)
echo "wheel: $wheel, $(stat --format %s "$wheel") bytes"
$smoke || exit 0

fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
python3 -m venv "$fresh/venv"
"$fresh/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps "$wheel"
# From another directory: the source tree must not answer for the wheel.
cd "$fresh"
venv/bin/python - <<'PYTHON'
import kvlane
from kvlane.engine.options import Options

geometry = kvlane.Geometry(layers=6, heads=2, head_size=64, element="bf16")
keys = kvlane.chunk_keys(list(range(600)), model="smoke", geometry=geometry, recipe="lossless")
assert len(keys) == 2 * kvlane.KEY_BYTES, len(keys)
Options.parse({"socket": "/run/kvlane.sock"})
print(f"wheel: kvlane is imported from {kvlane.__file__}")
PYTHON
if [ -n "$vllm" ]; then
    # That interpreter's packages, and this wheel before them.
    PYTHONPATH=$(echo venv/lib/python3*/site-packages) "$vllm" - <<'PYTHON'
import kvlane
import vllm
from kvlane.vllm_connector import KvlaneConnector
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1

assert issubclass(KvlaneConnector, KVConnectorBase_V1)
assert not KvlaneConnector.__abstractmethods__, KvlaneConnector.__abstractmethods__
print(f"wheel: the connector is imported from {kvlane.__file__} with vLLM {vllm.__version__}")
PYTHON
fi
