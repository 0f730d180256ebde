#!/usr/bin/env bash
# Runs one of the benchmarks beside what users pick in the environment that it needs: what scripts/bench.sh calls.
set -euo pipefail
cd "$(dirname "$0")/../../.."

peers=${KVLANE_PEERS_VENV:-target/peers}
vllm=${KVLANE_VLLM_VENV:-target/vllm-venv}
lmcache=${KVLANE_VLLM_LMCACHE:-target/peers-vllm-lmcache}

usage() {
    cat <<USAGE
Usage: tools/bench/peers/run.sh peers|interference|serving [ARGUMENT...]
  --help as an argument shows those of the benchmark. Environments, and the variables that name others:
  KVLANE_PEERS_VENV    peers, interference [$peers]
  KVLANE_VLLM_VENV     serving: vLLM [$vllm]
  KVLANE_VLLM_LMCACHE  serving: LMCache for that vLLM; without it its rows say so [$lmcache]
USAGE
}

# need FILE COMMAND: or else the command that makes it.
need() {
    [ -x "$1" ] || {
        echo "run.sh: no $1: run  $2" >&2
        exit 2
    }
}

# The extension module and the Python files of this checkout, before those that an environment may have.
package() {
    cargo build --quiet --release -p kvlane-python
    rm -rf target/peers-kvlane
    mkdir -p target/peers-kvlane
    cp -r host-ctl/python/kvlane target/peers-kvlane/
    cp target/release/lib_kvlane.so target/peers-kvlane/kvlane/_kvlane.abi3.so
    export PYTHONPATH=$PWD/target/peers-kvlane${PYTHONPATH:+:$PYTHONPATH}
}

name=${1:---help}
[ $# -eq 0 ] || shift
case "$name" in
    peers | interference)
        need "$peers/bin/python" "tools/bench/peers/install.sh --dir $peers --yes"
        cargo build --quiet --release -p dpu-app -p host-ctl -p kvlane-plan
        exec "$peers/bin/python" "tools/bench/peers/$name.py" "$@"
        ;;
    serving)
        need "$vllm/bin/python" "scripts/vllm/install.sh $vllm --yes"
        cargo build --quiet --release -p dpu-app -p host-ctl -p kvlane-plan
        package
        KVLANE_VLLM_LMCACHE=$lmcache exec "$vllm/bin/python" tools/bench/peers/serving.py "$@"
        ;;
    --help | -h) usage ;;
    *)
        usage >&2
        exit 2
        ;;
esac
