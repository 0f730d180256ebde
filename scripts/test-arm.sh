#!/usr/bin/env bash
# Passes the tests and the demo as the card's Arm cores would run them, under qemu-user, and proves that the kernels are
# NEON code. Part of CI (.ci/run arm).
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
    cat <<'USAGE'
Usage: scripts/test-arm.sh [--yes] [--few] [--demo | --tests] [-- CARGO-TEST-ARGUMENT...]
  --yes     install what is missing without asking
  --few     tests of the rooms in which an Arm core can decide otherwise, as CI does: block (NEON), mailbox (words in shared
            memory), doca-sys, doca-emulator and doca (the C interface, memory between processes)
  --tests   the tests only
  --demo    the demo only
  --        what follows replaces --workspace and its exception in `cargo test`: -p block --lib
USAGE
}

target=aarch64-unknown-linux-gnu
setup=(--arm)
tests=true
demo=true
# The Python package has no tests of its own, and an interpreter for Arm is not here.
which=(--workspace --exclude kvlane-python)
while [ $# -gt 0 ]; do
    case "$1" in
        --yes) setup+=(--yes) ;;
        --few) which=(-p block -p mailbox -p doca-sys -p doca-emulator -p doca) ;;
        --tests) demo=false ;;
        --demo) tests=false ;;
        --)
            shift
            which=("$@")
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
if [ "$(uname --machine)" = aarch64 ]; then
    echo "test-arm: skipped: this machine is an Arm itself: scripts/test.sh and scripts/demo.sh say it all"
    exit 0
fi
# shellcheck source=scripts/toolchain.sh
. scripts/toolchain.sh

# What cannot be under qemu-user: test and reason. Kept as short as it can be.
skipped=()
skip() {
    echo "test-arm: skipped: $1: $2"
    skipped+=(--skip "$1")
}

# Every kernel has the vector form of the instruction that its loop cannot do without; its copies for the element types
# are one function or several, as the linker sees through. FILE has symbols.
kernels_are_neon() {
    local kernel instruction count good=true
    aarch64-linux-gnu-objdump --disassemble --demangle --no-show-raw-insn "$1" >"$work/code"
    echo "test-arm: NEON in $1:"
    while read -r kernel instruction; do
        count=$(awk -v kernel="^<block::kernel::simd::$kernel(::run|::neon)?>:\$" -v instruction="[[:space:]]$instruction" '
            $2 ~ /^<.*>:$/ { inside = $2 ~ kernel }
            inside && $0 ~ instruction { count++ }
            END { print count + 0 }' "$work/code")
        echo "test-arm:   $kernel: $instruction: $count"
        [ "$count" -gt 0 ] || good=false
    done <<'KERNELS'
dequantize tbl.v[0-9]+.16b
dequantize scvtf.v[0-9]+.4s
dequantize fmul.v[0-9]+.4s
quantize fmul.v[0-9]+.4s
quantize umax.v[0-9]+.(8h|4s)
pack_nibbles (orr|shl).v[0-9]+.16b
split (usra|ushr|shrn).v[0-9]+.(8h|8b|4s)
merge (shl|shll|ushll).v[0-9]+.(8h|4s)
KERNELS
    $good || {
        echo "test-arm: FAILED: the compiler left a kernel without NEON: see crates/block/src/kernel/generic.rs" >&2
        return 1
    }
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if $tests; then
    [ -d "$(rustc --print sysroot)/lib/rustlib/$target" ] || rustup target add "$target"
    skip debug_mode_ "debug mode asks process_vm_readv whether memory is there, which qemu-user does not have"
    skip a_hundred_hosts_in_a_row_cost_no_descriptor_and_no_memory "the resident memory would be qemu's"
    skip memory_is_what_was_said_and_does_not_grow_with_requests "the same"
    skip a_pkg_config_that_cannot_be_run_is_named "under qemu-user a program that is not there starts, and then fails"
    export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
    # Cases of property tests that name no number of their own: native runs take more of them.
    export PROPTEST_CASES=${PROPTEST_CASES:-32}
    # No debug information: a quarter less to build and to link.
    export CARGO_PROFILE_DEV_DEBUG=false
    cargo test --target "$target" --locked --no-run "${which[@]}"
    scripts/on-arm.sh cargo test --target "$target" --locked --no-fail-fast "${which[@]}" -- "${skipped[@]}"
    # The very program that has just compared the kernels with the oracle.
    compared=$(find "${CARGO_TARGET_DIR:-target}/$target/debug/deps" -name 'block-*' -executable -type f -printf '%T@ %p\n' | sort --numeric-sort | tail -n 1)
    [ -z "$compared" ] || kernels_are_neon "${compared#* }"
fi

if $demo; then
    scripts/cross-build.sh "${setup[@]:1}" --target "$target"
    kernels_are_neon "${CARGO_TARGET_DIR:-target}/$target/release/dpu-app"
    started=$SECONDS
    scripts/on-arm.sh scripts/demo.sh --bin "target/cross/$target-emulator"
    echo "test-arm: demo under qemu: $((SECONDS - started)) s"
fi
