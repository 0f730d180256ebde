#!/usr/bin/env bash
# What benchmarks over links need: redis-server, iperf3, iproute2. Called by bench-links.sh and bench-cards.sh.
set -euo pipefail

usage() {
    cat <<'USAGE'
Usage: scripts/bench-tools.sh CALLER true|false
  CALLER      whose message it is
  true|false  whether what is missing is installed; else it is named, and the exit code is 2
USAGE
}
if [ $# -ne 2 ]; then
    usage
    [ "${1:-}" = --help ] && exit 0
    exit 2
fi

missing=()
command -v redis-server >/dev/null || missing+=(redis-server redis-tools)
command -v iperf3 >/dev/null || missing+=(iperf3)
command -v ip >/dev/null || missing+=(iproute2)
if [ ${#missing[@]} -gt 0 ]; then
    if ! "$2"; then
        echo "$1: missing: ${missing[*]}: install them, or run with --yes" >&2
        exit 2
    fi
    apt-get update --quiet --quiet
    DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet --quiet --no-install-recommends "${missing[@]}" >/dev/null
fi
