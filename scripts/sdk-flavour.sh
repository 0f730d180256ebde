#!/usr/bin/env bash
# Builds the SDK flavour of the programs the way a machine with a card does, with the emulator's shared
# libraries and headers installed in the SDK's place, and runs the demo with it. What it proves: that the build finds an
# SDK and nothing else, says so when it cannot, and that the binaries use only what the SDK's libraries export.
set -euo pipefail
from=$PWD
cd "$(dirname "$0")/.."

usage() {
    cat <<'USAGE'
Usage: scripts/sdk-flavour.sh [--sdk DIR] [--lints] [--keep]
  --sdk DIR   a real SDK (a directory with include/doca_types.h, or a copy of one): type-check against its headers only
              [default: install the emulator into a temporary directory, build, and run the demo]
  --lints     clippy over the SDK flavour, too
  --keep      leave the temporary directory behind and say where it is
Exit codes: 0 all well, 1 something is not, 2 usage.
USAGE
}

sdk=
lints=false
keep=false
while [ $# -gt 0 ]; do
    case "$1" in
        --sdk)
            sdk=${2:?--sdk needs a directory}
            case "$sdk" in /*) ;; *) sdk=$from/$sdk ;; esac
            shift
            ;;
        --lints) lints=true ;;
        --keep) keep=true ;;
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

work=$(mktemp -d)
finish() {
    status=$?
    if $keep; then echo "sdk-flavour: files are in $work"; else rm -rf "$work"; fi
    exit "$status"
}
trap finish EXIT
fail() {
    echo "sdk-flavour: $1" >&2
    exit 1
}
packages=(-p dpu-app -p host-ctl -p kvlane-plan)
flavour=("${packages[@]}" --no-default-features --features "dpu-app/sdk host-ctl/sdk kvlane-plan/sdk" --locked --quiet)

if [ -n "$sdk" ]; then
    export DOCA_DIR=$sdk
    cargo check "${flavour[@]}"
    ! $lints || cargo clippy "${flavour[@]}" -- -D warnings
    echo "sdk-flavour: ok: the app type-checks against the SDK in $sdk"
    exit 0
fi

# What the build says when it should not go on: one line, and no library of ours in the SDK's place.
# refused WORDS COMMAND...
refused() {
    local words=$1
    shift
    if "$@" >"$work/refusal" 2>&1; then fail "this built, and should not have: $*"; fi
    [ "$(grep --count '^error: doca-sys' "$work/refusal")" = 1 ] || fail "not one line of error: $(cat "$work/refusal")"
    grep --quiet -- "$words" "$work/refusal" || fail "expected '$words' in: $(cat "$work/refusal")"
}
check=(cargo check -p doca-sys --locked --quiet)
refused "exclude each other" "${check[@]}" --features sdk
refused "one of the features" "${check[@]}" --no-default-features
refused "no DOCA SDK module \`doca-common\`" env --unset=DOCA_DIR PKG_CONFIG_LIBDIR=/nowhere PKG_CONFIG_PATH= "${check[@]}" --no-default-features --features sdk
refused "DOCA_DIR is $work, but" env "DOCA_DIR=$work" "${check[@]}" --no-default-features --features sdk

scripts/emulator-install.sh --prefix "$work/sdk" --debug >/dev/null
export DOCA_DIR=$work/sdk
cargo build "${flavour[@]}"
! $lints || cargo clippy "${flavour[@]}" -- -D warnings
target=${CARGO_TARGET_DIR:-target}/debug
mkdir "$work/bin"
cp "$target/dpu-app" "$target/host-ctl" "$target/kvlane-plan" "$work/bin/"
# Nobody should find this flavour where they expect the other.
cargo build "${packages[@]}" --locked --quiet
export LD_LIBRARY_PATH=$work/sdk/lib

for program in dpu-app host-ctl kvlane-plan; do
    readelf --dynamic "$work/bin/$program" | grep --quiet 'NEEDED.*libdoca_common\.so\.2' || fail "$program is not linked with the SDK's libraries"
    inside=$(nm --defined-only "$work/bin/$program" | awk '$3 ~ /^doca_[a-z_0-9]*$/ { print $3 }' | head -n 3 | tr '\n' ' ')
    [ -z "$inside" ] || fail "$program has functions of the emulator inside: $inside"
    "$work/bin/$program" --version | grep --quiet ' (DOCA SDK [0-9]' || fail "$program --version does not say its SDK: $("$work/bin/$program" --version)"
done
scripts/check-headers.sh >/dev/null --sdk "$work/sdk" || fail "the installed headers are not the ones in ffi/doca-emulator/include"
scripts/demo.sh --bin "$work/bin" --recipes lossless,q5,q5+lz4 >"$work/demo" 2>&1 || {
    cat "$work/demo" >&2
    fail "the demo does not run on the SDK flavour"
}
# A binary that a card would take, over a library that is none: it has to say so.
"$work/bin/dpu-app" devices --json | grep --quiet '"emulator":true' || fail "dpu-app takes the emulator's library for a card"
echo "sdk-flavour: ok: $("$work/bin/dpu-app" --version), built as with a card's SDK, stored and fetched on the emulator's libraries"
