#!/usr/bin/env bash
# Builds with cargo and shows how far it is: on a terminal cargo's own bar, elsewhere a line every few seconds with the
# crates that are done, of all. Warnings and errors are passed on as they are.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/toolchain.sh
. scripts/toolchain.sh

case "${1:-}" in
    '' | --help | -h)
        echo "Usage: scripts/build.sh CARGO-ARGUMENT...    for example: scripts/build.sh build --release -p dpu-app"
        [ $# -gt 0 ] && exit 0 || exit 2
        ;;
esac

# Seconds between two lines.
every=5

# Passes on of what cargo says what somebody has to read, and says how far it is every few seconds, also while it is
# silent.
in_lines() {
    local line part='' far='starting' said=0 status
    while true; do
        status=0
        IFS= read -r -t "$every" line || status=$?
        line=$part$line
        part=
        if [ "$status" -gt 128 ]; then
            part=$line
        elif [ "$status" != 0 ]; then
            [ -z "$line" ] || printf '%s\n' "$line"
            return 0
        elif [[ $line =~ Building\ \[.*\]\ ([0-9]+)/([0-9]+) ]]; then
            far="${BASH_REMATCH[1]} of ${BASH_REMATCH[2]} crates done"
        elif [[ $line =~ (Downloading|Fetch|Updating|Blocking)\ .*[^\ ] ]]; then
            far=${BASH_REMATCH[0]}
        elif [[ ! $line =~ ^\ *((Compiling|Downloaded|Checking|Locking|Adding)\ .*)?$ ]]; then
            printf '%s\n' "$line"
        fi
        if ((SECONDS - said >= every)); then
            said=$SECONDS
            echo "build: $far ($SECONDS s)"
        fi
    done
}

if [ -t 2 ]; then exec cargo "$@"; fi
{ CARGO_TERM_PROGRESS_WHEN=always CARGO_TERM_PROGRESS_WIDTH=100 CARGO_TERM_COLOR=never cargo "$@" 2>&1 >&3 | stdbuf --output=0 tr '\r' '\n' | in_lines >&2; } 3>&1
