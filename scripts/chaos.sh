#!/usr/bin/env bash
# Real processes under seeded faults: cards, Redis servers, disks, links and hosts are killed, frozen, filled and lied
# to, and what an honest host sees is checked byte by byte. Ends with a table that has to be zeros.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
    cat <<'USAGE'
Usage: scripts/chaos.sh [--seconds N] [--seed S] [--scenario NAME,...] [--old DIR] [--list] [--json] [--keep] [--yes]
  --seconds N      go on for so long [default: 60]; every scenario runs at least once
  --seed S         start of all random draws [default: from the clock; printed]
  --scenario NAME  only these, in this order, with --seconds 0 once each
  --old DIR        a dpu-app and a host-ctl of an earlier commit, for the scenario two-versions, which is skipped without them:
                   git worktree add OLD COMMIT, cargo build --release in OLD, --old OLD/target/release
  --list           print the scenarios and leave
  --json           print the totals as one JSON object on standard output, everything else on standard error
  --keep           leave stores and logs behind and say where they are
  --yes            let setup.sh install what is missing without asking
Exit 0: all zeros. Exit 1: something was wrong, and the seed that shows it.
USAGE
}

setup=(--python --redis)
arguments=()
while [ $# -gt 0 ]; do
    case "$1" in
        --yes) setup+=(--yes) ;;
        --seconds | --seed | --scenario | --old)
            arguments+=("$1" "${2:?$1 needs a value}")
            shift
            ;;
        --list | --json | --keep) arguments+=("$1") ;;
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
scripts/setup.sh "${setup[@]}" >&2
if [ -f "$HOME/.cargo/env" ]; then
    # shellcheck source=/dev/null
    . "$HOME/.cargo/env"
fi

target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
venv=$target/python-venv
cargo build --release --locked -p dpu-app -p host-ctl >&2
rm -rf "$target/python-wheel-chaos"
"$venv/bin/maturin" build --quiet --locked --profile dev --manifest-path host-ctl/python/Cargo.toml --out "$target/python-wheel-chaos" >&2
"$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --force-reinstall "$target"/python-wheel-chaos/kvlane-*.whl >&2
PATH=$target/release:$PATH PYTHONDONTWRITEBYTECODE=1 exec "$venv/bin/python" scripts/chaos ${arguments[@]+"${arguments[@]}"}
