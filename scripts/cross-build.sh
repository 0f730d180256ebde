#!/usr/bin/env bash
# Builds dpu-app, host-ctl, kvlane-plan and the emulator's shared libraries for the card's Arm cores on an x86-64
# machine: release, stripped, debug information beside them, for glibc 2.35 (Ubuntu 22.04 on the card) or older, which
# it proves.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
    cat <<'USAGE'
Usage: scripts/cross-build.sh [options]
  --target TRIPLE   aarch64-unknown-linux-gnu or x86_64-unknown-linux-gnu [default: aarch64-unknown-linux-gnu]
  --features NAME   emulator, or sdk for the card [default: emulator]
  --sdk DIR         DOCA SDK for that target, for --features sdk: a directory with include/doca_types.h, as /opt/mellanox/doca
                    is on the card; a copy keeps that path: COPY/opt/mellanox/doca [default: DOCA_DIR, else pkg-config if
                    the machine is of that target, else the emulator's libraries]
  --out DIR         where to [default: target/cross/TRIPLE-FEATURES]
  --yes             install what is missing without asking
  --dry-run         say what would be built, with which tools
  --help            this

OUT/dpu-app, OUT/host-ctl, OUT/kvlane-plan      what scripts/deploy.sh --bin OUT takes
OUT/debug/*.debug              debug information: gdb finds it by name beside the program, or by build id
OUT/doca/                      the emulator as a DOCA installation (scripts/emulator-install.sh)

Without an SDK for the target, --features sdk links against the emulator's libraries, which have the SDK's names and symbol
versions: on the card the loader binds the same program to the SDK's.
Exit codes: 0 built, 1 not, or for a newer glibc than the card has; 2 wrong arguments.
USAGE
}

target=aarch64-unknown-linux-gnu
features=emulator
sdk=${DOCA_DIR:-}
out=
setup=()
dry_run=false
wrong() {
    echo "cross-build: $1" >&2
    exit 2
}
while [ $# -gt 0 ]; do
    case "$1" in
        --yes) setup+=(--yes) ;;
        --dry-run) dry_run=true ;;
        --help | -h)
            usage
            exit 0
            ;;
        --target | --features | --sdk | --out)
            [ -n "${2:-}" ] || wrong "$1 needs a value"
            case "$1" in --target) target=$2 ;; --features) features=$2 ;; --sdk) sdk=$2 ;; --out) out=$2 ;; esac
            shift
            ;;
        *)
            usage >&2
            wrong "$1: no such option"
            ;;
    esac
    shift
done
case "$features" in emulator | sdk) ;; *) wrong "--features $features: emulator or sdk" ;; esac
case "$target" in
    aarch64-unknown-linux-gnu | x86_64-unknown-linux-gnu) triplet=${target/unknown-/} ;;
    *) wrong "--target $target: aarch64-unknown-linux-gnu or x86_64-unknown-linux-gnu" ;;
esac
[ -z "$sdk" ] || [ "$features" = sdk ] || [ -n "${DOCA_DIR:-}" ] || wrong "--sdk without --features sdk: which one is meant?"
out=${out:-target/cross/$target-$features}
glibc_most=2.35

# A native build needs no --target, and shares its files with cargo build --release.
cross=()
prefix=
built=${CARGO_TARGET_DIR:-target}/release
if [ "$(uname --machine)" != "${target%%-*}" ]; then
    [ "$target" = aarch64-unknown-linux-gnu ] || wrong "--target $target: this machine is $(uname --machine): only Arm is cross-built"
    cross=(--target "$target")
    prefix=$triplet-
    built=${CARGO_TARGET_DIR:-target}/$target/release
fi

# Where the libraries of --features sdk come from.
libraries=none
if [ "$features" = sdk ]; then
    if [ -n "$sdk" ]; then
        [ -f "$sdk/include/doca_types.h" ] || wrong "--sdk $sdk: no include/doca_types.h in it"
        libraries=$(cd "$sdk" && pwd)
    elif [ ${#cross[@]} = 0 ] && pkg-config --exists doca-common 2>/dev/null; then
        libraries=installed
    else
        libraries=emulator
    fi
fi

word=$(scripts/build-word.sh)
version=$(sed -n '/^\[workspace.package\]/,/^\[/ s/^version = "\(.*\)"/\1/p' Cargo.toml)$word
if $dry_run; then
    cat <<PLAN
cross-build: would do, and did nothing of:
  1. install what is missing: ${prefix}gcc, its C library, the Rust target $target
  2. build the emulator's libraries into $out/doca
  3. build dpu-app, host-ctl and kvlane-plan, version $version, feature $features, DOCA libraries: $libraries
  4. split off debug information, strip, check build id and glibc (at most $glibc_most), put them into $out
PLAN
    exit 0
fi

if [ ${#cross[@]} -gt 0 ]; then setup+=(--arm); fi
scripts/setup.sh ${setup[@]+"${setup[@]}"}
# shellcheck source=scripts/toolchain.sh
. scripts/toolchain.sh
if [ ${#cross[@]} -gt 0 ] && [ ! -d "$(rustc --print sysroot)/lib/rustlib/$target" ]; then
    command -v rustup >/dev/null || {
        echo "cross-build: this Rust has no $target and there is no rustup: install Rust by https://rustup.rs" >&2
        exit 1
    }
    rustup target add "$target"
fi
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
[ ${#cross[@]} -gt 0 ] || unset CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER
for tool in gcc objcopy strip readelf; do
    command -v "$prefix$tool" >/dev/null || {
        echo "cross-build: no $prefix$tool: install binutils and gcc for $triplet" >&2
        exit 1
    }
done

mkdir -p "$out/debug"
out=$(cd "$out" && pwd)
scripts/emulator-install.sh --prefix "$out/doca" --role dpu ${cross[@]+"${cross[@]}"} >/dev/null

cargo_flags=(--release --locked ${cross[@]+"${cross[@]}"})
if [ "$features" = sdk ]; then
    cargo_flags+=(--no-default-features --features dpu-app/sdk --features host-ctl/sdk --features kvlane-plan/sdk)
    case "$libraries" in
        installed) ;;
        emulator)
            echo "cross-build: no DOCA SDK for $target here: linking against the emulator's libraries; on the card the SDK's are found"
            sdk=$out/doca
            ;;
        # A copy of the card's installation: what its .pc files call /opt/mellanox/doca lies under the copy.
        */opt/mellanox/doca) export PKG_CONFIG_SYSROOT_DIR=${libraries%/opt/mellanox/doca} ;;
    esac
    if [ "$libraries" != installed ]; then
        export DOCA_DIR=$sdk PKG_CONFIG_ALLOW_CROSS=1 PKG_CONFIG_PATH=$sdk/lib/$triplet/pkgconfig:$sdk/lib/pkgconfig
        # The SDK's libraries need others of the card, which need not be here to link against them.
        [ "$libraries" = emulator ] || export RUSTFLAGS="${RUSTFLAGS:-} -Clink-arg=-Wl,--allow-shlib-undefined"
    fi
fi
# Where bindgen's clang looks for the C library's headers of the target, should it not know.
if [ ${#cross[@]} -gt 0 ] && [ -d "/usr/$triplet/include" ]; then
    export BINDGEN_EXTRA_CLANG_ARGS_aarch64_unknown_linux_gnu="-isystem /usr/$triplet/include"
fi
KVLANE_BUILD=$word cargo build "${cargo_flags[@]}" --package dpu-app --package host-ctl --package kvlane-plan

# split FILE FROM: FILE without debug information, and a file for gdb with it.
split() {
    local name
    name=$(basename "$1")
    "${prefix}objcopy" --only-keep-debug "$2" "$out/debug/$name.debug"
    "${prefix}strip" --strip-unneeded --remove-section=.comment -o "$out/$1" "$2"
    (cd "$out/debug" && "${prefix}objcopy" --add-gnu-debuglink="$name.debug" "$out/$1")
}
split dpu-app "$built/dpu-app"
split host-ctl "$built/host-ctl"
split kvlane-plan "$built/kvlane-plan"
split doca/lib/libdoca_emulator.so.0 "$out/doca/lib/libdoca_emulator.so.0"

# What came out, and whether the card can load it.
failed=false
newest_glibc() { "${prefix}readelf" --wide --version-info "$1" | grep --only-matching 'GLIBC_[0-9A-Z_.]*' | sort --unique --version-sort | tail -n 1; }
for file in dpu-app host-ctl kvlane-plan doca/lib/libdoca_emulator.so.0; do
    newest=$(newest_glibc "$out/$file")
    id=$("${prefix}readelf" --wide --notes "$out/$file" | sed -n 's/.*Build ID: //p')
    needs=$("${prefix}readelf" --dynamic "$out/$file" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p' | paste --serial --delimiters ' ')
    echo "cross-build: $file: $(stat --format=%s "$out/$file") bytes, build id ${id:-none}, needs ${newest:-no glibc}, $needs"
    if [ "$(printf '%s\n' "GLIBC_$glibc_most" "$newest" | sort --version-sort | tail -n 1)" != "GLIBC_$glibc_most" ]; then
        echo "cross-build: $file needs $newest, the card has $glibc_most: build on Debian 12 or Ubuntu 22.04 (a container does)" >&2
        failed=true
    fi
    if [ -z "$id" ]; then
        echo "cross-build: $file has no build id: use a linker that makes one (-Wl,--build-id)" >&2
        failed=true
    fi
done
if $failed; then exit 1; fi
echo "cross-build: ok: $target, $features, version $version, in $out"
