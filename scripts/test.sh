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
if [ -f "$HOME/.cargo/env" ]; then
    # shellcheck source=/dev/null
    . "$HOME/.cargo/env"
fi

step() { printf '\n== %s\n' "$*"; }

if $all; then
    step format
    cargo fmt --all --check
    step scripts
    shellcheck scripts/*.sh scripts/vllm/*.sh scripts/bring-up/*.sh scripts/debian/*.p* scripts/tests/*.sh scripts/tests/claims/* scripts/tests/fakes/* .ci/run
    scripts/tests/run.sh
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
    step packages
    scripts/tests/packages.sh
    step miri
    if cargo +nightly miri --version >/dev/null 2>&1 || rustup +nightly component add miri >/dev/null 2>&1; then
        export MIRIFLAGS="-Zmiri-disable-isolation"
        # The vector instructions that miri knows, for block's kernels; everywhere, so that nothing is built twice.
        [ "$(uname --machine)" != x86_64 ] || export RUSTFLAGS="-C target-feature=+avx2,+bmi2,+fma,+f16c"
        cargo +nightly miri test --locked -p block --lib
        # Not attach, words and layout: safe code over plain bytes, which the tests above have run.
        cargo +nightly miri test --locked -p mailbox --lib -- --skip attach:: --skip words:: --skip layout::
        # A subset of the emulator's and the wrapper's tests, for the time that they take: what crosses
        # threads or holds memory. Addresses that C hands back have exposed provenance.
        export MIRIFLAGS="-Zmiri-disable-isolation -Zmiri-permissive-provenance"
        cargo +nightly miri test --locked -p doca-emulator --lib -- copy:: export:: region:: link:: courier::
        cargo +nightly miri test --locked -p doca-emulator --test memory
        cargo +nightly miri test --locked -p doca-emulator --test contexts -- \
            callbacks_run a_failed_task stop_with a_context_may each_thread submitted_again
        cargo +nightly miri test --locked -p doca --lib slab::
        cargo +nightly miri test --locked -p doca --test wrapper -- runs_scatter read_only a_run_past
    else
        echo "miri: skipped: no nightly toolchain with the miri component here"
    fi
fi
