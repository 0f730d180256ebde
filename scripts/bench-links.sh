#!/usr/bin/env bash
# Measures fetches from a real Redis over links of limited bandwidth: the report `links` of scripts/bench.sh.
# The servers run in a network namespace of their own behind a veth pair; `tc tbf` limits what they send.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
    cat <<'USAGE'
Usage: scripts/bench-links.sh [--rates LIST] [--recipes LIST] [--gb N] [--runs N] [--cluster] [--quick] [--yes]
  --rates LIST    Gbit/s of the link, comma-separated; loopback: no link [default: loopback,1,2.5,5,10]
  --recipes LIST  comma-separated [default: lossless,q5,q4,q3,q8+raw]
  --gb N          GiB of restored bf16 [default: 1]
  --runs N        fetches of which the median counts [default: 3]
  --cluster       three masters (on loopback or behind the link) instead of one server
  --quick         two chunks of one recipe, once, on loopback and on 1 Gbit/s: to see that it works
  --yes           install what is missing (redis-server, iperf3, iproute2) without asking
Needs root for the namespace. Loopback alone (--rates loopback) does not.
USAGE
}

rates=loopback,1,2.5,5,10
recipes=lossless,q5,q4,q3,q8+raw
gb=1
runs=3
cluster=false
yes=false
quick=()
while [ $# -gt 0 ]; do
    case "$1" in
        --rates) rates=${2:?--rates needs a list} && shift ;;
        --recipes) recipes=${2:?--recipes needs a list} && shift ;;
        --gb) gb=${2:?--gb needs a number} && shift ;;
        --runs) runs=${2:?--runs needs a number} && shift ;;
        --cluster) cluster=true ;;
        --quick)
            quick=(--quick)
            rates=loopback,1
            recipes=q5
            ;;
        --yes) yes=true ;;
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

scripts/bench-tools.sh bench-links "$yes"
if [ "$rates" != loopback ] && [ "$(id -u)" != 0 ]; then
    echo "bench-links: a network namespace needs root: run with sudo, or with --rates loopback" >&2
    exit 2
fi

# Addresses that RFC 2544 sets aside for benchmarks.
near=198.18.77.1
far=198.18.77.2
space=kvlane-bench
link=kvl-bench
work=$(mktemp -d)
servers=()
finish() {
    status=$?
    [ ${#servers[@]} = 0 ] || kill "${servers[@]}" 2>/dev/null || true
    ip netns delete "$space" 2>/dev/null || true
    rm -rf "$work"
    exit "$status"
}
trap finish EXIT

# serve HOST [COMMAND...]: starts one server, or three masters, on HOST; sets `nodes`.
serve() {
    local host=$1 ports=(7391) port tries
    shift
    $cluster && ports=(7391 7392 7393)
    servers=()
    nodes=()
    for port in "${ports[@]}"; do
        mkdir -p "$work/$port"
        local options=(--bind "$host" --port "$port" --dir "$work/$port" --save '' --appendonly no --protected-mode no)
        $cluster && options+=(--cluster-enabled yes)
        "$@" redis-server "${options[@]}" >"$work/$port.log" 2>&1 &
        servers+=($!)
        nodes+=("$host:$port")
    done
    for port in "${ports[@]}"; do
        tries=0
        until redis-cli -h "$host" -p "$port" ping >/dev/null 2>&1; do
            tries=$((tries + 1))
            [ "$tries" -lt 100 ] || {
                echo "bench-links: redis-server did not start on $host:$port: $(tail -n 3 "$work/$port.log")" >&2
                exit 1
            }
            sleep 0.1
        done
    done
    if $cluster; then
        redis-cli --cluster create "${nodes[@]}" --cluster-yes >"$work/cluster.log" 2>&1
        until redis-cli -h "$host" -p 7391 cluster info | grep --quiet cluster_state:ok; do sleep 0.1; done
    fi
}

stop() {
    kill "${servers[@]}"
    wait "${servers[@]}" 2>/dev/null || true
    servers=()
}

for rate in ${rates//,/ }; do
    arguments=()
    if [ "$rate" = loopback ]; then
        serve 127.0.0.1
        title=loopback
    else
        ip netns add "$space"
        ip link add "$link" type veth peer name eth0 netns "$space"
        ip address add "$near/30" dev "$link"
        ip link set "$link" up
        ip netns exec "$space" ip address add "$far/30" dev eth0
        ip netns exec "$space" ip link set eth0 up
        ip netns exec "$space" ip link set lo up
        ip netns exec "$space" tc qdisc add dev eth0 root tbf rate "${rate}gbit" burst 1mb latency 50ms
        ip netns exec "$space" iperf3 --server --one-off --daemon
        sleep 0.5
        carried=$(iperf3 --client "$far" --reverse --time 5 --json |
            python3 -c 'import json,sys; print(round(json.load(sys.stdin)["end"]["sum_received"]["bits_per_second"]/1e9, 3))')
        arguments+=(--link "$carried")
        title="a link of $rate Gbit/s, which carries $carried by iperf3"
        serve "$far" ip netns exec "$space"
    fi
    $cluster && title+=", three masters"
    plain=$(printf ',redis://%s' "${nodes[@]}")
    cargo bench --quiet -p dpu-app --bench link -- --store "redis://$(IFS=,; echo "${nodes[*]}")" --plain "${plain#,}" \
        --title "$title" --gb "$gb" --runs "$runs" --recipes "$recipes" --dir "$work/bench" ${arguments[@]+"${arguments[@]}"} \
        ${quick[@]+"${quick[@]}"}
    echo
    stop
    [ "$rate" = loopback ] || ip netns delete "$space"
done
