#!/usr/bin/env bash
# Installs what building and testing need on Debian or Ubuntu. Idempotent: does nothing where nothing is missing.
set -euo pipefail

usage() {
    cat <<'USAGE'
Usage: scripts/setup.sh [--yes] [--test] [--arm] [--redis] [--python]
  --yes    install without asking
  --arm    also what builds for the card's Arm cores and runs the result here (cross compiler, qemu-user)
  --redis  also redis-server and redis-cli, for scripts/demo.sh --store redis
  --python also what builds and tests the Python package: maturin, pytest and numpy, in target/python-venv
  --test   also what scripts/test.sh --all uses beside cargo: shellcheck, prometheus, redis-server, all of --arm and --python
USAGE
}

yes=false
python=false
packages=(build-essential pkg-config libclang-dev curl ca-certificates)
arm_packages=(gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user)
if [ "$(uname --machine)" = aarch64 ]; then arm_packages=(); fi
while [ $# -gt 0 ]; do
    case "$1" in
        --yes) yes=true ;;
        --arm) packages+=("${arm_packages[@]}") ;;
        --redis) packages+=(redis-server redis-tools) ;;
        --python)
            packages+=(python3-venv)
            python=true
            ;;
        --test)
            packages+=(shellcheck prometheus redis-server redis-tools python3-venv "${arm_packages[@]}")
            python=true
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

confirm() {
    $yes && return 0
    if [ ! -t 0 ]; then
        echo "setup: $1: run with --yes to allow it" >&2
        exit 2
    fi
    read -r -p "setup: $1. Go on? [y/N] " answer
    [ "$answer" = y ] || [ "$answer" = Y ] || exit 2
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

missing=()
for package in "${packages[@]}"; do
    dpkg-query --show --showformat='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
    command -v apt-get >/dev/null || {
        echo "setup: no apt-get here: install the equivalents of ${missing[*]} and run again" >&2
        exit 1
    }
    confirm "apt packages to install: ${missing[*]}"
    as_root apt-get update --quiet --quiet
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet --quiet --no-install-recommends "${missing[@]}" >/dev/null
    # The tests start a prometheus of their own. Nobody asked for the service that comes with the package.
    if [[ " ${missing[*]} " == *" prometheus "* ]] && [ -d /run/systemd/system ]; then
        as_root systemctl disable --now --quiet prometheus.service
    fi
fi

if [ -f "$HOME/.cargo/env" ]; then
    # shellcheck source=/dev/null
    . "$HOME/.cargo/env"
fi
if ! command -v cargo >/dev/null; then
    confirm "there is no cargo: install Rust for this user with rustup (https://rustup.rs)"
    curl --proto '=https' --tlsv1.2 --silent --show-error --fail https://sh.rustup.rs |
        sh -s -- -y --profile minimal --component clippy,rustfmt
fi

if $python; then
    venv=${CARGO_TARGET_DIR:-$(dirname "$0")/../target}/python-venv
    if ! "$venv/bin/python" -c 'import maturin, numpy, pytest' 2>/dev/null; then
        confirm "Python packages to install into $venv: maturin, pytest, numpy"
        python3 -m venv "$venv"
        "$venv/bin/pip" install --quiet --disable-pip-version-check 'maturin>=1.9,<2' pytest numpy
    fi
fi
