#!/usr/bin/env bash
# Runs the benchmarks and makes one page of them: tables, plots, and a JSON file. docs/measurements.md says what each is for.
set -euo pipefail
cd "$(dirname "$0")/.."

# name | what it measures | command; the page has them in this order
benches() {
    cat <<'TABLE'
kernels|quantize and dequantize beside memcpy, one core|cargo bench -q -p block --bench transforms -- --only kernel
codecs|what software inflates here, per transform and codec|cargo bench -q -p block --bench transforms -- --only codec
latency|command posted to completion seen, beside a Unix socket|cargo bench -q -p dpu-app --bench latency --
hostcost|CPU time and KV bytes of the host for each GB|cargo bench -q -p dpu-app --bench hostcost --
tiers-policy|tiers: hit rates of policies, memory for equal hit rate, bookkeeping|cargo bench -q -p host-ctl --bench tiers-policy --
TABLE
}

usage() {
    cat <<'USAGE'
Usage: scripts/bench.sh [NAME...] [--quick] [--out DIR] [--list]
  NAME       one or more benchmarks by name; all of them without
  --quick    small sizes and few runs: to see that all of them work, not for figures
  --out DIR  where summary.md, results.json, plots (SVG), and each benchmark's JSON and log go; default target/bench
  --list     what there is, and stop
Leave the machine alone meanwhile: everything shares its processors. Exit code 1 if a benchmark failed; the page says why.
USAGE
}

out=target/bench
quick=()
names=()
while [ $# -gt 0 ]; do
    case "$1" in
        --quick) quick=(--quick) ;;
        --out)
            out=${2:?--out needs a directory}
            shift
            ;;
        --list)
            benches | awk -F'|' '{ printf "%-12s %s\n             %s\n", $1, $2, $3 }'
            exit 0
            ;;
        --help | -h)
            usage
            exit 0
            ;;
        -*)
            usage >&2
            exit 2
            ;;
        *)
            if ! benches | cut -d'|' -f1 | grep -qxF -- "$1"; then
                echo "bench.sh: no benchmark $1: --list shows them" >&2
                exit 2
            fi
            names+=("$1")
            ;;
    esac
    shift
done
[ ${#names[@]} -gt 0 ] || mapfile -t names < <(benches | cut -d'|' -f1)

mkdir -p "$out"
out=$(cd "$out" && pwd)
export KVLANE_BENCH_OUT=$out
echo "building (release)"
cargo build -q --release
cargo bench -q --no-run
load=$(cut -d' ' -f1 /proc/loadavg)
awk -v load="$load" 'BEGIN { exit !(load > 0.7) }' && echo "load is $load: building was part of it, other work would spoil the figures"

count=0
for name in "${names[@]}"; do
    count=$((count + 1))
    command=$(benches | awk -F'|' -v name="$name" '$1 == name { print $3 }')
    rm -f "$out/$name.json"
    printf '[%d/%d] %s ' "$count" "${#names[@]}" "$name"
    start=$SECONDS
    # shellcheck disable=SC2086 # a command is words
    if $command ${quick[@]+"${quick[@]}"} >"$out/$name.log" 2>&1; then
        printf '%d s\n' $((SECONDS - start))
    else
        rm -f "$out/$name.json"
        printf 'FAILED after %d s: %s\n' $((SECONDS - start)) "$out/$name.log"
    fi
done

status=0
built="commit $(git rev-parse --short HEAD 2>/dev/null || echo unknown)"
[ -z "$(git status --porcelain 2>/dev/null)" ] || built+=" with changes"
target/release/bench "$out" "$built, $(rustc --version)" "${names[@]}" || status=$?
echo "page: $out/summary.md"
exit $status
