#!/usr/bin/env bash
# Runs the benchmarks and makes two pages of them, a summary and an appendix, with plots and a JSON file.
# docs/measurements.md says what each is for.
set -euo pipefail
cd "$(dirname "$0")/.."

# reports | what they measure | command; the page has them in this order. A command that leaves several reports names
# them all, comma-separated; each name runs it.
benches() {
    cat <<'TABLE'
kernels|quantize and dequantize beside memcpy, one core|cargo bench -q -p block --bench transforms -- --only kernel
codecs|what software inflates here, per transform and codec|cargo bench -q -p block --bench transforms -- --only codec
latency|command posted to completion seen, beside a Unix socket|cargo bench -q -p dpu-app --bench latency --
hostcost|CPU time and KV bytes of the host for each GB|cargo bench -q -p dpu-app --bench hostcost --
fetch|1 GiB through the whole data plane, beside the engines alone|cargo bench -q -p dpu-app --bench fetch --
path|the whole path beside each stage alone, without overlap, CPU time, and a sweep|cargo bench -q -p kvlane-plan --bench path --
verify|what --verify-dma costs: off, sample, all in turn|cargo bench -q -p dpu-app --bench verify --
together|1 to 8 sessions that fetch one prefix at one time: joined, and each for itself|cargo bench -q -p dpu-app --bench together --
traffic|bytes read and written by each stage for each restored byte, checked by cachegrind|cargo bench -q -p kvlane-plan --bench traffic --
links|Redis on loopback and on limited links, beside a plain client|scripts/bench-links.sh --yes
attach|what the ways to the card cost|cargo bench -q -p dpu-app --bench attach --
store|the directory store beside plain reads|cargo bench -q -p store --bench speed --
model|a BlueField-3 by the model: link, recipe, geometry, memory|cargo bench -q -p kvlane-plan --bench model --
check|the model beside the emulator on this machine: its error|cargo bench -q -p kvlane-plan --bench check --
calibrate|what calibrate proposes beside a sweep|cargo bench -q -p kvlane-plan --bench calibrate --
tiers-cards|four cards with tiers, and on one Redis over a shared link|scripts/bench-cards.sh --yes
tiers-latency|tiers: a small hit of T0, T1 and T2, alone and beside a long fetch|cargo bench -q -p dpu-app --bench tiers-latency --
tiers-policy|tiers: hit rates of policies, memory for equal hit rate, bookkeeping|cargo bench -q -p study --bench tiers-policy --
precision|precision by importance: divergence and loss at equal bytes (numpy)|python3 scripts/precision-study.py --decoder testdata/decoder --text testdata/heldout.txt
peers|beside what users pick: LMCache, Redis clients, safetensors, NIXL, Mooncake; loopback and links|tools/bench/peers/run.sh peers
interference|what restoring costs a decode loop beside it|tools/bench/peers/run.sh interference
serving|the real vLLM on CPUs: TTFT and TPOT, recomputed or loaded|tools/bench/peers/run.sh serving
TABLE
}

usage() {
    cat <<'USAGE'
Usage: scripts/bench.sh [NAME...] [--quick] [--out DIR] [--list]
       scripts/bench.sh --again RESULTS [--out DIR]
  NAME       one or more reports by name; all of them without
  --quick    small sizes and few runs: to see that all of them work, not for figures
  --out DIR  where summary.md, appendix.md, results.json, plots (SVG), and each benchmark's JSON and log go; default
             target/bench
  --again RESULTS  measure nothing: make the pages of an earlier run's results.json again, with the plots of the summary only:
             scripts/bench.sh --again docs/bench/results.json --out docs/bench
  --list     what there is, and stop
Leave the machine alone meanwhile: everything shares its processors. Exit code 1 if a benchmark failed; the page says why.
USAGE
}

out=target/bench
quick=()
again=
groups=()
while [ $# -gt 0 ]; do
    case "$1" in
        --quick) quick=(--quick) ;;
        --out)
            out=${2:?--out needs a directory}
            shift
            ;;
        --again)
            again=${2:?--again needs a results.json}
            shift
            ;;
        --list)
            benches | awk -F'|' '{ printf "%s: %s\n    %s\n", $1, $2, $3 }'
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
            row=$(benches | grep -E "^([^|]*,)?$1[,|]") || {
                echo "bench.sh: no benchmark $1: --list shows them" >&2
                exit 2
            }
            row=${row%%|*}
            [[ " ${groups[*]} " == *" $row "* ]] || groups+=("$row")
            ;;
    esac
    shift
done
[ ${#groups[@]} -gt 0 ] || mapfile -t groups < <(benches | cut -d'|' -f1)

mkdir -p "$out"
out=$(cd "$out" && pwd)
if [ -n "$again" ]; then
    cargo run -q -p bench -- --again "$again" "$out"
    echo "pages: $out/summary.md, $out/appendix.md"
    exit 0
fi
export KVLANE_BENCH_OUT=$out
command_of() {
    benches | awk -F'|' -v group="$1" '$1 == group { print $3 }'
}

echo "building (release)"
cargo build -q --release -p bench -p dpu-app -p host-ctl -p kvlane-plan
for group in "${groups[@]}"; do
    command=$(command_of "$group")
    if [[ "$command" == "cargo bench "* ]]; then
        build=${command%% -- *}
        # shellcheck disable=SC2086 # a command is words; those before its own " --" are cargo's
        ${build% --} --no-run
    fi
done
load=$(cut -d' ' -f1 /proc/loadavg)
awk -v load="$load" 'BEGIN { exit !(load > 0.7) }' &&
    echo "load is $load: building was part of it, other work would spoil the figures"

count=0
status=0
names=()
for group in "${groups[@]}"; do
    count=$((count + 1))
    IFS=, read -ra reports <<<"$group"
    names+=("${reports[@]}")
    log=$out/${reports[0]}.log
    command=$(command_of "$group")
    for report in "${reports[@]}"; do rm -f "$out/$report.json" "$out/$report.log"; done
    printf '[%d/%d] %s ' "$count" "${#groups[@]}" "$group"
    start=$SECONDS
    # shellcheck disable=SC2086 # a command is words
    if $command ${quick[@]+"${quick[@]}"} >"$log" 2>&1; then
        printf '%d s\n' $((SECONDS - start))
    else
        printf 'FAILED after %d s: %s\n' $((SECONDS - start)) "$log"
        status=1
        sed -i "s|$PWD/||g" "$log" # it goes on the page
        # One report of a command that failed may be half of it; of several, those that are there are whole.
        [ ${#reports[@]} -gt 1 ] || rm -f "$out/${reports[0]}.json"
        for report in "${reports[@]:1}"; do cp "$log" "$out/$report.log"; done
    fi
done

built="commit $(git rev-parse --short HEAD 2>/dev/null || echo unknown)"
[ -z "$(git status --porcelain 2>/dev/null)" ] || built+=" with changes"
target/release/bench "$out" "$built, $(rustc --version)" "${names[@]}" || status=1
echo "page: $out/summary.md"
exit $status
