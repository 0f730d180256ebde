#!/usr/bin/env bash
# Installs what building and testing need on Debian or Ubuntu. Idempotent: does nothing where nothing is missing.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
    cat <<'USAGE'
Usage: scripts/setup.sh [--yes] [--test] [--arm] [--redis] [--python] [--venv]
  --yes    install without asking
  --arm    also what builds for the card's Arm cores and runs the result here (cross compiler, qemu-user)
  --redis  also redis-server and redis-cli, for scripts/demo.sh --store redis
  --python also what builds and tests the Python package: maturin, pytest and numpy, in target/python-venv
  --venv   also what makes Python's virtual environments, for scripts/vllm/install.sh
  --test   also what .ci/run uses beside cargo: rustfmt, clippy, shellcheck, debootstrap, prometheus,
           redis-server, all of --arm and --python
Rust comes from apt where apt has one that is new enough (rust-version in Cargo.toml), else from rustup (https://rustup.rs).
USAGE
}

# Seconds after which a site that does not answer counts as out of reach, and between two lines about apt's work.
reach_seconds=5
every=5

yes=false
python=false
lints=false
packages=(build-essential pkg-config libclang-dev ca-certificates)
arm_packages=(gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user)
if [ "$(uname --machine)" = aarch64 ]; then arm_packages=(); fi
while [ $# -gt 0 ]; do
    case "$1" in
        --yes) yes=true ;;
        --arm) packages+=("${arm_packages[@]}") ;;
        --redis) packages+=(redis-server redis-tools) ;;
        --venv) packages+=(python3-venv) ;;
        --python)
            packages+=(python3-venv)
            python=true
            ;;
        --test)
            packages+=(shellcheck debootstrap prometheus redis-server redis-tools python3-venv "${arm_packages[@]}")
            python=true
            lints=true
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
# shellcheck source=scripts/toolchain.sh
. scripts/toolchain.sh

say() { echo "setup: $*"; }
die() {
    echo "setup: $*" >&2
    exit 1
}
allowed=$yes
confirm() {
    $allowed && return 0
    if [ ! -t 0 ]; then
        echo "setup: nothing was installed: run with --yes to allow it" >&2
        exit 2
    fi
    read -r -p "setup: go on? [y/N] " answer
    [ "$answer" = y ] || [ "$answer" = Y ] || exit 2
    allowed=true
}
as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# What is wrong with the Rust that PATH has; nothing if nothing is.
rust_lacks() {
    kvlane_rust_found && return 0
    local program release
    for program in cargo rustc; do
        release=$(kvlane_release "$program")
        if [ -z "$release" ]; then
            echo "there is no $program"
            return 0
        elif ! kvlane_new_enough "$release"; then
            echo "$program $release in $(dirname "$(command -v "$program")") is too old"
            return 0
        fi
    done
}

# The release that apt would install of a package, or nothing.
offered() { apt-cache policy "$1" 2>/dev/null | sed -n 's/^  Candidate: \([0-9.]*\).*/\1/p'; }
is_installed() { dpkg-query --show --showformat='${Status}' "$1" 2>/dev/null | grep -q 'ok installed'; }

# Decides where Rust comes from: sets rust_from (apt, rustup, site; unknown before apt's lists are fetched anew, if they
# have none), rust_packages and, for people, rust_words. Packages that lie beside an old rustc come before those that
# take its place.
choose_rust() {
    rust_packages=()
    local release
    if command -v rustup >/dev/null; then
        rust_from=rustup
        rust_words="rustup's stable toolchain, for this user"
        return 0
    fi
    rust_from=apt
    release=$(apt-cache pkgnames rustc-1. 2>/dev/null | sed -n 's/^rustc-\(1\.[0-9]*\)$/\1/p' | sort --version-sort | tail -n 1)
    if kvlane_new_enough "$(offered rustc)"; then
        rust_packages=(rustc cargo)
        ! $lints || rust_packages+=(rustfmt rust-clippy)
        release=$(offered rustc)
    elif kvlane_new_enough "$release"; then
        rust_packages=("rustc-$release" "cargo-$release")
        ! $lints || rust_packages+=("rustfmt-$release" "rust-$release-clippy")
    elif kvlane_new_enough "$(offered rustc-web)"; then
        rust_packages=(rustc-web cargo-web)
        ! $lints || rust_packages+=(rustfmt-web rust-web-clippy)
        release=$(offered rustc-web)
    elif ! $lists_are_new; then
        rust_from=unknown
        rust_words="Rust from apt if its archives have $kvlane_rust_needed, else from rustup (https://rustup.rs)"
        return 0
    elif [ -n "$(offered rustup)" ]; then
        rust_from=rustup
        rust_packages=(rustup)
        rust_words="rustup (apt's package), and by it a stable toolchain for this user from ${RUSTUP_DIST_SERVER:-static.rust-lang.org}"
        return 0
    else
        rust_from=site
        is_installed curl || rust_packages=(curl)
        rust_words="Rust for this user from rustup (https://rustup.rs)"
        return 0
    fi
    rust_words="Rust $release from apt (${rust_packages[*]})"
    if [ "${rust_packages[0]}" != "rustc-$release" ] && is_installed rustc; then rust_words+=" in the place of apt's older one"; fi
}

# Tells whether a site answers, without a tool that may not be there. A proxy is believed to reach everything.
answers() {
    [ -z "${https_proxy:-}${HTTPS_PROXY:-}${all_proxy:-}${ALL_PROXY:-}" ] || return 0
    timeout "$reach_seconds" bash -c ": </dev/tcp/$1/443" 2>/dev/null
}
rustup_in_reach() {
    local site=${RUSTUP_DIST_SERVER:-https://static.rust-lang.org} sites=()
    site=${site#*://}
    site=${site%%/*}
    case "$rust_from" in
        rustup) sites=("$site") ;;
        site) sites=(sh.rustup.rs "$site") ;;
        *) return 0 ;;
    esac
    for site in "${sites[@]}"; do
        answers "${site%%:*}" || {
            unreachable "$site"
            return 1
        }
    done
}
unreachable() {
    local has="" package suite
    for package in rustc rustc-web; do
        [ -z "$(offered "$package")" ] || has+="${has:+, }$package $(offered "$package")"
    done
    # shellcheck source=/dev/null
    suite=$(. "${KVLANE_ROOT:-}/etc/os-release" 2>/dev/null && if [ "${ID:-}" = debian ]; then echo "${VERSION_CODENAME:-}"; fi) || true
    {
        echo "setup: $1 did not answer within $reach_seconds s, and apt offers no Rust of $kvlane_rust_needed or newer (it has ${has:-none})."
        echo "setup: nothing was installed. One of these helps, then run this again:"
        if [ -n "$suite" ] && ! apt-cache policy 2>/dev/null | grep -q "n=$suite-security"; then
            echo "setup:  - add Debian's security archive ($suite-security) to apt's sources: its rustc-web is new enough"
        fi
        echo "setup:  - let this machine reach $1 (behind a proxy: set https_proxy; a mirror of rustup: set RUSTUP_DIST_SERVER)"
        echo "setup:  - put cargo and rustc $kvlane_rust_needed or newer in PATH by other means"
    } >&2
}

# Shows a line of what apt says every few seconds.
now_and_then() {
    local line said=-$every
    while IFS= read -r line; do
        if ((SECONDS - said >= every)) && [ -n "$line" ]; then
            said=$SECONDS
            echo "setup: apt: $line"
        fi
    done
}
apt_get() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get --quiet --option Dpkg::Use-Pty=0 --option Acquire::Retries=1 \
        --option Acquire::http::Timeout=15 --option Acquire::https::Timeout=15 "$@" </dev/null | now_and_then
}

missing=()
for package in "${packages[@]}"; do is_installed "$package" || missing+=("$package"); done
lacks=$(rust_lacks)
rust_from=
rust_packages=()
lists_are_new=false
if [ ${#missing[@]} -gt 0 ] || [ -n "$lacks" ]; then
    command -v apt-get >/dev/null ||
        die "no apt-get here: install the equivalents of ${missing[*]}${lacks:+ and Rust $kvlane_rust_needed or newer ($lacks)}, and run this again"
    [ -z "$lacks" ] || choose_rust
    line="missing: ${missing[*]}"
    [ -z "$lacks" ] || line+="${missing[*]:+, and }Rust $kvlane_rust_needed or newer ($lacks)"
    line+="; to be installed:"
    # shellcheck disable=SC2016 # $(SITE) is apt's
    [ ${#missing[@]} = 0 ] || line+=" those packages from apt ($(apt-get indextargets --format '$(SITE)' 2>/dev/null | sort --unique | paste --serial --delimiters ' '))"
    [ -z "$lacks" ] || line+="${missing[*]:+, }$rust_words"
    say "$line"
    if [ "$(id -u)" != 0 ] && ! command -v sudo >/dev/null; then
        die "not root, and there is no sudo: as root run \`apt-get update && apt-get install ${missing[*]} ${rust_packages[*]}\`, then this again"
    fi
    rustup_in_reach || exit 1
    confirm
fi
if [ ${#missing[@]} -gt 0 ] || [ ${#rust_packages[@]} -gt 0 ] || [ "$rust_from" = unknown ]; then
    apt_get update || say "apt-get update failed, see above: its lists may be old"
    lists_are_new=true
    if [ -n "$lacks" ]; then
        words=$rust_words
        choose_rust
        [ "$words" = "$rust_words" ] || say "$rust_words"
        rustup_in_reach || exit 1
    fi
    apt_get install --yes --no-install-recommends "${missing[@]}" "${rust_packages[@]}" ||
        die "apt-get could not install ${missing[*]} ${rust_packages[*]}: its reason is above"
    # The tests start a prometheus of their own. Nobody asked for the service that comes with the package.
    if [[ " ${missing[*]} " == *" prometheus "* ]] && [ -d /run/systemd/system ]; then
        as_root systemctl disable --now --quiet prometheus.service
    fi
fi
components=()
! $lints || components=(--component clippy --component rustfmt)
case "$rust_from" in
    rustup)
        rustup toolchain install stable --profile minimal --no-self-update ${components[@]+"${components[@]}"} </dev/null ||
            die "rustup could not install its stable toolchain: its reason is above"
        rustup default >/dev/null 2>&1 || rustup default stable
        ;;
    site)
        curl --proto '=https' --tlsv1.2 --silent --show-error --fail --connect-timeout "$reach_seconds" --max-time 60 https://sh.rustup.rs |
            sh -s -- -y --profile minimal --component clippy,rustfmt ||
            die "rustup could not be installed: its reason is above"
        ;;
esac
if [ -n "$lacks" ]; then
    hash -r
    # shellcheck source=scripts/toolchain.sh
    . scripts/toolchain.sh
    lacks=$(rust_lacks)
    [ -z "$lacks" ] || die "Rust $kvlane_rust_needed or newer is needed, and still $lacks"
fi

if $python; then
    venv=${CARGO_TARGET_DIR:-target}/python-venv
    if ! "$venv/bin/python" -c 'import maturin, numpy, pytest' 2>/dev/null; then
        say "to be installed from PyPI into $venv: maturin, pytest, numpy"
        confirm
        python3 -m venv "$venv"
        "$venv/bin/pip" install --quiet --disable-pip-version-check 'maturin>=1.9,<2' pytest numpy
    fi
fi
