#!/usr/bin/env bash
# Tests of the bring-up scripts against recorded answers and fakes: no card, no root, no network, a few seconds.
# Every claim is one line; a claim that does not hold prints what was seen instead. --keep leaves the cases behind.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
scripts=$(cd "$here/.." && pwd)
keep=false
case "${1:-}" in
    '') ;;
    --keep) keep=true ;;
    *)
        echo "Usage: scripts/tests/run.sh [--keep]" >&2
        exit 2
        ;;
esac
work=$(mktemp -d)
finish() {
    status=$?
    if $keep; then echo "tests: cases are in $work" >&2; else rm -rf "$work"; fi
    exit "$status"
}
trap finish EXIT
unset KVLANE_ROOT KVLANE_SOCKET
export LC_ALL=C

# Only these tools of the machine: what a case should lack is not found beside it.
tools=$work/tools
mkdir "$tools"
for tool in awk base64 basename bash cat chgrp chmod chown cmp cp cut date dd df dirname dpkg-deb du env false find flock getent grep gzip head id \
    install ln ls mkdir mktemp mv od paste printf readlink rm sed sh sha256sum sleep sort stat stdbuf tail tar tee timeout touch tr true wc xargs; do
    path=$(command -v "$tool" || true)
    case "$path" in /*) ln -s "$path" "$tools/$tool" ;; esac
done

passed=0
failed=0
claim_text=
claim_good=true
close_claim() {
    [ -n "$claim_text" ] || return 0
    if $claim_good; then
        passed=$((passed + 1))
        echo "ok    $claim_text"
    else
        failed=$((failed + 1))
        echo "FAIL  $claim_text"
    fi
}
claim() {
    close_claim
    claim_text=$1
    claim_good=true
}
miss() {
    claim_good=false
    printf '      %s\n' "$1" "code $code, $cell; output:" >&2
    sed 's/^/      | /' "$out" >&2
}
expect_code() { [ "$code" = "$1" ] || miss "expected code $1"; }
# Every word has to be in the output; every word must not.
expect() {
    local words
    local text
    text=$(<"$out")
    for words in "$@"; do [[ $text == *"$words"* ]] || miss "expected: $words"; done
}
refute() {
    local words
    local text
    text=$(<"$out")
    for words in "$@"; do [[ $text != *"$words"* ]] || miss "not expected: $words"; done
}
not() { ! "$@"; }
# A condition of the shell, with its words for the report.
holds() { "$@" || miss "does not hold: $*"; }

side=
out=$work/out
code=0
# A healthy pair of machines; every case starts with a copy of it.
for role in host card; do
    at=$work/pair/$role
    devices=$at/root/sys/bus/pci/devices
    address=0000:03:00.0
    [ "$role" = card ] || address=0000:3b:00.0
    mkdir -p "$at/bin" "$at/answers" "$at/tmp" "$devices/$address/infiniband/mlx5_0" "$devices/../drivers/mlx5_core" "$devices/../drivers/vfio-pci"
    cp -r "$here/recorded/$role/root/." "$at/root"
    cp "$here/recorded/$role"/[!r]* "$at/answers/"
    echo 32.45.1020 >"$devices/$address/infiniband/mlx5_0/fw_ver"
    ln -s ../../drivers/mlx5_core "$devices/$address/driver"
    for tool in uname getconf lspci mlxconfig ofed_info pkg-config doca_caps ip systemctl journalctl lscpu dmesg dpkg systemd-sysusers; do
        ln -s "$here/fakes/answer" "$at/bin/$tool"
    done
    ln -s "$here"/fakes/{ssh,scp,sudo,sysctl} "$at/bin/"
    : >"$at/calls"
done
cases=0
# A fresh pair; every later change and run is on this side of it.
fresh() {
    side=$1
    cases=$((cases + 1))
    cell=$work/case-$part-$cases
    cp -a "$work/pair" "$cell"
}
answer() { cat >"$cell/$side/answers/$1"; }
machine() { echo "$cell/$side/root"; }
lacks() { rm "$cell/$side/bin/$1"; }
run() {
    code=0
    (
        cd "$cell/$side"
        env --ignore-environment PATH="$cell/$side/bin:$tools" FAKE="$cell/$side" FAKE_TOOLS="$tools" HOME="$cell/$side" \
            TMPDIR="$cell/$side/tmp" KVLANE_ROOT="$cell/$side/root" LC_ALL=C "$@"
    ) >"$out" 2>&1 </dev/null || code=$?
}
# The limit of this login is the machine's that runs the tests: the host's cases ask for little.
preflight() { run bash "$scripts/preflight.sh" --role "$side" "$@"; }
host_preflight() { preflight --memlock-mib 0 "$@"; }

# A host-ctl with the answers of a healthy dpu-app; a file named after a command makes that fail.
fake_client() {
    mkdir -p "$1"
    cat >"$1/host-ctl" <<'CLIENT'
#!/usr/bin/env bash
command=$1
echo "host-ctl $*" >>"$FAKE/calls"
if [ -e "$FAKE/fails-$command" ]; then
    echo "host-ctl: $(cat "$FAKE/fails-$command")" >&2
    exit "$(cat "$FAKE/code-$command" 2>/dev/null || echo 1)"
fi
case "$command" in
    ping) echo '{"card":"dpu-app 0.1.0 (DOCA SDK)","command":"ping","count":10,"p50_us":21.5}' ;;
    store) echo '{"chunks":8,"command":"store","ok":true}' ;;
    fetch)
        while [ "$1" != --out ]; do shift; done
        echo data >"$2"
        echo '{"amounts":{"raw_bytes":6291456,"raw_mb_s":3000.5,"seconds":0.002,"wire_bytes":4005911},"chunks_fetched":8,"tokens":2048,"whole":'"$(cat "$FAKE/whole" 2>/dev/null || echo true)"'}'
        ;;
    compare) echo 'equal: every bit (8 chunks)' ;;
    status)
        software=0
        if [ -e "$FAKE/software" ] && [ -e "$FAKE/asked" ]; then software=5; fi
        touch "$FAKE/asked"
        echo '{"card":{"crc":"engine","device":"0000:03:00.0","flavour":"'"$(cat "$FAKE/flavour" 2>/dev/null || echo sdk)"'","version":"0.1.0"},"counters":{"blocks_in_software":'$software',"engine_restarts":0},"note":"token=abcdefgh redis://u:hunter2@h"}'
        ;;
    *) echo "host-ctl 0.1.0" ;;
esac
CLIENT
    chmod +x "$1/host-ctl"
}
fresh_smoke() {
    fresh host
    fake_client "$cell/host/bin"
    fake_client "$cell/card/root/opt/kvlane/current/bin"
    echo original >"$cell/host/data.safetensors"
}
smoke() { run bash "$scripts/smoke.sh" --data data.safetensors "$@"; }

begin() {
    part=$1
    out=$work/out-$part
}
# The parts run side by side, each with cases and an output of its own.
parts=(preflight hugepages release smoke collect headers fresh house)
for part in "${parts[@]}"; do
    (
        trap - EXIT
        begin "$part"
        # shellcheck source=/dev/null
        . "$here/claims/$part.sh"
        close_claim
        echo "$passed $failed" >"$work/count-$part"
    ) >"$work/said-$part" 2>&1 &
done
wait
for part in "${parts[@]}"; do
    cat "$work/said-$part"
    if read -r part_passed part_failed <"$work/count-$part"; then
        passed=$((passed + part_passed)) failed=$((failed + part_failed))
    else
        echo "FAIL  the claims of $part did not come to their end"
        failed=$((failed + 1))
    fi
done

claim "in all of these cases nobody was asked to burn firmware, set a mode or reset a card"
cat "$work"/case-*/*/calls >"$out"
expect "mlxconfig -d 0000:3b:00.0 -e query INTERNAL_CPU_OFFLOAD_ENGINE"
refute " set " " -y " burn SW_RESET
holds [ "$(grep -cE '^(flint|mstflint|mlxburn|mlxfwreset|mlxfwmanager|bfb-install) ' "$out")" = 0 ]

close_claim
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
