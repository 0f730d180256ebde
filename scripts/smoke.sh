#!/usr/bin/env bash
# Stores a KV cache through dpu-app, fetches it back and compares: the shortest proof that a card works. One pass line.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

usage() {
    cat <<'USAGE'
Usage: scripts/smoke.sh [options]
  --card TARGET      run it on that card (user@address), sending what it needs [default: here]
  --data FILE        safetensors file with a KV cache [default: testdata/decoder-kv.safetensors]
  --recipes LIST     comma-separated; lossless has to come back bit for bit, others within their bound [default: lossless,q5]
  --bin DIR          where host-ctl is [default: /opt/kvlane/current/bin, then PATH]
  --socket PATH      go by dpu-app's socket [default: KVLANE_SOCKET, else /run/kvlane/dpu-app.sock where it is there, as on
                     the card; else by DOCA Comch, as from the host]
  --comch-name NAME  name that dpu-app serves by DOCA Comch, instead of any socket
  --device NAME      device of the side that host-ctl runs on [default: the first that fits]
  --require-card     fail when dpu-app is the emulator, or when software did the engine's work
  --any-route        do not insist that 192.168.100.x goes through tmfifo
  --ssh-option N=V   option for ssh and scp; again for another
  --keep             leave the fetched files behind and say where
  --json             one JSON object
  --dry-run          print the commands, run none
  --help             this

What it stores stays in the store under the model name kvlane-smoke until it is evicted.
Exit codes: 0 pass, 1 wrong data or a failed command, 2 wrong arguments, 3 not the card's engines (--require-card), 4 no dpu-app.
USAGE
}

wrong() {
    echo "smoke: $1" >&2
    exit 2
}

card=
data=
recipes=lossless,q5
bin=
socket=${KVLANE_SOCKET:-}
comch_name=
device=
require_card=false
any_route=false
ssh_options=()
keep=false
json=false
dry_run=false
passed_on=()
while [ $# -gt 0 ]; do
    case "$1" in
        --require-card | --json | --dry-run | --keep) passed_on+=("$1") ;;
        --recipes | --bin | --socket | --comch-name | --device) passed_on+=("$1" "${2:-}") ;;
    esac
    case "$1" in
        --require-card) require_card=true ;;
        --any-route) any_route=true ;;
        --keep) keep=true ;;
        --json) json=true ;;
        --dry-run) dry_run=true ;;
        --help | -h)
            usage
            exit 0
            ;;
        --card | --data | --recipes | --bin | --socket | --comch-name | --device | --ssh-option)
            [ $# -ge 2 ] || wrong "$1 needs a value"
            case "$1" in
                --card) card=$2 ;;
                --data) data=$2 ;;
                --recipes) recipes=$2 ;;
                --bin) bin=$2 ;;
                --socket) socket=$2 ;;
                --comch-name) comch_name=$2 ;;
                --device) device=$2 ;;
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
data=${data:-$here/../testdata/decoder-kv.safetensors}
[ -r "$data" ] || wrong "--data $data: cannot be read"
case "$recipes" in '' | *[!a-z0-9+,]*) wrong "--recipes $recipes: a list like lossless,q5" ;; esac

if [ -n "$card" ]; then
    # shellcheck source=/dev/null
    . "$here/bring-up/card.sh"
    card_reach "$card" "${ssh_options[@]}" || exit 2
    if $dry_run; then
        echo "smoke: would send $data to $card and run this script there with: ${passed_on[*]}"
        exit 0
    fi
    $any_route || card_route || exit 4
    staging=$(card_put "$data") || {
        card_explain 255
        exit 4
    }
    code=0
    card_bash "$0" --data "$staging/$(basename "$data")" "${passed_on[@]}" || code=$?
    card_plain "rm -rf '$staging'" || true
    if [ "$code" = 255 ]; then
        card_explain 255
        code=4
    fi
    exit "$code"
fi

client=host-ctl
if [ -n "$bin" ]; then
    client=$bin/host-ctl
elif [ -x "${KVLANE_ROOT:-}/opt/kvlane/current/bin/host-ctl" ]; then
    client=${KVLANE_ROOT:-}/opt/kvlane/current/bin/host-ctl
fi
if [ -n "$comch_name" ]; then
    socket=
elif [ -z "$socket" ] && [ -e "${KVLANE_ROOT:-}/run/kvlane/dpu-app.sock" ]; then
    socket=${KVLANE_ROOT:-}/run/kvlane/dpu-app.sock
fi
attach=()
[ -z "$comch_name" ] || attach+=(--comch-name "$comch_name")
[ -z "$socket" ] || attach+=(--socket "$socket")
way=${socket:-DOCA Comch}
unset KVLANE_SOCKET
[ -z "$device" ] || attach+=(--device "$device")

if $dry_run; then
    echo "smoke: would run, and ran none of:"
    echo "  $client ping --count 10 ${attach[*]}"
    for recipe in ${recipes//,/ }; do
        echo "  $client store $data --model kvlane-smoke --recipe $recipe --again ${attach[*]}"
        echo "  $client fetch --model kvlane-smoke --recipe $recipe --like $data --out TEMPORARY ${attach[*]}"
        echo "  $client compare $data TEMPORARY --recipe $recipe"
    done
    echo "  $client status ${attach[*]}"
    exit 0
fi
command -v "$client" >/dev/null 2>&1 || wrong "no $client here: install host-ctl, or name its directory by --bin"

# The card reaches into host-ctl's memory and only its socket's owner may attach: run as that user.
as=()
if [ "$(id -u)" = 0 ] && [ -n "$socket" ] && [ -e "$socket" ]; then
    owner=$(stat --format=%u:%g "$socket")
    # Not runuser: PAM would put the login's memory limit back.
    [ "${owner%:*}" = 0 ] || as=(setpriv --reuid "${owner%:*}" --regid "${owner#*:}" --clear-groups --)
fi
work=$(mktemp -d)
finish() {
    status=$?
    if $keep; then echo "smoke: files are in $work" >&2; else rm --recursive --force "$work"; fi
    exit "$status"
}
trap finish EXIT
if [ ${#as[@]} -gt 0 ]; then
    # That user reads the data and writes the fetched file, and needs the card's memory limit as a service has it.
    cp "$data" "$work/data.safetensors"
    chown --recursive "$owner" "$work"
    data=$work/data.safetensors
    ulimit -l unlimited 2>/dev/null || true
fi
ctl() { "${as[@]}" "$client" "$@"; }

answers=()
# What went wrong, exit code, what to do
fail() {
    if $json; then
        local text=${1//\\/\\\\}
        text=${text//\"/\\\"}
        printf '{"command":"smoke","ok":false,"error":"%s"}\n' "${text//[[:cntrl:]]/ }"
    fi
    echo "smoke: FAIL: $1" >&2
    [ -z "${3:-}" ] || echo "smoke: fix: $3" >&2
    exit "$2"
}
# The last line of what a command said, or that it said nothing.
last_word() { tail -n 1 "$work/errors" 2>/dev/null | grep . || echo "no word"; }
# The first number or word of this name in a compact JSON file.
field() { sed --quiet "s/.*\"$2\":\"\{0,1\}\([^,\"}]*\).*/\1/p" "$1" | head -n 1; }

code=0
ctl ping --count 10 --json "${attach[@]}" >"$work/ping.json" 2>"$work/errors" || code=$?
[ "$code" = 0 ] || fail "no answer at $way: $(last_word)" "$code" \
    "systemctl status dpu-app on the card; scripts/preflight.sh --role card; scripts/deploy.sh"
ctl status --json "${attach[@]}" >"$work/before.json" 2>"$work/errors" || fail "status: $(last_word)" 4 "use one build on both sides"
flavour=$(field "$work/before.json" flavour)
if $require_card && [ "$flavour" = emulator ]; then
    fail "dpu-app is the emulator: no card did anything" 3 "build it with --no-default-features --features sdk and deploy that"
fi

for recipe in ${recipes//,/ }; do
    out=$work/$recipe
    ctl store "$data" --model kvlane-smoke --recipe "$recipe" --again --json "${attach[@]}" >"$out.store" 2>"$work/errors" ||
        fail "store with $recipe: $(last_word)" 1 "scripts/collect.sh gathers what is needed to find out"
    ctl fetch --model kvlane-smoke --recipe "$recipe" --like "$data" --out "$out.safetensors" --json "${attach[@]}" >"$out.fetch" 2>"$work/errors" ||
        fail "fetch with $recipe: $(last_word)" 1 "scripts/collect.sh gathers what is needed to find out"
    [ "$(field "$out.fetch" whole)" = true ] || fail "fetch with $recipe: $(field "$out.fetch" chunks_fetched) of $(field "$out.store" chunks) chunks came back" 1 \
        "the store evicted or lost some: look at bytes in its URL and at dpu-app scrub"
    verdict=$(ctl compare "$data" "$out.safetensors" --recipe "$recipe" --quiet 2>"$work/errors") ||
        fail "compare with $recipe: ${verdict:-$(last_word)}" 1 "the data came back wrong: keep it (--keep), run scripts/collect.sh and tell us"
    answers+=("$recipe|$(field "$out.fetch" tokens)|$(field "$out.fetch" raw_bytes)|$(field "$out.fetch" wire_bytes)|$(field "$out.fetch" seconds)|$(field "$out.fetch" raw_mb_s)|$verdict")
done
ctl status --json "${attach[@]}" >"$work/after.json" 2>"$work/errors" || fail "status: $(last_word)" 4 "dpu-app went away meanwhile: journalctl --unit dpu-app"
software=$(($(field "$work/after.json" blocks_in_software) - $(field "$work/before.json" blocks_in_software)))
restarts=$(($(field "$work/after.json" engine_restarts) - $(field "$work/before.json" engine_restarts)))
if $require_card && [ "$software" -gt 0 ]; then
    fail "$software blocks were inflated in software" 3 "allow-software is set, or the engine rejects good blocks: preflight, then collect.sh"
fi

ping_us=$(field "$work/ping.json" p50_us)
if $json; then
    printf '{"command":"smoke","ok":true,"flavour":"%s","device":"%s","version":"%s","crc":"%s","blocks_in_software":%d,"engine_restarts":%d,"ping":%s,"runs":[' \
        "$flavour" "$(field "$work/after.json" device)" "$(field "$work/after.json" version)" "$(field "$work/after.json" crc)" \
        "$software" "$restarts" "$(grep '^{.*}$' "$work/ping.json" || echo null)"
    comma=
    for answer in "${answers[@]}"; do
        IFS='|' read -r recipe tokens raw wire seconds rate verdict <<<"$answer"
        printf '%s{"recipe":"%s","tokens":%s,"raw_bytes":%s,"wire_bytes":%s,"seconds":%s,"raw_mb_s":%s,"verdict":"%s"}' \
            "$comma" "$recipe" "$tokens" "$raw" "$wire" "$seconds" "$rate" "$verdict"
        comma=,
    done
    printf ']}\n'
    exit 0
fi
printf '%-10s %7s %9s %9s %9s %8s   %s\n' recipe tokens 'raw MB' 'wire MB' 'fetch ms' 'MB/s' verdict
for answer in "${answers[@]}"; do
    IFS='|' read -r recipe tokens raw wire seconds rate verdict <<<"$answer"
    awk -v recipe="$recipe" -v tokens="$tokens" -v raw="$raw" -v wire="$wire" -v seconds="$seconds" -v rate="$rate" -v verdict="$verdict" \
        'BEGIN { printf "%-10s %7d %9.2f %9.2f %9.1f %8.0f   %s\n", recipe, tokens, raw / 1e6, wire / 1e6, seconds * 1e3, rate, verdict }'
done
[ "$software" = 0 ] || echo "smoke: warning: $software blocks were inflated in software" >&2
[ "$restarts" = 0 ] || echo "smoke: warning: the engines were restarted $restarts times" >&2
where="device $(field "$work/after.json" device), dpu-app $(field "$work/after.json" version), CRC by $(field "$work/after.json" crc)"
[ "$flavour" != emulator ] || where="EMULATOR, no card: dpu-app $(field "$work/after.json" version)"
echo "smoke: pass: ${recipes//,/ and } stored, fetched and compared, ping ${ping_us:-unknown} us ($where)"
