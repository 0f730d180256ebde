#!/usr/bin/env bash
# Gathers what one needs to find a fault into one file: versions, limits, status, logs, preflight. Changes nothing, and
# takes secrets out: every text passes bring-up/redact.sed, and the bundle is not written when a password that stands
# in the config, the unit or the environment is still in it.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

usage() {
    cat <<'USAGE'
Usage: scripts/collect.sh --role host|card [options]
  --role ROLE        which side this machine is
  --out FILE         the bundle, a .tar.gz [default: kvlane-ROLE-DATE.tar.gz here]
  --card TARGET      on the host: also gather that card's side (user@address) into the same bundle
  --lines N          newest lines of each log [default: 2000]
  --bin DIR          where dpu-app and host-ctl are [default: /opt/kvlane/current/bin, then PATH]
  --device ADDRESS   passed on to preflight.sh
  --any-route        do not insist that 192.168.100.x goes through tmfifo
  --ssh-option N=V   option for ssh and scp; again for another
  --json             one JSON object on standard output
  --dry-run          list what would be gathered
  --help             this

Never gathered: stored chunks, anything of /etc outside /etc/kvlane/dpu-app.conf, the environment, other programs' logs.
Exit codes: 0 written, 1 not written, 2 wrong arguments, 4 the card could not be reached (the rest is written).
USAGE
}

wrong() {
    echo "collect: $1" >&2
    exit 2
}

role=
out=
card=
lines=2000
bin=
device=
any_route=false
ssh_options=()
json=false
dry_run=false
while [ $# -gt 0 ]; do
    case "$1" in
        --any-route) any_route=true ;;
        --json) json=true ;;
        --dry-run) dry_run=true ;;
        --help | -h)
            usage
            exit 0
            ;;
        --role | --out | --card | --lines | --bin | --device | --ssh-option)
            [ $# -ge 2 ] || wrong "$1 needs a value"
            case "$1" in
                --role) role=$2 ;;
                --out) out=$2 ;;
                --card) card=$2 ;;
                --lines) lines=$2 ;;
                --bin) bin=$2 ;;
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
case "$role" in host | card) ;; *) wrong "--role must be host or card" ;; esac
case "$lines" in '' | *[!0-9]*) wrong "--lines $lines: not a number" ;; esac
if [ -n "$card" ] && [ "$role" = card ]; then wrong "--card is for --role host"; fi
root=${KVLANE_ROOT:-}
out=${out:-kvlane-$role-$(date --utc +%Y%m%dT%H%M%SZ).tar.gz}
config=$root/etc/kvlane/dpu-app.conf

# A program of ours: where it was named, where deploy.sh puts it, or on the way.
ours() {
    local at
    for at in ${bin:+"$bin/$1"} "$root/opt/kvlane/current/bin/$1"; do
        if [ -x "$at" ]; then
            echo "$at"
            return
        fi
    done
    echo "$1"
}

work=$(mktemp -d)
trap 'rm --recursive --force "$work"' EXIT
bundle=$work/kvlane-$role
mkdir "$bundle"
count=0
redact() { sed --regexp-extended --file="$here/bring-up/redact.sed"; }

# Keeps what a command prints, redacted, with its exit code on the last line. A command that is not here is noted, too.
keep() {
    local name=$1 code=0
    shift
    count=$((count + 1))
    if $dry_run; then
        printf '  %-22s %s\n' "$name" "$*"
        return
    fi
    {
        echo "$ $*" | redact
        if command -v "$1" >/dev/null 2>&1; then
            # Redaction before the cut: half of a PEM block has no end.
            { timeout 60 "$@" 2>&1 </dev/null || echo "(exit code $?)"; } | redact | tail -n "$lines" || code=$?
        else
            echo "(no $1 here)"
        fi
        [ "$code" = 0 ] || echo "(cut short: $code)"
    } >"$bundle/$name.txt"
}
keep_file() { if $dry_run || [ -e "$2" ]; then keep "$1" cat "$2"; fi; }

! $dry_run || echo "collect: would gather into $out, every text without its secrets:"
app=$(ours dpu-app)
ctl=$(ours host-ctl)
keep system-uname uname -srvm
keep_file system-release "$root/etc/os-release"
keep system-glibc getconf GNU_LIBC_VERSION
keep system-cpu lscpu
keep system-memory cat "$root/proc/meminfo"
keep system-limits bash -c 'ulimit -a'
keep system-disk df --human-readable /var/lib /opt
keep preflight-text bash "$here/preflight.sh" --role "$role" ${device:+--device "$device"}
keep preflight-json bash "$here/preflight.sh" --role "$role" ${device:+--device "$device"} --json
keep device-pci lspci -D -nn -vv -d 15b3:
keep device-links ip -details address show
keep device-routes ip route show table all
keep device-doca doca_caps --list-devs
keep device-ofed ofed_info -s
keep device-kernel bash -c 'dmesg --ctime 2>/dev/null | grep --extended-regexp --ignore-case "mlx5|mlxbf|rshim|tmfifo|hugetlb|oom|doca"'
if [ "$role" = host ]; then
    keep device-rshim systemctl status rshim --no-pager
    keep device-rshim-log bash -c 'cat '"$root"'/dev/rshim*/misc'
else
    keep_file device-image "$root/etc/mlnx-release"
    keep_file app-config "$config"
    keep app-version "$app" --version
    keep app-devices "$app" devices
    keep app-limits "$app" limits --config "$config"
    keep app-unit systemctl cat dpu-app --no-pager
    keep app-service systemctl status dpu-app --no-pager --lines 0
    keep app-log journalctl --unit dpu-app --lines "$lines" --no-pager --output short-iso
    keep app-releases bash -c 'ls -l '"$root"'/opt/kvlane '"$root"'/opt/kvlane/releases'
    # The socket belongs to the service's user; as in smoke.sh.
    socket=$(sed --quiet 's/#.*//; s/^[[:space:]]*socket[[:space:]]*=[[:space:]]*//p' "$config" 2>/dev/null | tail -n 1 | tr --delete '[:space:]' || true)
    socket=$root${socket:-/run/kvlane/dpu-app.sock}
    as=()
    if [ "$(id -u)" = 0 ] && [ -e "$socket" ]; then
        owner=$(stat --format=%u:%g "$socket")
        [ "${owner%:*}" = 0 ] || as=(setpriv --reuid "${owner%:*}" --regid "${owner#*:}" --clear-groups --)
    fi
    keep app-status "${as[@]}" "$ctl" status --json --socket "$socket"
    keep app-ping "${as[@]}" "$ctl" ping --count 10 --socket "$socket"
fi
keep client-version "$ctl" --version

code=0
if [ -n "$card" ] && $dry_run; then
    echo "  card/                  the card's side, gathered on $card"
elif [ -n "$card" ]; then
    # shellcheck source=/dev/null
    . "$here/bring-up/card.sh"
    card_reach "$card" "${ssh_options[@]}" || exit 2
    # The scripts travel, run there as root, and the bundle comes back on standard output.
    if { $any_route || card_route; } && staging=$(card_put "$here/collect.sh" "$here/preflight.sh" "$here/bring-up"); then
        printf 'bash "%s/collect.sh" --role card --lines %d --out "%s/card.tar.gz" >&2 && cat "%s/card.tar.gz"\n' \
            "$staging" "$lines" "$staging" "$staging" >"$work/gather"
        mkdir "$bundle/card"
        card_bash "$work/gather" | tar --extract --gzip --directory "$bundle/card" --strip-components 1 || code=4
        # The card's bundle is root's there.
        printf 'rm -rf "%s"\n' "$staging" >"$work/clean"
        card_bash "$work/clean" || true
    else
        code=4
    fi
    [ "$code" = 0 ] || echo "collect: the card's side is missing: run collect.sh --role card there" >&2
fi
if $dry_run; then exit 0; fi

# The passwords that we know of: whatever stands between :// and @, or after a telling name, in config, unit,
# environment.
known() {
    {
        cat "$config" 2>/dev/null || true
        systemctl cat dpu-app --no-pager 2>/dev/null || true
        systemctl show dpu-app --property=Environment 2>/dev/null || true
        env | grep '^KVLANE_' || true
    } | sed --quiet --regexp-extended \
        's#.*://[^:@[:space:]]*:([^[:space:]"'\'']*)@.*#\1#p; /store|STORE/s#.*[:/]([^:/@]+)@.*#\1#p; s#.*(password|passwd|secret|token|key)[a-z_-]*=([^&[:space:]"'\'']+).*#\2#Ip' |
        awk 'length($0) >= 4' | sort --unique
}
known >"$work/known"
if [ -s "$work/known" ] && grep --recursive --quiet --fixed-strings --file="$work/known" "$bundle"; then
    echo "collect: a password of the config is still in $(grep --recursive --files-with-matches --fixed-strings --file="$work/known" "$bundle" |
        xargs --max-args=1 basename | tr '\n' ' '): nothing was written. Tell us which form it has, without the password" >&2
    exit 1
fi
rm "$work/known"
(umask 077 && tar --create --gzip --file "$work/bundle.tar.gz" --directory "$work" "$(basename "$bundle")")
cp "$work/bundle.tar.gz" "$out" || {
    echo "collect: $out cannot be written: choose another --out" >&2
    exit 1
}
bytes=$(stat --format=%s "$out")
if $json; then
    path=${out//\\/\\\\}
    printf '{"command":"collect","ok":true,"out":"%s","bytes":%d,"files":%d,"card":%s}\n' "${path//\"/\\\"}" "$bytes" \
        "$(tar --list --file "$out" | grep --count --invert-match '/$')" "$([ -d "$bundle/card" ] && [ "$code" = 0 ] && echo true || echo false)"
else
    echo "collect: $out, $bytes bytes, $count texts of this side. Secrets were taken out by rule: read it before you send it"
fi
exit "$code"
