#!/usr/bin/env bash
# Installs the emulator the way the SDK is installed: shared libraries with the SDK's names and symbol versions,
# headers, pkg-config files. A DOCA program then builds with PKG_CONFIG_PATH=PREFIX/lib/pkgconfig and nothing changed.
# Idempotent. A prefix of one's own needs no root.
set -euo pipefail

usage() {
    cat <<'USAGE'
Usage: scripts/emulator-install.sh --prefix DIR [--role host|dpu] [--target TRIPLE] [--debug] [--dry-run]
       scripts/emulator-install.sh --prefix DIR --uninstall [--dry-run]
  --prefix DIR   where to: DIR/include, DIR/lib, DIR/lib/pkgconfig
  --role ROLE    the flavour of doca_build_config.h: programs ask it which side they are on (default: host)
  --target TRIPLE  build for another machine: aarch64-unknown-linux-gnu (scripts/cross-build.sh brings what that needs)
  --debug        build without optimisation
  --uninstall    remove what an earlier run put there, and nothing else
  --dry-run      say what would be done
USAGE
}

die() {
    echo "emulator-install: $1" >&2
    exit "${2:-1}"
}

prefix=
role=host
triple=
profile=release
uninstall=false
dry=false
while [ $# -gt 0 ]; do
    case "$1" in
        --prefix)
            [ $# -ge 2 ] || die "--prefix wants a directory" 2
            prefix=$2
            shift
            ;;
        --role)
            [ $# -ge 2 ] || die "--role wants host or dpu" 2
            role=$2
            shift
            ;;
        --target)
            [ $# -ge 2 ] || die "--target wants a triple" 2
            triple=$2
            shift
            ;;
        --debug) profile=dev ;;
        --uninstall) uninstall=true ;;
        --dry-run) dry=true ;;
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
[ -n "$prefix" ] || die "--prefix DIR is required" 2
case "$role" in host | dpu) ;; *) die "--role $role: wanted host or dpu" 2 ;; esac
case "$prefix" in /*) ;; *) prefix=$PWD/$prefix ;; esac

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
crate=$here/ffi/doca-emulator
manifest=$prefix/share/doca-emulator/installed
libraries=(common compress dma comch argp)

run() {
    if $dry; then echo "would: $*"; else "$@"; fi
}

if $uninstall; then
    [ -f "$manifest" ] || {
        echo "emulator-install: nothing of ours under $prefix"
        exit 0
    }
    while IFS= read -r file; do
        run rm -f "$prefix/$file"
    done <"$manifest"
    run rm -f "$manifest"
    for directory in include lib/pkgconfig lib share/doca-emulator share; do
        run rmdir --ignore-fail-on-non-empty "$prefix/$directory" 2>/dev/null || true
    done
    echo "emulator-install: removed from $prefix"
    exit 0
fi

cc=${CC:-cc}
if [ -n "$triple" ]; then
    cc=${triple/unknown-/}-gcc
    linker=CARGO_TARGET_${triple//-/_}_LINKER
    export "${linker^^}=$cc"
fi
for tool in cargo "$cc"; do
    command -v "$tool" >/dev/null || die "$tool is not here: scripts/setup.sh installs it"
done
if [ -e "$prefix/include/doca_version.h" ] && [ ! -f "$manifest" ]; then
    die "$prefix has a DOCA that is not ours: choose another prefix"
fi
if $dry; then
    echo "would: build the emulator ($profile) and install headers ($role), libraries and pkg-config files to $prefix"
    exit 0
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# One archive of everything, for the one library that has the code.
cargo rustc --manifest-path "$crate/Cargo.toml" --profile "$profile" --lib --crate-type staticlib \
    --features announce --quiet ${triple:+--target "$triple"}
target=${CARGO_TARGET_DIR:-$here/target}${triple:+/$triple}
case "$profile" in dev) archive=$target/debug/libdoca_emulator.a ;; *) archive=$target/release/libdoca_emulator.a ;; esac
[ -f "$archive" ] || die "cargo left no $archive"

version=$(sed -n 's/^#define DOCA_VERSION_STRING "\([0-9.]*\).*/\1/p' "$crate/include/doca_version.h")
[ -n "$version" ] || die "no version in doca_version.h"

# symbols LIBRARY VERSION: the names, one a line. LIBRARY may be '.*'.
symbols() {
    awk -v library="^($1)\$" -v version="$2" '!/^#/ && $1 ~ library && $2 == version { print $3 }' \
        "$crate/abi/symbols.txt"
}

# version_script LIBRARY
version_script() {
    local node
    for node in DOCA_2 EXPERIMENTAL; do
        echo "$node {"
        [ -z "$(symbols "$1" $node)" ] || { echo "global:" && symbols "$1" $node | sed 's/$/;/'; }
        # What is in no node stays inside.
        [ $node = EXPERIMENTAL ] || echo "local: *;"
        echo "};"
    done
}

install -d "$prefix/include" "$prefix/lib/pkgconfig" "$prefix/share/doca-emulator"
: >"$work/installed"
# put FILE PATH-UNDER-PREFIX MODE
put() {
    install -m "$3" "$1" "$prefix/$2"
    echo "$2" >>"$work/installed"
}

# The library with the code exports everything under the versions that programs ask for.
version_script '.*' >"$work/all.map"
{ symbols '.*' DOCA_2 && symbols '.*' EXPERIMENTAL; } | sed 's/^/-Wl,-u,/' >"$work/wanted"
"$cc" -shared -o "$work/libdoca_emulator.so.0" -Wl,-soname,libdoca_emulator.so.0 "-Wl,--version-script=$work/all.map" \
    "@$work/wanted" "$archive" -Wl,--gc-sections -Wl,-z,defs -lgcc_s -lpthread -ldl -lm -lc
put "$work/libdoca_emulator.so.0" lib/libdoca_emulator.so.0 755

# The libraries that programs link with name their symbols and versions and send the loader to the one above
# (DT_FILTER).
for library in "${libraries[@]}"; do
    version_script "$library" >"$work/$library.map"
    { symbols "$library" DOCA_2 && symbols "$library" EXPERIMENTAL; } |
        sed 's/.*/void &(void) { __builtin_trap(); }/' >"$work/$library.c"
    "$cc" -shared -fPIC -nostdlib -w -o "$work/libdoca_$library.so.2" "-Wl,-soname,libdoca_$library.so.2" \
        "-Wl,--version-script=$work/$library.map" -Wl,--filter=libdoca_emulator.so.0 \
        -Wl,--enable-new-dtags "-Wl,-rpath,\$ORIGIN" "$work/$library.c"
    put "$work/libdoca_$library.so.2" "lib/libdoca_$library.so.2" 755
    ln -sf "libdoca_$library.so.2" "$prefix/lib/libdoca_$library.so"
    echo "lib/libdoca_$library.so" >>"$work/installed"

    requires=
    [ "$library" = common ] || requires=doca-common
    cat >"$work/doca-$library.pc" <<PC
prefix=$prefix
includedir=\${prefix}/include
libdir=\${prefix}/lib

Name: doca-$library
Description: DOCA $library, software emulation
Version: $version
Requires: $requires
Cflags: -I\${includedir}
Libs: -L\${libdir} -ldoca_$library
PC
    put "$work/doca-$library.pc" "lib/pkgconfig/doca-$library.pc" 644
done

for header in "$crate"/include/*.h; do
    name=$(basename "$header")
    if [ "$name" = doca_build_config.h ] && [ "$role" = dpu ]; then
        sed 's/^#define DOCA_ARCH_HOST$/#define DOCA_ARCH_DPU/' "$header" >"$work/$name"
        header=$work/$name
    fi
    put "$header" "include/$name" 644
done

install -m 644 "$work/installed" "$manifest"
echo "emulator-install: DOCA $version, emulated, $role side, in $prefix"
echo "  build:  PKG_CONFIG_PATH=$prefix/lib/pkgconfig meson setup build && ninja -C build"
echo "  run:    LD_LIBRARY_PATH=$prefix/lib build/PROGRAM"
