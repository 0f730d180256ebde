#!/usr/bin/env bash
# The main job on real data: store the KV cache of a prompt through dpu-app, fetch it back, check it, show what it took.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
    cat <<'USAGE'
Usage: scripts/demo.sh [--yes] [--bin DIR] [--store dir|redis|cluster] [--recipes LIST] [--keep]
  --yes           let setup.sh install what is missing without asking
  --bin DIR       take dpu-app and host-ctl from there instead of building them
  --store KIND    dir: a directory; redis: a redis-server of its own; cluster: six of them, three masters and three
                  replicas [default: dir]
  --recipes LIST  comma-separated [default: lossless,q8,q6,q5,q4,q3,q4p,cachegen]
  --keep          leave the working directory (store, fetched files, log) behind and say where it is
USAGE
}

setup=()
recipes=lossless,q8,q6,q5,q4,q3,q4p,cachegen
bin=
keep=false
kind=dir
while [ $# -gt 0 ]; do
    case "$1" in
        --yes) setup+=(--yes) ;;
        --keep) keep=true ;;
        --store)
            kind=${2:?--store needs dir, redis or cluster}
            shift
            ;;
        --bin)
            bin=${2:?--bin needs a directory}
            shift
            ;;
        --recipes)
            recipes=${2:?--recipes needs a list}
            shift
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
case "$kind" in
    dir) ;;
    redis | cluster) setup+=(--redis) ;;
    *)
        usage >&2
        exit 2
        ;;
esac
if [ -z "$bin" ]; then
    scripts/setup.sh ${setup[@]+"${setup[@]}"}
    echo "demo: building (release; minutes the first time)"
    KVLANE_BUILD=$(scripts/build-word.sh) scripts/build.sh build --release --locked -p dpu-app -p host-ctl
    bin=${CARGO_TARGET_DIR:-target}/release
fi

work=$(mktemp -d)
card=
servers=()
finish() {
    status=$?
    if [ -n "$card" ] && kill -0 "$card" 2>/dev/null; then
        kill "$card"
        wait "$card" || true
    fi
    for server in ${servers[@]+"${servers[@]}"}; do
        kill "$server" 2>/dev/null || true
        wait "$server" || true
    done
    if $keep; then echo "demo: files are in $work"; else rm -rf "$work"; fi
    exit "$status"
}
trap finish EXIT
# Host and card meet by DOCA Comch, under a name of this run.
export KVLANE_COMCH_NAME=kvlane-demo-$$
unset KVLANE_SOCKET KVLANE_ATTACH KVLANE_REPRESENTOR
data=testdata/decoder-kv.safetensors

# Starts a redis-server on a free port and leaves the port in $port.
start_server() {
    local tries=0
    while true; do
        tries=$((tries + 1))
        # A cluster's servers talk at 10000 more.
        port=$((20000 + RANDOM % 20000))
        mkdir --parents "$work/redis-$port"
        redis-server --port "$port" --bind 127.0.0.1 --dir "$work/redis-$port" --save '' --logfile server.log \
            --maxmemory 512mb --maxmemory-policy allkeys-lru "$@" >/dev/null &
        local server=$!
        for _ in $(seq 50); do
            if redis-cli -p "$port" info server 2>/dev/null | grep -q "process_id:$server"; then
                servers+=("$server")
                return 0
            fi
            kill -0 "$server" 2>/dev/null || break
            sleep 0.1
        done
        if [ "$tries" -ge 5 ]; then
            echo "demo: redis-server does not start; its log:" >&2
            cat "$work/redis-$port/server.log" >&2
            exit 1
        fi
    done
}

case "$kind" in
    dir) store=dir:$work/store ;;
    redis)
        start_server
        store=redis://127.0.0.1:$port
        echo "demo: started redis-server on port $port"
        ;;
    cluster)
        hosts=()
        for _ in 1 2 3 4 5 6; do
            start_server --cluster-enabled yes --cluster-node-timeout 2000
            hosts+=("127.0.0.1:$port")
        done
        redis-cli --cluster create "${hosts[@]}" --cluster-replicas 1 --cluster-yes >"$work/cluster.log"
        # A replica shows in the map when it has its master's data.
        for _ in $(seq 100); do
            whole=true
            for host in "${hosts[@]}"; do
                redis-cli -p "$port" cluster slots | grep --quiet --line-regexp "${host#*:}" || whole=false
            done
            $whole && break
            sleep 0.1
        done
        store=redis://$(
            IFS=,
            echo "${hosts[*]}"
        )
        echo "demo: started a cluster of six redis-servers"
        ;;
esac

echo "demo: starting dpu-app on the emulator, store $store"
"$bin/dpu-app" run --store "$store" --socket "$work/dpu-app.sock" >"$work/dpu-app.log" 2>&1 &
card=$!
tries=0
until "$bin/host-ctl" ping --count 1 --quiet >/dev/null 2>&1; do
    tries=$((tries + 1))
    if [ "$tries" -gt 50 ] || ! kill -0 "$card" 2>/dev/null; then
        echo "demo: dpu-app did not start; its log:" >&2
        cat "$work/dpu-app.log" >&2
        exit 1
    fi
    sleep 0.1
done

# The first number of this name in the JSON of a fetch.
field() { sed -n "s/.*\"$1\":\([0-9.]*\).*/\1/p" "$work/fetch.json" | head -n 1; }
# Busy milliseconds of a stage.
stage() { sed -n "s/.*\"$1\":{\"busy_ms\":\([0-9.]*\).*/\1/p" "$work/fetch.json" | awk '{printf "%.1f", $1}'; }
in_millions() { awk '{printf "%.2f", $1 / 1e6}'; }

printf '\nKV cache of a 2048-token prompt (%s), stored and fetched back:\n\n' "$data"
row='%-9s %7s %10s %10s %6s %9s %9s %9s %9s %9s   %s\n'
# shellcheck disable=SC2059
printf "$row" recipe tokens 'raw MB' 'wire MB' ratio 'fetch ms' 'inflate' 'dequant.' 'write' 'MB/s' verdict
failed=0
for recipe in ${recipes//,/ }; do
    "$bin/host-ctl" store "$data" --model demo --recipe "$recipe" --quiet >"$work/store.out"
    "$bin/host-ctl" fetch --model demo --recipe "$recipe" --like "$data" --out "$work/$recipe.safetensors" --json >"$work/fetch.json"
    verdict=$("$bin/host-ctl" compare "$data" "$work/$recipe.safetensors" --recipe "$recipe" --quiet) || failed=1
    # shellcheck disable=SC2059
    printf "$row" "$recipe" "$(field tokens)" "$(field raw_bytes | in_millions)" "$(field wire_bytes | in_millions)" \
        "$(field ratio | awk '{printf "%.2f", $1}')" "$(stage fetch)" "$(stage inflate)" "$(stage dequantize)" \
        "$(stage write)" "$(field raw_mb_s | awk '{printf "%.0f", $1}')" "$verdict"
done

echo
if [ "$kind" != dir ]; then
    "$bin/host-ctl" store-check "$store"
    echo
fi
"$bin/host-ctl" stop --socket "$work/dpu-app.sock" --quiet
wait "$card"
card=
if [ "$failed" = 0 ]; then
    echo "demo: ok: every form came back as promised, through mailbox, DMA, engines and store; the host touched no KV byte"
else
    echo "demo: FAILED: see the verdicts above" >&2
    exit 1
fi
