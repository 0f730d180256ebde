#!/usr/bin/env bash
# Makes .deb files: dpu-app, host-ctl, kvlane-plan, and the emulator with its -dev package, for the card's arm64 and for
# amd64. What deploy.sh --package takes, and what apt install ./FILE takes. Needs dpkg-deb, not debhelper; builds by
# cross-build.sh.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
    cat <<'USAGE'
Usage: scripts/package.sh [options]
  --arch ARCH       arm64, amd64 or all [default: all]
  --features NAME   emulator, or sdk for the card [default: emulator]
  --sdk DIR         the SDK for --features sdk: see cross-build.sh
  --out DIR         where to [default: target/packages]
  --version TEXT    version of the packages [default: Cargo.toml's, with the commit, and .emulator in that flavour]
  --no-build        take what cross-build.sh left in target/cross
  --yes             install what is missing without asking
  --dry-run         say what would be made
  --help            this

dpu-app                    program, unit, user, /etc/kvlane/dpu-app.conf (a conffile), manual pages
host-ctl                   program, manual pages
kvlane-plan                program, manual pages: for the card (calibrate) and for hosts (generate, tiers)
kvlane-doca-emulator       /usr/lib/TRIPLET/kvlane-doca/lib: libdoca_*.so.2, out of the way of the SDK's /opt/mellanox/doca
kvlane-doca-emulator-dev   the same prefix's include and lib/pkgconfig; PKG_CONFIG_PATH or DOCA_DIR choose it.
                           doca_build_config.h says host on amd64 and DPU on arm64
Exit codes: 0 made, 1 not, 2 wrong arguments.
USAGE
}

wrong() {
    echo "package: $1" >&2
    exit 2
}
arch=all
features=emulator
sdk=()
out=target/packages
version=
build=true
setup=()
dry_run=false
while [ $# -gt 0 ]; do
    case "$1" in
        --no-build) build=false ;;
        --yes) setup+=(--yes) ;;
        --dry-run) dry_run=true ;;
        --help | -h)
            usage
            exit 0
            ;;
        --arch | --features | --sdk | --out | --version)
            [ -n "${2:-}" ] || wrong "$1 needs a value"
            case "$1" in
                --arch) arch=$2 ;;
                --features) features=$2 ;;
                --sdk) sdk=(--sdk "$2") ;;
                --out) out=$2 ;;
                --version) version=$2 ;;
            esac
            shift
            ;;
        *)
            usage >&2
            wrong "$1: no such option"
            ;;
    esac
    shift
done
case "$arch" in all) archs=(amd64 arm64) ;; amd64 | arm64) archs=("$arch") ;; *) wrong "--arch $arch: arm64, amd64 or all" ;; esac
case "$features" in emulator | sdk) ;; *) wrong "--features $features: emulator or sdk" ;; esac
command -v dpkg-deb >/dev/null || wrong "no dpkg-deb here: use Debian or Ubuntu, a container does"
plain_version=$(sed -n '/^\[workspace.package\]/,/^\[/ s/^version = "\(.*\)"/\1/p' Cargo.toml)$(scripts/build-word.sh)
flavour_version=${version:-$plain_version$([ "$features" = sdk ] || echo .emulator)}
plain_version=${version:-$plain_version}
dpkg --validate-version "$flavour_version" || wrong "--version $flavour_version: not a version for dpkg"
# One commit gives the same bytes again.
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct 2>/dev/null || stat --format=%Y Cargo.toml)
export SOURCE_DATE_EPOCH

triple_of() { case "$1" in arm64) echo aarch64-unknown-linux-gnu ;; amd64) echo x86_64-unknown-linux-gnu ;; esac; }
native=$(dpkg --print-architecture)

if $dry_run; then
    for arch in "${archs[@]}"; do
        for package in "dpu-app_$flavour_version" "host-ctl_$flavour_version" "kvlane-plan_$flavour_version" "kvlane-doca-emulator_$plain_version" "kvlane-doca-emulator-dev_$plain_version"; do
            echo "package: would make $out/${package}_$arch.deb ($features)"
        done
    done
    exit 0
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
umask 022
mkdir -p "$out"

# put MODE FILE PATH: a file into the package that is being made, in $root.
put() { install -D --mode="$1" "$2" "$root/$3"; }

# start PACKAGE: an empty package.
start() {
    package=$1
    root=$work/$arch/$1
    mkdir -p "$root/DEBIAN"
}

# Manual pages of a program, from the program itself: of this machine if it can run here, else under qemu.
manuals() {
    local run=() pages=$work/$arch/man-$1 page
    [ "$arch" = "$native" ] || run=(scripts/on-arm.sh)
    mkdir "$pages"
    LD_LIBRARY_PATH=$built/doca/lib "${run[@]}" "$built/$1" man "$pages"
    for page in "$pages"/*; do
        gzip --best --no-name "$page"
        put 644 "$page.gz" "usr/share/man/man1/$(basename "$page").gz"
    done
}

# What is linked in, with its licence.
crates() {
    cargo tree --package "$1" --edges normal --prefix none --format '{p}	{l}' --locked | grep --invert-match '(/' |
        sed 's/ (\*)$//' | sort --unique
}

# finish VERSION DEPENDS SECTION TITLE: control file, documents, the .deb. More of the description comes on standard
# input.
finish() {
    local documents=usr/share/doc/$package program
    cat >"$work/copyright" <<COPYRIGHT
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: kvlane

Files: *
Copyright: the kvlane authors
License: Apache-2.0 or MIT
Comment: Rust crates that are linked in, with their licences, are listed in crates.gz beside this file.

License: Apache-2.0
 On Debian systems, the full text of the Apache License 2.0 is in /usr/share/common-licenses/Apache-2.0.

License: MIT
$(sed 's/^$/./; s/^/ /' LICENSE-MIT)
COPYRIGHT
    put 644 "$work/copyright" "$documents/copyright"
    {
        echo "$package ($1) unstable; urgency=medium"
        echo
        echo "  * Built from commit $(git rev-parse HEAD 2>/dev/null || echo unknown)."
        echo
        echo " -- $maintainer  $(date --utc --rfc-email --date="@$SOURCE_DATE_EPOCH")"
    } | gzip --best --no-name >"$work/changelog.gz"
    put 644 "$work/changelog.gz" "$documents/changelog.gz"
    program=$package
    case "$package" in kvlane-doca-emulator*) program=doca-emulator ;; esac
    crates "$program" | gzip --best --no-name >"$work/crates.gz"
    put 644 "$work/crates.gz" "$documents/crates.gz"
    if [ -e "scripts/debian/$package.lintian-overrides" ]; then
        put 644 "scripts/debian/$package.lintian-overrides" "usr/share/lintian/overrides/$package"
    fi
    {
        echo "Package: $package"
        echo "Version: $1"
        echo "Architecture: $arch"
        echo "Maintainer: $maintainer"
        echo "Installed-Size: $(du --summarize --apparent-size --block-size=1K --exclude=DEBIAN "$root" | cut --fields=1)"
        echo "Depends: $2"
        echo "Section: $3"
        echo "Priority: optional"
        case "$package" in kvlane-doca-emulator*) echo "Multi-Arch: same" ;; esac
        echo "Description: $4"
        sed 's/^$/./; s/^/ /'
    } >"$root/DEBIAN/control"
    (cd "$root" && find . -type f ! -path './DEBIAN/*' -printf '%P\n' | LC_ALL=C sort | xargs md5sum) >"$root/DEBIAN/md5sums"
    find "$root" -newermt "@$SOURCE_DATE_EPOCH" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
    dpkg-deb --build --root-owner-group -Zxz "$root" "$out/${package}_$1_$arch.deb" >/dev/null
    echo "package: $out/${package}_$1_$arch.deb, $(stat --format=%s "$out/${package}_$1_$arch.deb") bytes"
}
maintainer='kvlane developers <kvlane@example.org>'

# The oldest C library that the files of $root run with.
libc() {
    local newest
    newest=$(find "$root" -type f \( -path '*/bin/*' -o -name '*.so.*' \) -exec "${tools}readelf" --wide --version-info {} + |
        sed -n 's/.*Name: GLIBC_\([0-9.]*\).*/\1/p' | sort --version-sort | tail -n 1)
    echo "libc6 (>= $newest), libgcc-s1 (>= 4.2)"
}

for arch in "${archs[@]}"; do
    triple=$(triple_of "$arch")
    triplet=${triple/unknown-/}
    built=target/cross/$triple-$features
    tools=
    [ "$arch" = "$native" ] || tools=$triplet-
    if $build; then
        scripts/cross-build.sh "${setup[@]}" --target "$triple" --features "$features" "${sdk[@]}" --out "$built"
    fi
    [ -x "$built/dpu-app" ] || wrong "$built has no dpu-app: leave --no-build away"

    start dpu-app
    put 755 "$built/dpu-app" usr/bin/dpu-app
    manuals dpu-app
    put 644 scripts/systemd/dpu-app.service lib/systemd/system/dpu-app.service
    put 644 scripts/systemd/kvlane.sysusers.conf usr/lib/sysusers.d/kvlane.conf
    put 640 scripts/systemd/dpu-app.conf etc/kvlane/dpu-app.conf
    echo /etc/kvlane/dpu-app.conf >"$root/DEBIAN/conffiles"
    for script in postinst prerm postrm; do put 755 "scripts/debian/dpu-app.$script" "DEBIAN/$script"; done
    if [ "$features" = sdk ]; then
        finish "$flavour_version" "$(libc)" net "KV-cache data plane for BlueField cards" <<'TEXT'
Fetches compressed KV-cache prefixes from a store, inflates them on the card's
engines, dequantizes them and writes them into the serving engine's memory.

This build is for the card: it needs the DOCA libraries (libdoca_common.so.2
and others) that come with the card's own software, not with a package here.
TEXT
    else
        finish "$flavour_version" "$(libc)" net "KV-cache data plane for BlueField cards (emulator)" <<'TEXT'
Fetches compressed KV-cache prefixes from a store, inflates them on the card's
engines, dequantizes them and writes them into the serving engine's memory.

This build uses NO CARD: a software BlueField is linked in, and both sides are
processes of one machine.
TEXT
    fi

    start host-ctl
    put 755 "$built/host-ctl" usr/bin/host-ctl
    manuals host-ctl
    finish "$flavour_version" "$(libc)" net "control tool of the kvlane KV-cache data plane" <<'TEXT'
Attaches to dpu-app, stores KV-cache prefixes through it, fetches and compares
them, and shows its limits, counters and events.
TEXT

    start kvlane-plan
    put 755 "$built/kvlane-plan" usr/bin/kvlane-plan
    manuals kvlane-plan
    finish "$flavour_version" "$(libc)" net "planning tool of the kvlane KV-cache data plane" <<'TEXT'
Measures a card and proposes a configuration for dpu-app, simulates cards and
tiers, and makes synthetic KV-cache files.
TEXT

    prefix=usr/lib/$triplet/kvlane-doca
    start kvlane-doca-emulator
    for library in "$built"/doca/lib/*.so.[0-9]; do put 644 "$library" "$prefix/lib/$(basename "$library")"; done
    "${tools}strip" --strip-unneeded "$root/$prefix"/lib/*.so.[0-9]
    finish "$plain_version" "$(libc)" libs "software BlueField behind the DOCA C interface" <<TEXT
Shared libraries with the names and symbol versions of NVIDIA's DOCA SDK, for
DOCA programs on machines without a card. Nothing finds them by itself: set
LD_LIBRARY_PATH=/$prefix/lib.
TEXT

    start kvlane-doca-emulator-dev
    role=host
    [ "$arch" != arm64 ] || role=dpu
    for header in ffi/doca-emulator/include/*.h; do put 644 "$header" "$prefix/include/$(basename "$header")"; done
    [ "$role" = host ] || sed --in-place 's/^#define DOCA_ARCH_HOST$/#define DOCA_ARCH_DPU/' "$root/$prefix/include/doca_build_config.h"
    mkdir -p "$root/$prefix/lib/pkgconfig"
    for library in "$built"/doca/lib/libdoca_*.so; do ln --symbolic "$(readlink "$library")" "$root/$prefix/lib/$(basename "$library")"; done
    for module in "$built"/doca/lib/pkgconfig/*.pc; do
        sed "s|^prefix=.*|prefix=/$prefix|" "$module" >"$work/module.pc"
        put 644 "$work/module.pc" "$prefix/lib/pkgconfig/$(basename "$module")"
    done
    finish "$plain_version" "kvlane-doca-emulator (= $plain_version), libc6-dev" libdevel "software BlueField, to build DOCA programs against" <<TEXT
Headers of our own and pkg-config files for the libraries of
kvlane-doca-emulator; doca_build_config.h says $role. Build with
PKG_CONFIG_PATH=/$prefix/lib/pkgconfig.
TEXT
done
