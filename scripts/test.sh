#!/usr/bin/env bash
# Passes the tests. With --all also what CI asks beside them: format, lints, docs, scripts, the Arm build under qemu, packages,
# miri where it is installed.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
    cat <<'USAGE'
Usage: scripts/test.sh [--all] [--yes]
  --all   also rustfmt, clippy, docs, shellcheck, the Arm build, packages and miri (what .ci/run does)
  --yes   let setup.sh install what is missing without asking
USAGE
}

all=false
setup=()
while [ $# -gt 0 ]; do
    case "$1" in
        --all) all=true ;;
        --yes) setup+=(--yes) ;;
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
$all && setup+=(--test)
scripts/setup.sh ${setup[@]+"${setup[@]}"}
# shellcheck source=scripts/toolchain.sh
. scripts/toolchain.sh

step() { printf '\n== %s (%d s)\n' "$*" "$SECONDS"; }

if $all; then
    step format
    cargo fmt --all --check
    # Making a minimal root is mostly waiting.
    fresh_log=$(mktemp)
    scripts/tests/fresh.sh >"$fresh_log" 2>&1 &
    fresh=$!
    step scripts
    shellcheck scripts/*.sh scripts/vllm/*.sh scripts/bring-up/*.sh scripts/debian/*.p* scripts/tests/*.sh scripts/tests/claims/* scripts/tests/fakes/* .ci/run
    scripts/tests/run.sh
    fresh_status=0
    wait "$fresh" || fresh_status=$?
    cat "$fresh_log"
    rm "$fresh_log"
    [ "$fresh_status" = 0 ]
    step lints
    cargo clippy --workspace --all-targets --locked -- -D warnings
    step docs
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked
fi

step tests
cargo test --workspace --locked --no-fail-fast

if $all; then
    step "the Python package, against a real dpu-app"
    scripts/test-python.sh
    step "SDK flavour"
    scripts/sdk-flavour.sh
    step "tests and demo for the card's Arm cores, under qemu"
    scripts/test-arm.sh
    # Packages are mostly built by one processor, and miri runs on one.
    step "packages, and miri beside them"
    miri_log=$(mktemp)
    scripts/test-miri.sh >"$miri_log" 2>&1 &
    miri=$!
    trap 'kill "$miri" 2>/dev/null || true; rm -f "$miri_log"' EXIT
    scripts/tests/packages.sh
    step miri
    miri_status=0
    wait "$miri" || miri_status=$?
    cat "$miri_log"
    exit "$miri_status"
fi
