#!/usr/bin/env bash
# Runs the blocks that the documents tell people to paste, as they stand there: the README's "By hand" and
# docs/vllm.md's "Five lines". Pasted is what a shell reads from its standard input, so a command that reads it too
# would eat the lines behind. Only places are changed: home and /tmp are directories of this run. vLLM is a stand-in
# that takes its command line and attaches as the connector is told to; scripts/demo-vllm.sh runs the real one.
set -euo pipefail
cd "$(dirname "$0")/../.."
case "${1:-}" in
    '') ;;
    *)
        echo "Usage: scripts/tests/blocks.sh"
        [ "$1" = --help ] || [ "$1" = -h ] && exit 0 || exit 2
        ;;
esac

work=$(mktemp -d)
venv=target/vllm-venv
finish() {
    status=$?
    # Of the cards that the blocks started in the background, by their own ids.
    cat "$work"/*.pids 2>/dev/null | while read -r card; do kill "$card" 2>/dev/null || true; done
    [ ! -e "$venv/stand-in" ] || rm -rf "$venv"
    rm -rf "$work"
    exit "$status"
}
trap finish EXIT

# block FILE HEADING: the first block of code below a heading.
block() {
    awk -v heading="## $2" '$0 == heading { below = 1 } below && /^```/ { if (inside) exit; inside = 1; next } inside' "$1"
}
# pasted NAME: runs standard input in a shell of its own, and keeps what was said in $work/NAME.out.
pasted() {
    {
        cat
        echo
        echo "jobs -p >$work/$1.pids"
    } >"$work/$1.block"
    mkdir -p "$work/home"
    env CARGO_HOME="${CARGO_HOME:-$HOME/.cargo}" RUSTUP_HOME="${RUSTUP_HOME:-$HOME/.rustup}" HOME="$work/home" \
        KVLANE_COMCH_NAME="kvlane-blocks-$$" KVLANE_WHEEL_PROFILE=dev bash <"$work/$1.block" >"$work/$1.out" 2>&1 || true
}
failed=0
# claim NAME TEXT WORDS...: the block said all of the words.
claim() {
    local name=$1 text=$2 words said good=true
    shift 2
    said=$(<"$work/$name.out")
    for words in "$@"; do [[ $said == *"$words"* ]] || { good=false && echo "      not said: $words"; }; done
    if $good; then echo "ok    $text"; else
        failed=$((failed + 1))
        echo "FAIL  $text"
        sed 's/^/      | /' "$work/$name.out"
    fi
}

# A vLLM in everything that install.sh and the last line look at.
stand_in() {
    if [ -e "$venv" ] && ! [ -e "$venv/stand-in" ]; then
        echo "blocks: docs/vllm.md: skipped: $venv is a real environment"
        return 1
    fi
    python3 -m venv "$venv"
    touch "$venv/stand-in"
    local site
    site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    mkdir -p "$site/vllm/entrypoints/openai"
    echo "__version__ = '$(sed -n 's/^vllm=//p' scripts/vllm/install.sh)'" >"$site/vllm/__init__.py"
    touch "$site/vllm/entrypoints/__init__.py" "$site/vllm/entrypoints/openai/__init__.py"
    cat >"$site/vllm/entrypoints/openai/api_server.py" <<'PYTHON'
"""Stands in for vLLM: takes the command line, and attaches and asks as the connector's options say."""
import argparse, json, pathlib, time
import kvlane
from kvlane.engine.options import Options

parser = argparse.ArgumentParser()
parser.add_argument("--model", required=True)
parser.add_argument("--skip-tokenizer-init", action="store_true")
parser.add_argument("--kv-transfer-config", type=json.loads, required=True)
given = parser.parse_args()
transfer = given.kv_transfer_config
assert (pathlib.Path(given.model) / "config.json").is_file(), given.model
assert transfer["kv_connector"] == "KvlaneConnector" and transfer["kv_role"] == "kv_both"
assert transfer["kv_connector_module_path"] == "kvlane.vllm_connector"
assert transfer["kv_load_failure_policy"] == "recompute"
options = Options.parse(transfer["kv_connector_extra_config"])
until = time.monotonic() + 20.0
while True:  # The connector, too, tries again until the card is up.
    try:
        session = kvlane.attach(socket=options.socket, timeout=20.0)
        break
    except kvlane.CardError:
        if time.monotonic() > until:
            raise
        time.sleep(0.1)
geometry = kvlane.Geometry(layers=6, heads=2, head_size=64, element="bf16")
session.lookup(kvlane.chunk_keys(list(range(256)), model="m", geometry=geometry, recipe=session.recipe))
print("vllm's stand-in: attached, the look-up is answered:", session.wait(10.0).ok, "recipe", session.recipe, flush=True)
PYTHON
}

block README.md "By hand" | sed "s#/tmp/#$work/#g" | pasted by-hand
claim by-hand "README: the block \"By hand\" runs as pasted" "within bound"
if stand_in; then
    block docs/vllm.md "Five lines" | pasted five-lines
    claim five-lines "docs/vllm.md: the \"Five lines\" run as pasted, and nothing is lossy" "ready: hosts attach to $work/home/kvlane/socket" \
        "recipe lossless" "KV comes back bit for bit" "vllm's stand-in: attached, the look-up is answered: True recipe lossless"
fi
[ "$failed" = 0 ]
