#!/usr/bin/env bash
# The real vLLM with its prefixes in a store: three servers, one after the other, answer the same requests. The first
# recomputes, the second saves, the third loads what the second left. Shows hit tokens, TTFT, and that the answers
# agree.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
    cat <<'USAGE'
Usage: scripts/demo-vllm.sh [--yes] [--venv DIR] [--model DIR] [--recipe RECIPE] [--keep]
  --yes            install what is missing without asking: vLLM and what it needs take about 8 GB
  --venv DIR       environment with vLLM, made if it is not there [default: target/vllm-venv]
  --model DIR      another model; prompts are then its tokens 0 to 255 [default: testdata/decoder]
  --recipe RECIPE  how chunks are stored [default: lossless]
  --keep           leave store and logs behind and say where they are
USAGE
}

yes=()
venv=${CARGO_TARGET_DIR:-target}/vllm-venv
model=testdata/decoder
recipe=lossless
keep=false
while [ $# -gt 0 ]; do
    case "$1" in
        --yes) yes=(--yes) ;;
        --keep) keep=true ;;
        --venv | --model | --recipe)
            declare "${1#--}=${2:?$1 needs a value}"
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
scripts/setup.sh ${yes[@]+"${yes[@]}"}
echo "demo: building (release; minutes the first time)"
scripts/build.sh build --release --locked -p dpu-app
scripts/vllm/install.sh "$venv" ${yes[@]+"${yes[@]}"}

work=$(mktemp -d)
card=
finish() {
    status=$?
    if [ -n "$card" ] && kill -0 "$card" 2>/dev/null; then
        kill "$card"
        wait "$card" || true
    fi
    if $keep; then echo "demo: files are in $work"; else rm -rf "$work"; fi
    exit "$status"
}
trap finish EXIT
mkdir "$work/store"
"${CARGO_TARGET_DIR:-target}/release/dpu-app" run --attach socket --socket "$work/socket" --store "dir:$work/store" \
    --recipe "$recipe" >"$work/dpu-app.log" 2>&1 &
card=$!
for _ in $(seq 100); do
    grep --quiet 'hosts attach to' "$work/dpu-app.log" && break
    kill -0 "$card" 2>/dev/null || {
        cat "$work/dpu-app.log" >&2
        exit 1
    }
    sleep 0.1
done
"$venv/bin/python" scripts/vllm/demo.py --model "$model" --socket "$work/socket" --logs "$work"
