#!/usr/bin/env bash
# Puts the release before back on a card, with the config that it had if the deploy replaced it. Twice is back again.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=/dev/null
. "$here/bring-up/card.sh"

usage() {
    cat <<'USAGE'
Usage: scripts/rollback.sh [options]
  --card TARGET      user@address over ssh or tmfifo, or local on the card itself [default: ubuntu@192.168.100.2]
  --list             show the releases that are there, newest first, and change nothing
  --to RELEASE       this one instead of the one before
  --wait SECONDS     time for it to become healthy [default: 60]
  --health HOW       ping or active, as for deploy.sh [default: ping]
  --any-route        do not insist that 192.168.100.x goes through tmfifo
  --ssh-option N=V   option for ssh; again for another
  --json             one JSON object on standard output; messages go to standard error
  --dry-run          show what is there and what would be done
  --help             this

Exit codes: 0 runs, 1 does not, 2 wrong arguments, 4 no card.
USAGE
}

wrong() {
    echo "rollback: $1" >&2
    exit 2
}

card=ubuntu@192.168.100.2
list=false
to=
wait_s=60
health=ping
any_route=false
ssh_options=()
json=false
dry_run=false
while [ $# -gt 0 ]; do
    case "$1" in
        --list) list=true ;;
        --any-route) any_route=true ;;
        --json) json=true ;;
        --dry-run) dry_run=true ;;
        --help | -h)
            usage
            exit 0
            ;;
        --card | --to | --wait | --health | --ssh-option)
            [ $# -ge 2 ] || wrong "$1 needs a value"
            case "$1" in
                --card) card=$2 ;;
                --to) to=$2 ;;
                --wait) wait_s=$2 ;;
                --health) health=$2 ;;
                --ssh-option) ssh_options+=("$2") ;;
            esac
            shift
            ;;
        *)
            usage >&2
            wrong "$1: no such option"
            ;;
    esac
    shift
done
case "$wait_s" in '' | *[!0-9]*) wrong "--wait $wait_s: not a number of seconds" ;; esac
case "$health" in ping | active) ;; *) wrong "--health $health: ping or active" ;; esac
card_reach "$card" "${ssh_options[@]}" || exit 2
$any_route || card_route || exit 4

code=0
if $list || $dry_run; then
    answer=$(card_bash "$here/bring-up/release.sh" list) || code=$?
    if [ "$code" != 0 ]; then
        card_explain "$code"
        [ "$code" != 255 ] || code=4
        exit "$code"
    fi
    lines=$(sed --quiet 's/^release //p' <<<"$answer")
    if $json; then
        printf '{"command":"rollback","releases":['
        comma=
        while read -r name mark label; do
            [ -n "$name" ] || continue
            label=${label//\\/\\\\}
            printf '%s{"release":"%s","is":"%s","label":"%s"}' "$comma" "$name" "$mark" "${label//\"/\\\"}"
            comma=,
        done <<<"$lines"
        printf ']}\n'
    else
        [ -z "$lines" ] || awk '{ printf "%-12s  %-8s  %s\n", $1, $2, $3 }' <<<"$lines"
    fi
    if $dry_run; then
        target=${to:-$(awk '$2 == "previous" { print $1 }' <<<"$lines")}
        echo "rollback: would switch $card to ${target:-nothing: there is no release before}, restart dpu-app and wait up to $wait_s s" >&2
    fi
    exit 0
fi

arguments=(rollback --wait "$wait_s" --health "$health")
[ -z "$to" ] || arguments+=(--release "$to")
answer=$(card_bash "$here/bring-up/release.sh" "${arguments[@]}") || code=$?
line=$(grep '^result ' <<<"$answer" | tail -n 1 || true)
word() {
    local part
    for part in $line; do
        if [ "${part%%=*}" = "$1" ]; then echo "${part#*=}"; fi
    done
}
if [ -z "$line" ]; then
    card_explain "$code"
    [ "$code" != 255 ] || code=4
    [ "$code" != 0 ] || code=1
fi
if $json; then
    printf '{"command":"rollback","ok":%s,"running":"%s","previous":"%s","version":"%s","changed":"%s","health":"%s"}\n' \
        "$([ "$code" = 0 ] && echo true || echo false)" "$(word release)" "$(word previous)" "$(word version | tr '_' ' ')" "$(word changed)" "$(word health)"
fi
if [ "$code" = 0 ]; then
    echo "rollback: ok: $(word release) runs on $card, changed: $(word changed), before it: $(word previous | grep . || echo none)" >&2
else
    echo "rollback: FAILED: running on $card: $(word release | grep . || echo unknown) (health: $(word health | grep . || echo unknown))" >&2
fi
exit "$code"
