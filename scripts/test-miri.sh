#!/usr/bin/env bash
# What miri can judge of the unsafe code in a few minutes. Part of CI (.ci/run miri).
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
    cat <<'USAGE'
Usage: scripts/test-miri.sh
Needs a nightly toolchain; adds miri to it. Skips, and says so, where there is none.
USAGE
}
case "${1:-}" in
    "") ;;
    --help | -h)
        usage
        exit 0
        ;;
    *)
        usage >&2
        exit 2
        ;;
esac

if ! cargo +nightly miri --version >/dev/null 2>&1 && ! rustup +nightly component add miri >/dev/null 2>&1; then
    echo "miri: skipped: no nightly toolchain with the miri component here"
    exit 0
fi
export MIRIFLAGS="-Zmiri-disable-isolation"
# The vector instructions that miri knows, for block's kernels; everywhere, so that nothing is built twice.
[ "$(uname --machine)" != x86_64 ] || export RUSTFLAGS="-C target-feature=+avx2,+bmi2,+fma,+f16c"
cargo +nightly miri test --locked -p block --lib
# Not attach, words and layout: safe code over plain bytes, which the ordinary tests run.
cargo +nightly miri test --locked -p mailbox --lib -- --skip attach:: --skip words:: --skip layout::
# A subset of the emulator's and the wrapper's tests, for the time that they take: what crosses
# threads or holds memory. Addresses that C hands back have exposed provenance.
export MIRIFLAGS="-Zmiri-disable-isolation -Zmiri-permissive-provenance"
cargo +nightly miri test --locked -p doca-emulator --lib -- copy:: export:: region:: link:: courier::
cargo +nightly miri test --locked -p doca-emulator --test it -- memory::
cargo +nightly miri test --locked -p doca-emulator --test it -- \
    contexts::callbacks_run contexts::a_failed_task contexts::stop_with contexts::a_context_may \
    contexts::each_thread submitted_again
cargo +nightly miri test --locked -p doca --lib slab::
cargo +nightly miri test --locked -p doca --test it -- runs_scatter read_only a_run_past threads_that_copy
