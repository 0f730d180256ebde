#!/usr/bin/env bash
# Installs the peers that kvlane is measured beside into a Python environment of their own. Running it again changes nothing.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

usage() {
    cat <<'USAGE'
Usage: bench/peers/install.sh [--dir VENV] [--yes] [--dry-run]
  --dir VENV   where the environment goes [default: target/peers of this repository]; 7 GB, most of it torch
  --yes        install Debian packages that are missing without asking
  --dry-run    say what would be done
USAGE
}

venv=$here/../../target/peers
yes=false
dry=
while [ $# -gt 0 ]; do
    case "$1" in
        --dir) venv=${2:?--dir needs a path} && shift ;;
        --yes) yes=true ;;
        --dry-run) dry=echo ;;
        --help | -h) usage && exit 0 ;;
        *) usage >&2 && exit 2 ;;
    esac
    shift
done

missing=()
command -v redis-server >/dev/null || missing+=(redis-server)
command -v ip >/dev/null || missing+=(iproute2)
command -v taskset >/dev/null || missing+=(util-linux)
# Mooncake and NIXL link against the verbs libraries even where they go by TCP.
for library in libibverbs1 libnl-3-200 librdmacm1 libnuma1; do
    dpkg-query --show --showformat='${Status}' "$library" 2>/dev/null | grep --quiet 'ok installed' || missing+=("$library")
done
if [ ${#missing[@]} -gt 0 ]; then
    if ! $yes && [ -z "$dry" ]; then
        echo "install.sh: missing: ${missing[*]}: install them, or run with --yes" >&2
        exit 2
    fi
    $dry apt-get update --quiet --quiet
    $dry apt-get install --yes --quiet --quiet --no-install-recommends "${missing[@]}"
fi
[ -x "$venv/bin/python" ] || $dry python3 -m venv "$venv"
$dry "$venv/bin/pip" install --quiet --requirement "$here/requirements.txt"
echo "install.sh: ready: $venv/bin/python bench/peers/peers.py --quick"
