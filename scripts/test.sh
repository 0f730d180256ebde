#!/usr/bin/env bash
# Passes the tests. With --all it is .ci/run: also format, lints, documents, scripts, the Arm build under qemu,
# packages, miri.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
    cat <<'USAGE'
Usage: scripts/test.sh [--all] [--yes]
  --all   everything that CI asks: the same as .ci/run, which also runs single steps; installs what is missing
  --yes   let setup.sh install what is missing without asking
USAGE
}

setup=()
while [ $# -gt 0 ]; do
    case "$1" in
        --all) exec .ci/run ;;
        --yes) setup+=(--yes) ;;
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
scripts/setup.sh ${setup[@]+"${setup[@]}"}
# shellcheck source=scripts/toolchain.sh
. scripts/toolchain.sh
printf '\n== tests (%d s)\n' "$SECONDS"
cargo test --workspace --locked --no-fail-fast
