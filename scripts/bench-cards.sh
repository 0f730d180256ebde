#!/usr/bin/env bash
# Measures four cards that share one Redis over one link, without and with tiers of their own: the report `tiers-cards`
# of scripts/bench.sh. Each card and its host are in a network namespace, the server is in another; `tc tbf` limits what
# it sends.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
    cat <<'USAGE'
Usage: scripts/bench-cards.sh [--rate MBIT] [--cards N] [--requests N] [--runs N] [--recipe R] [--quick] [--yes]
  --rate MBIT    Mbit/s of the server's link, which all cards share [default: 500]
  --cards N      [default: 4]
  --requests N   of the trace; two thirds fill the tiers, the last third is measured [default: 900]
  --runs N       of each variant, in turn, of which the median counts [default: 3]
  --recipe R     [default: q8+raw]
  --quick        60 requests, once: to see that it works
  --yes          install what is missing (redis-server, iperf3, iproute2) without asking
Needs root for the namespaces, and 3 GB of memory.
USAGE
}

rate=500
cards=4
yes=false
more=()
while [ $# -gt 0 ]; do
    case "$1" in
        --rate) rate=${2:?--rate needs a number} && shift ;;
        --cards) cards=${2:?--cards needs a number} && shift ;;
        --requests | --runs | --recipe) more+=("$1" "${2:?$1 needs a value}") && shift ;;
        --quick) more+=(--quick) ;;
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

scripts/bench-tools.sh bench-cards "$yes"
if [ "$(id -u)" != 0 ]; then
    echo "bench-cards: network namespaces need root: run with sudo" >&2
    exit 2
fi

# Addresses that RFC 2544 sets aside for benchmarks: the server has .1, this namespace .2, cards .10 and up.
net=198.18.78
server=$net.1
hub=kvlane-cards
work=$(mktemp -d)
redis=
spaces=()
finish() {
    status=$?
    [ -z "$redis" ] || kill "$redis" 2>/dev/null || true
    for space in "$hub" ${spaces[@]+"${spaces[@]}"}; do
        ip netns delete "$space" 2>/dev/null || true
    done
    # Its other end went with the namespace; where that was never made, this is all of it.
    ip link delete kvl-cards 2>/dev/null || true
    rm -rf "$work"
    exit "$status"
}
trap finish EXIT

# plug NAME: one end of a cable, named NAME, in this namespace, the other in the server's bridge.
plug() {
    ip link add "$1" type veth peer name "$1" netns "$hub"
    ip netns exec "$hub" ip link set "$1" master hub
    ip netns exec "$hub" ip link set "$1" up
}

ip netns add "$hub"
ip netns exec "$hub" ip link set lo up
ip netns exec "$hub" ip link add hub type bridge
ip netns exec "$hub" ip address add "$server/24" dev hub
ip netns exec "$hub" ip link set hub up
# What the server sends leaves by the bridge's own device, whoever it is for: one link for all.
ip netns exec "$hub" tc qdisc add dev hub root tbf rate "${rate}mbit" burst 1mb latency 50ms
plug kvl-cards
ip address add "$net.2/24" dev kvl-cards
ip link set kvl-cards up
for card in $(seq 1 "$cards"); do
    space=$hub-$card
    ip netns add "$space"
    spaces+=("$space")
    plug "kvl-card-$card"
    ip link set "kvl-card-$card" netns "$space" name eth0
    ip netns exec "$space" ip address add "$net.$((9 + card))/24" dev eth0
    ip netns exec "$space" ip link set eth0 up
    ip netns exec "$space" ip link set lo up
done

ip netns exec "$hub" redis-server --bind "$server" --port 7391 --dir "$work" --save '' --appendonly no \
    --protected-mode no >"$work/redis.log" 2>&1 &
redis=$!
tries=0
until redis-cli -h "$server" -p 7391 ping >/dev/null 2>&1; do
    tries=$((tries + 1))
    [ "$tries" -lt 100 ] || {
        echo "bench-cards: redis-server did not start on $server:7391: $(tail -n 3 "$work/redis.log")" >&2
        exit 1
    }
    sleep 0.1
done
ip netns exec "$hub" iperf3 --server --one-off --daemon
sleep 0.5
carried=$(ip netns exec "${spaces[0]}" iperf3 --client "$server" --reverse --time 5 --json |
    python3 -c 'import json,sys; print(round(json.load(sys.stdin)["end"]["sum_received"]["bits_per_second"]/1e9, 3))')

cargo bench --quiet -p dpu-app --bench cards -- --redis "redis://$server:7391" --spaces "$(IFS=,; echo "${spaces[*]}")" \
    --link "$carried" --dir "$work/cards" ${more[@]+"${more[@]}"}
