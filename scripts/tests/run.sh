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
    install ln ls mkdir mktemp mv od printf readlink rm sed sh sha256sum sleep sort stat tail tar tee timeout touch tr true wc xargs; do
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
    cell=$work/case-$cases
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

# ---- preflight ----------------------------------------------------------------------------------------------------------

fresh card
"$scripts/preflight.sh" --help >"$out"
claim "preflight: a healthy host agrees with its card over ssh, code 0"
fresh host
host_preflight --peer ubuntu@192.168.100.2
expect_code 0
expect "ok    doca-agree" "ok    firmware-agree" "BlueField-3 at 0000:3b:00.0 0000:3b:00.1" "DPU mode" "preflight: host: ok:"
refute "warn  " "fail  "

claim "preflight: a healthy card agrees with the facts of its host, code 0"
host_preflight --facts
cp "$out" "$cell/host.facts"
side=card
preflight --peer-facts "$cell/host.facts"
expect_code 0
expect "ok    deflate         tasks up to 2097152 bytes, lists up to 128" "ok    lz4" "ok    memlock         unlimited (of dpu-app.service)" "preflight: card: ok:"
refute "warn  " "fail  "

claim "preflight: --json is JSON with the verdict, every check and the facts"
preflight --peer-facts "$cell/host.facts" --json
expect_code 0
expect '"verdict":"ok"' '"name":"mode","verdict":"ok"' '"inflate_bytes":"2097152"'
if command -v jq >/dev/null; then jq --exit-status '.ok == (.checks | length)' "$out" >/dev/null || miss "not that JSON"; fi

claim "preflight: without the other side versions are not compared, code 1"
preflight
expect_code 1
expect "warn  peer" "fix: --peer TARGET" "1 warn, 0 fail"

claim "preflight: changes nothing: it calls only what asks, and leaves no file"
before=$(find "$(machine)" | sort | sha256sum)
: >"$cell/card/calls"
preflight
holds [ "$before" = "$(find "$(machine)" | sort | sha256sum)" ]
cp "$cell/card/calls" "$out"
refute set reset restart start "enable" "replace" "add " write modprobe

claim "preflight: --dry-run asks nothing"
: >"$cell/card/calls"
preflight --dry-run
expect_code 0
expect "would read" "mlxconfig -d"
holds [ ! -s "$cell/card/calls" ]

claim "preflight: wrong arguments are code 64, so that no script takes them for a finding"
run bash "$scripts/preflight.sh" --role both
expect_code 64
run bash "$scripts/preflight.sh" --role card --hugepages-mib many
expect_code 64
run bash "$scripts/preflight.sh" --role host --peer -oProxyCommand=x
expect_code 64

claim "broken: NIC mode fails, prints the command with its warning, and does not run it"
fresh host
sed -i 's/ENABLED(0)      ENABLED(0)      ENABLED(0)/ENABLED(0)      DISABLED(1)     DISABLED(1)/' "$cell/host/answers/mlxconfig"
host_preflight --peer ubuntu@192.168.100.2
expect_code 2
expect "fail  mode            NIC mode" "by hand: mlxconfig -d 0000:3b:00.0 set INTERNAL_CPU_OFFLOAD_ENGINE=0" "WARNING" "power cycle" "1 fail"
cp "$cell/host/calls" "$out"
refute " set "

claim "broken: DPU mode that waits for a power cycle says just that"
fresh host
sed -i 's/ENABLED(0)      ENABLED(0)      ENABLED(0)/ENABLED(0)      DISABLED(1)     ENABLED(0)/' "$cell/host/answers/mlxconfig"
host_preflight --peer ubuntu@192.168.100.2
expect_code 2
expect "NIC mode now, DPU mode after the next power cycle" "a reboot is not enough"

claim "broken: NIC mode at the next boot is a warning"
fresh host
sed -i 's/ENABLED(0)      ENABLED(0)      ENABLED(0)/ENABLED(0)      ENABLED(0)      DISABLED(1)/' "$cell/host/answers/mlxconfig"
host_preflight --peer ubuntu@192.168.100.2
expect_code 1
expect "warn  mode            DPU mode now, NIC mode after"

claim "an mlxconfig of one column, a starred row and bare numbers are understood"
fresh host
printf 'Configurations:            Next Boot\n*        INTERNAL_CPU_OFFLOAD_ENGINE      1\n' | answer mlxconfig
host_preflight
expect_code 2
expect "fail  mode            NIC mode (INTERNAL_CPU_OFFLOAD_ENGINE=1)"

claim "broken: mlxconfig without root is a warning that says so"
fresh host
echo '-E- Failed to open the device: Permission denied' | answer mlxconfig
echo 3 | answer mlxconfig.code
host_preflight --peer ubuntu@192.168.100.2
expect_code 1
expect "warn  mode" "Permission denied" "fix: run again as root"

claim "broken: no rshim fails with the service to start"
fresh host
rm -r "$(machine)/dev/rshim0"
echo inactive | answer systemctl_is-active
host_preflight
expect_code 2
expect "fail  rshim           no /dev/rshim0, service inactive" "systemctl enable --now rshim"

claim "broken: an rshim that another machine holds names the BMC"
fresh host
rm -r "$(machine)/dev/rshim0"
host_preflight
expect_code 2
expect "fail  rshim" "the card's BMC"

claim "no rshim is only a warning where the card is reached by another address"
fresh host
rm -r "$(machine)/dev/rshim0"
host_preflight --peer ubuntu@10.1.2.3
expect_code 1
expect "warn  rshim"

claim "broken: a wrong tmfifo address fails with the command that mends it"
fresh host
echo '5: tmfifo_net0    inet 192.168.7.1/24 scope global tmfifo_net0' | answer ip_address
host_preflight
expect_code 2
expect "fail  tmfifo          tmfifo_net0 is 192.168.7.1/24, expected 192.168.100.1/30" "ip address replace 192.168.100.1/30 dev tmfifo_net0"

claim "broken: a tmfifo without address, and none at all"
fresh host
answer ip_address </dev/null
host_preflight
expect_code 2
expect "tmfifo_net0 has no IPv4 address" "ip address add 192.168.100.1/30"
answer ip_link </dev/null
host_preflight
expect "no interface tmfifo_net0" "it comes with rshim"

claim "broken: a hijacked route fails although the address is right"
fresh host
echo '192.168.100.2 via 10.0.0.1 dev docker0 src 10.0.0.7 uid 0' | answer ip_route
host_preflight
expect_code 2
expect "ok    tmfifo" "fail  route           192.168.100.2 goes through docker0 via 10.0.0.1" "ip route replace 192.168.100.2/32 dev tmfifo_net0"

claim "broken: a missing driver fails with modprobe"
fresh card
rm "$(machine)/sys/bus/pci/devices/0000:03:00.0/driver"
preflight
expect_code 2
expect "fail  driver          no driver on 0000:03:00.0" "modprobe mlx5_core" "openibd"

claim "broken: another driver on the function fails with the way back"
fresh card
ln -sfn ../../drivers/vfio-pci "$(machine)/sys/bus/pci/devices/0000:03:00.0/driver"
preflight
expect_code 2
expect "fail  driver          vfio-pci on 0000:03:00.0" "drivers/vfio-pci/unbind"

claim "broken: DOCA versions that differ fail and name the side to upgrade"
fresh host
side=card
echo 2.10.0 | answer pkg-config
side=host
host_preflight --peer ubuntu@192.168.100.2
expect_code 2
expect "fail  doca-agree      here 3.0.0, on the card 2.10.0" "upgrade the card to 3.0.0" "erases the card's disk"
side=host
echo 2.9.1 | answer pkg-config
host_preflight --peer ubuntu@192.168.100.2
expect_code 2
expect "upgrade the host to 2.10.0" "warn  doca            2.9.1"

claim "DOCA versions that differ in the last number are a warning"
echo 3.0.0 | answer pkg-config
side=card
echo 3.0.1 | answer pkg-config
side=host
host_preflight --peer ubuntu@192.168.100.2
expect_code 1
expect "warn  doca-agree" "bring the host to 3.0.1"

claim "broken: a DOCA before 2.7, and none"
fresh card
echo 2.5.0 | answer pkg-config
preflight
expect_code 2
expect "fail  doca            2.5.0"
answer pkg-config </dev/null
preflight
expect_code 2
expect "fail  doca            no DOCA found"

claim "broken: firmware that differs between the sides fails, and nothing is burnt"
fresh host
echo 32.39.2048 >"$cell/card/root/sys/bus/pci/devices/0000:03:00.0/infiniband/mlx5_0/fw_ver"
host_preflight --peer ubuntu@192.168.100.2
expect_code 2
expect "fail  firmware-agree  here 32.45.1020, on the card 32.39.2048" "this script burns nothing"

claim "broken: a peer that does not answer, and facts of the wrong side"
fresh host
touch "$cell/card/down"
host_preflight --peer ubuntu@192.168.100.2
expect_code 2
expect "fail  peer            ssh ubuntu@192.168.100.2:" "No route to host" "without a password"
rm "$cell/card/down"
host_preflight --facts
cp "$out" "$cell/facts"
host_preflight --peer-facts "$cell/facts"
expect_code 2
expect "these are facts of a host, not of the card"

claim "broken: no huge pages is a warning with the count to reserve"
fresh card
sed -i -E 's/(HugePages_(Total|Free):).*/\1 0/' "$(machine)/proc/meminfo"
preflight
expect_code 1
expect "warn  hugepages       0 of 2048 KiB, 64 MiB wanted" "scripts/hugepages.sh --count 32"

claim "broken: a unit that may lock too little fails with the line to add"
fresh card
echo LimitMEMLOCK=65536 | answer systemctl_LimitMEMLOCK
preflight
expect_code 2
expect "fail  memlock         64 KiB (of dpu-app.service), 1024 MiB wanted" "LimitMEMLOCK=infinity" "systemctl edit dpu-app"

claim "broken: a login that may lock too little fails with its own fix"
fresh host
run bash -c "ulimit -l 64; exec bash '$scripts/preflight.sh' --role host"
expect_code 2
expect "fail  memlock         64 KiB (of this login)" "limits.d"

claim "broken: a card without a Deflate engine fails with the two ways to go on"
fresh card
sed -i 's/decompress_deflate_is_supported         supported/decompress_deflate_is_supported         unsupported/' "$cell/card/answers/doca_caps"
preflight
expect_code 2
expect "fail  deflate         not on 0000:03:00.0" "allow-software = true" "ok    lz4"

claim "a card without LZ4 is a warning; a too small task size fails with the block size that fits"
fresh card
sed -i -e 's/lz4_stream_is_supported      supported/lz4_stream_is_supported      unsupported/' \
    -e 's/decompress_deflate_max_buf_size         2097152/decompress_deflate_max_buf_size         262144/' "$cell/card/answers/doca_caps"
preflight
expect_code 2
expect "warn  lz4" "fail  deflate         tasks up to 262144 bytes, 589824 wanted" "block-bytes in dpu-app.conf (at most 209715)"

claim "doca_caps of other spellings is understood; another function's lines are not this one's"
fresh card
answer doca_caps <<'CAPS'
PCI: 0000:03:00.1
  task_memcpy: unsupported
  task_decompress_deflate: unsupported
PCI: 03:00.0
  task_memcpy: supported
  task_memcpy_get_max_buf_size: 2097152
  task_decompress_deflate = supported
  task_decompress_deflate_get_max_buf_size = 2097152
  task_decompress_lz4_stream_supported 1
  task_decompress_lz4_stream_get_max_buf_size 2097152
CAPS
preflight
expect_code 1
expect "ok    dma" "ok    deflate         tasks up to 2097152" "ok    lz4"

claim "broken: a doca_caps that is missing is a warning, one that sees nothing fails"
fresh card
lacks doca_caps
preflight
expect_code 1
expect "warn  engines         no doca_caps here" "dpu-app devices"
fresh card
answer doca_caps </dev/null
preflight
expect_code 2
expect "fail  engines         doca_caps says nothing of 0000:03:00.0"

claim "broken: an old glibc fails on either side, each with its own fix"
fresh card
echo 'glibc 2.31' | answer getconf
preflight
expect_code 2
expect "fail  glibc           2.31: our binaries need 2.35" "flash a BFB with Ubuntu 22.04"
fresh host
echo 'glibc 2.9' | answer getconf
host_preflight
expect_code 2
expect "fail  glibc           2.9" "or build host-ctl here"

claim "broken: a card at another PCI address is a warning with the line for the config"
fresh card
sed -i 's/0000:03:00/0000:06:00/' "$cell/card/answers/lspci"
mv "$(machine)/sys/bus/pci/devices/0000:03:00.0" "$(machine)/sys/bus/pci/devices/0000:06:00.0"
sed -i 's/0000:03:00/0000:06:00/' "$cell/card/answers/doca_caps"
preflight
expect_code 1
expect "warn  pci             BlueField-3 at 0000:06:00.0 0000:06:00.1, not at the usual 0000:03:00.0" "device = 0000:06:00.0"

claim "broken: a named address where there is no BlueField fails with those that are there"
preflight --device 03:00.0
expect_code 2
expect "fail  pci             no BlueField function at 0000:03:00.0; there is 0000:06:00.0 0000:06:00.1"

claim "broken: no BlueField, only its management function, and a BlueField-2"
fresh host
answer lspci </dev/null
host_preflight
expect_code 2
expect "fail  pci             no BlueField function" "reseat the card"
grep 'SoC Management' "$here/recorded/host/lspci" | answer lspci
host_preflight
expect "management function 0000:3b:00.2 only" "/dev/rshim0/console"
sed -e 's/MT43244 BlueField-3/MT42822 BlueField-2/; s/a2dc/a2d6/' "$here/recorded/host/lspci" | answer lspci
host_preflight
expect "warn  pci             BlueField-2" "+deflate"

claim "broken: the card's script on the host says that this is no card"
fresh card
echo x86_64 | answer uname
preflight
expect_code 2
expect "fail  arch            x86_64: this is not the Arm side of a card"

claim "preflight runs from standard input, where nothing of ours is installed"
fresh card
code=0
(cd "$cell/card" && env --ignore-environment PATH="$cell/card/bin:$tools" FAKE="$cell/card" KVLANE_ROOT="$cell/card/root" \
    bash -s -- --role card) <"$scripts/preflight.sh" >"$out" 2>&1 || code=$?
expect_code 1
expect "preflight: card: warn"

# ---- hugepages ----------------------------------------------------------------------------------------------------------

setting=etc/sysctl.d/80-kvlane-hugepages.conf
claim "hugepages: --dry-run writes nothing"
fresh host
run bash "$scripts/hugepages.sh" --count 64 --dry-run
expect_code 0
expect "would write" "vm.nr_hugepages = 64" "128 MiB"
holds [ ! -e "$(machine)/$setting" ]

claim "hugepages: reserves now and for the next boot; the second run does nothing"
run bash "$scripts/hugepages.sh" --count 64
expect_code 0
expect "64 pages of 2048 KiB"
holds grep -q '^vm.nr_hugepages = 64$' "$(machine)/$setting"
: >"$cell/host/calls"
run bash "$scripts/hugepages.sh" --count 64
expect_code 0
expect "nothing to do"
holds [ ! -s "$cell/host/calls" ]

claim "hugepages: another program's pages are not taken away without --shrink"
run bash "$scripts/hugepages.sh" --count 16
expect_code 0
holds grep -q '^vm.nr_hugepages = 64$' "$(machine)/$setting"
run bash "$scripts/hugepages.sh" --count 16 --shrink --json
expect_code 0
expect '"total":16'
holds grep -q '^vm.nr_hugepages = 16$' "$(machine)/$setting"

claim "hugepages: a shortage is code 1 and says reboot"
echo 40 >"$cell/host/pages_max"
run bash "$scripts/hugepages.sh" --count 100
expect_code 1
expect "40 of 100 pages" "reboot"

claim "hugepages: warns of a later file that would win; --remove takes ours away, twice is fine"
echo 'vm.nr_hugepages = 3' >"$(machine)/etc/sysctl.d/99-other.conf"
run bash "$scripts/hugepages.sh" --count 30
expect "99-other.conf also sets vm.nr_hugepages"
run bash "$scripts/hugepages.sh" --remove
expect_code 0
holds [ ! -e "$(machine)/$setting" ]
run bash "$scripts/hugepages.sh" --remove
expect_code 0
expect "nothing to do"
run bash "$scripts/hugepages.sh" --count
expect_code 2

# ---- deploy and rollback ------------------------------------------------------------------------------------------------

# A directory with a dpu-app of this version that lives, or dies, and a host-ctl.
build() {
    local at=$cell/build-$1
    mkdir -p "$at"
    # shellcheck disable=SC2016 # expands in what is made here
    printf '#!/bin/sh\n# %s\ncase "$1" in --version) echo "dpu-app %s (DOCA SDK)" ;; limits) %s ;; esac\n' "$2" "$1" "${3:-true}" >"$at/dpu-app"
    printf '#!/bin/sh\nexit 0\n' >"$at/host-ctl"
    chmod +x "$at/dpu-app" "$at/host-ctl"
    echo "$at"
}
fresh_card() {
    fresh host
    mv "$cell/card/bin/systemctl" "$cell/card/bin/systemctl-answer"
    cp "$here/fakes/service" "$cell/card/bin/systemctl"
    on_card=$cell/card/root
}
deploy() { run bash "$scripts/deploy.sh" --any-arch --wait 3 "$@"; }
rollback() { run bash "$scripts/rollback.sh" --wait 3 "$@"; }
current() { basename "$(readlink "$on_card/opt/kvlane/current")"; }
runs_version() { [ "$("$on_card/opt/kvlane/current/bin/dpu-app" --version)" = "dpu-app $1 (DOCA SDK)" ]; }

claim "deploy: --dry-run checks what is here and talks to nobody"
fresh_card
deploy --bin "$(build 1 LIVES)" --dry-run
expect_code 0
expect "would do, and did nothing of" "bin/dpu-app" "/opt/kvlane/releases/"
holds [ ! -s "$cell/host/calls" ]

claim "deploy: installs binaries, config, unit and user, starts and waits until it answers"
deploy --bin "$(build 1 LIVES)"
expect_code 0
expect "deploy: ok:" "dpu-app 1 (DOCA SDK)" "next: scripts/smoke.sh"
holds runs_version 1
holds cmp -s "$scripts/systemd/dpu-app.conf" "$on_card/etc/kvlane/dpu-app.conf"
holds cmp -s "$scripts/systemd/dpu-app.service" "$on_card/etc/systemd/system/dpu-app.service"
holds grep -q '^ExecStart=/opt/kvlane/current/bin/dpu-app run --config /etc/kvlane/dpu-app.conf$' \
    "$on_card/etc/systemd/system/dpu-app.service.d/kvlane-release.conf"
holds [ "$(stat -c %a "$on_card/etc/kvlane/dpu-app.conf")" = 640 ]
holds [ -z "$(ls "$cell/card/tmp")" ]
cp "$cell/card/calls" "$out"
expect "systemctl daemon-reload" "systemctl enable --quiet dpu-app" "systemctl restart dpu-app" "systemd-sysusers"

claim "deploy: the same again changes nothing and restarts nothing"
: >"$cell/card/calls"
deploy --bin "$(build 1 LIVES)" --json
expect_code 0
expect '"ok":true' '"changed":"no"'
cp "$cell/card/calls" "$out"
refute restart

claim "deploy: an upgrade keeps the operator's config and the release before"
echo 'store = dir:/data' >"$on_card/etc/kvlane/dpu-app.conf"
first=$(current)
deploy --bin "$(build 2 LIVES)"
expect_code 0
expect "before it: $first"
holds runs_version 2
holds grep -qx 'store = dir:/data' "$on_card/etc/kvlane/dpu-app.conf"

claim "rollback: --list and --dry-run show and change nothing"
: >"$cell/card/calls"
rollback --list
expect_code 0
expect "$first  previous" "current"
rollback --dry-run --json
expect_code 0
expect '"is":"previous"' "would switch ubuntu@192.168.100.2 to $first"
cp "$cell/card/calls" "$out"
refute restart

claim "rollback: puts the release before back; twice is back again"
rollback
expect_code 0
expect "rollback: ok: $first runs"
holds runs_version 1
rollback --json
expect_code 0
expect '"changed":"yes"'
holds runs_version 2
rollback --to "$first"
expect_code 0
holds runs_version 1

claim "deploy: a release that dies is taken back by itself, code 1, with its log without passwords"
printf 'opening redis://app:hunter2@store:6379\nfatal: no device\n' >"$cell/card/answers/journalctl"
deploy --bin "$(build 3 DIES)"
expect_code 1
expect "is not healthy" "fatal: no device" "redis://REDACTED@store" "going back to $first" "FAILED"
refute hunter2
holds runs_version 1

claim "deploy: --keep-failed leaves it, and rollback ends it"
deploy --bin "$(build 3 DIES)" --keep-failed
expect_code 1
holds runs_version 3
rollback
expect_code 0
holds runs_version 1

claim "deploy: --config replaces the config, and a rollback gives the old one back"
echo 'store = dir:/new' >"$cell/new.conf"
deploy --bin "$(build 4 LIVES)" --config "$cell/new.conf"
expect_code 0
holds grep -qx 'store = dir:/new' "$on_card/etc/kvlane/dpu-app.conf"
rollback
expect_code 0
holds grep -qx 'store = dir:/data' "$on_card/etc/kvlane/dpu-app.conf"

claim "deploy: a binary that refuses its config is found before the running one is stopped"
: >"$cell/card/calls"
deploy --bin "$(build 5 LIVES 'echo "slots: 7 is too few for redis://a:geheim@b" >&2; exit 2')"
expect_code 1
expect "nothing was changed" "slots: 7 is too few" "redis://REDACTED@b"
refute geheim
holds runs_version 1
cp "$cell/card/calls" "$out"
refute restart

claim "deploy: bytes that changed on the way are found on the card"
touch "$cell/card/bad-cable"
deploy --bin "$(build 6 LIVES)"
expect_code 1
expect "what arrived is not what was sent"
holds runs_version 1
rm "$cell/card/bad-cable"

claim "rollback: a release that was changed on the card is not started"
sleep 0.01
damaged=$(basename "$(readlink "$on_card/opt/kvlane/previous")")
echo junk >>"$on_card/opt/kvlane/releases/$damaged/bin/dpu-app"
rollback
expect_code 1
expect "release $damaged is damaged: deploy it again"
holds runs_version 1
rollback --to 0123456789ab
expect_code 1
expect "is not here"
rollback --to '../../etc'
expect_code 1
expect "is not the name of a release"

claim "deploy: old releases go, the running one and the one before stay"
for version in 11 12 13; do deploy --bin "$(build $version LIVES)"; done
expect_code 0
holds runs_version 13
find "$on_card/opt/kvlane/releases" -mindepth 1 -maxdepth 1 >"$cell/left"
holds [ "$(wc -l <"$cell/left")" -le 4 ]
rollback
expect_code 0
holds runs_version 12

claim "rollback: where nothing came before it says so, code 1"
fresh_card
deploy --bin "$(build 1 LIVES)"
rollback
expect_code 1
expect "there is no release before"

claim "deploy: a card that cannot be reached is code 4 with the fix, as is a hijacked route"
fresh_card
touch "$cell/card/down"
deploy --bin "$(build 1 LIVES)"
expect_code 4
expect "has to work without a password"
rm "$cell/card/down"
echo '192.168.100.2 dev docker0 src 10.0.0.7' | answer ip_route
deploy --bin "$(build 1 LIVES)"
expect_code 4
expect "a stranger may answer there" "ip route replace 192.168.100.2/32 dev tmfifo_net0"
rollback
expect_code 4

claim "deploy: refuses other machines' programs, half a release and strange targets before it sends anything"
fresh_card
mkdir "$cell/x86"
printf '\177ELF\2\1\1\0\0\0\0\0\0\0\0\0\3\0\76\0' >"$cell/x86/dpu-app"
cp "$cell/x86/dpu-app" "$cell/x86/host-ctl"
run bash "$scripts/deploy.sh" --bin "$cell/x86"
expect_code 2
expect "is no program for aarch64" "cross-build.sh"
printf '\177ELF\2\1\1\0\0\0\0\0\0\0\0\0\3\0\267\0' | tee "$cell/x86/dpu-app" >"$cell/x86/host-ctl"
run bash "$scripts/deploy.sh" --bin "$cell/x86" --dry-run
expect_code 0
rm "$cell/x86/host-ctl"
run bash "$scripts/deploy.sh" --bin "$cell/x86"
expect_code 2
expect "no host-ctl in it"
deploy --bin "$(build 1 LIVES)" --card '-oProxyCommand=reboot'
expect_code 2
deploy --bin "$(build 1 LIVES)" --wait soon
expect_code 2
deploy
expect_code 2
cp "$cell/host/calls" "$out"
refute "ssh " "scp "

claim "deploy: the emulator on a card is called by its name"
fresh_card
at=$(build 1 LIVES)
sed -i 's/DOCA SDK/emulator/' "$at/dpu-app"
deploy --bin "$at"
expect_code 0
expect "WARNING: this dpu-app is built for the EMULATOR"

if command -v dpkg-deb >/dev/null; then
    claim "deploy: packages are installed by dpkg, for arm64 only, and hide no unit of theirs"
    fresh_card
    deploy --bin "$(build 1 LIVES)"
    for arch in arm64 amd64; do
        mkdir -p "$cell/deb-$arch/DEBIAN"
        printf 'Package: dpu-app\nVersion: 1\nArchitecture: %s\nMaintainer: nobody <nobody@localhost>\nDescription: test\n' "$arch" >"$cell/deb-$arch/DEBIAN/control"
        dpkg-deb --build "$cell/deb-$arch" "$cell/$arch.deb" >/dev/null
    done
    run bash "$scripts/deploy.sh" --package "$cell/amd64.deb"
    expect_code 2
    expect "is for amd64: the card is arm64"
    touch "$cell/card/package-lives"
    mkdir -p "$on_card/usr/bin"
    cp "$cell/build-1/host-ctl" "$on_card/usr/bin/"
    run bash "$scripts/deploy.sh" --package "$cell/arm64.deb" --wait 3
    expect_code 0
    holds [ ! -e "$on_card/etc/systemd/system/dpu-app.service" ]
    cp "$cell/card/calls" "$out"
    expect "dpkg --install --force-confold" "packages/arm64.deb"
    claim "rollback: from packages to binaries brings unit and drop-in back"
    rollback
    expect_code 0
    holds [ -e "$on_card/etc/systemd/system/dpu-app.service.d/kvlane-release.conf" ]
    holds runs_version 1
    claim "deploy: a package that dpkg refuses is not taken for a good one"
    echo 1 >"$cell/card/answers/dpkg.code"
    echo x >>"$cell/deb-arm64/DEBIAN/control.txt"
    sed -i 's/Version: 1/Version: 2/' "$cell/deb-arm64/DEBIAN/control"
    dpkg-deb --build "$cell/deb-arm64" "$cell/arm64.deb" >/dev/null
    run bash "$scripts/deploy.sh" --package "$cell/arm64.deb" --wait 3
    expect_code 1
    expect "dpkg did not install" "going back to"
    holds runs_version 1
fi

claim "two deploys at once: the second waits for nobody and changes nothing"
fresh_card
deploy --bin "$(build 1 LIVES)"
exec 8>"$on_card/opt/kvlane/lock"
flock 8
deploy --bin "$(build 2 LIVES)"
exec 8>&-
expect_code 1
expect "another deploy or rollback is at work"
holds runs_version 1

claim "words with quotes and spaces reach the card as they are"
# shellcheck source=/dev/null
. "$scripts/bring-up/card.sh"
echo "printf '[%s]' \"\$@\"" >"$cell/words"
# shellcheck disable=SC2016 # has to arrive unexpanded
fresh_words=("it's" 'a b;$(touch x)' '"')
code=0
(
    cd "$cell/host"
    export PATH="$cell/host/bin:$tools" FAKE=$cell/host FAKE_TOOLS=$tools
    card_reach ubuntu@card
    card_bash "$cell/words" "${fresh_words[@]}"
) >"$out" 2>&1 || code=$?
expect_code 0
holds [ "$(cat "$out")" = "[it's][a b;\$(touch x)][\"]" ]

# ---- smoke --------------------------------------------------------------------------------------------------------------

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

claim "smoke: a pass is one line with the figures above it, code 0"
fresh_smoke
smoke --require-card
expect_code 0
expect "lossless      2048      6.29      4.01       2.0     3000   equal: every bit" \
    "smoke: pass: lossless and q5 stored, fetched and compared, ping 21.5 us (device 0000:03:00.0, dpu-app 0.1.0, CRC by engine)"
holds [ -z "$(ls "$cell/host/tmp")" ]

claim "smoke: --json is one object"
smoke --json
expect_code 0
expect '"ok":true' '"raw_bytes":6291456'
if command -v jq >/dev/null; then jq --exit-status '.runs | length == 2' "$out" >/dev/null || miss "not that JSON"; fi

claim "smoke: --dry-run prints the commands and runs none"
: >"$cell/host/calls"
smoke --dry-run
expect_code 0
expect "store data.safetensors --model kvlane-smoke --recipe lossless"
holds [ ! -s "$cell/host/calls" ]

claim "smoke: runs on the card over ssh and leaves nothing there"
smoke --card ubuntu@192.168.100.2 --recipes q5
expect_code 0
expect "smoke: pass: q5"
cp "$cell/card/calls" "$out"
expect "host-ctl compare"
holds [ -z "$(ls "$cell/card/tmp")" ]

claim "smoke: no dpu-app is code 4 with the fix"
echo 'nobody serves' >"$cell/host/fails-ping"
echo 4 >"$cell/host/code-ping"
smoke
expect_code 4
expect "smoke: FAIL: no answer" "nobody serves" "systemctl status dpu-app"

claim "smoke: data that differ fail, as does half a prompt"
fresh_smoke
echo 'beyond the bound' >"$cell/host/fails-compare"
smoke
expect_code 1
expect "smoke: FAIL: compare with lossless"
refute pass
rm "$cell/host/fails-compare"
echo false >"$cell/host/whole"
smoke --json
expect_code 1
expect '"ok":false' "8 of 8 chunks came back"

claim "smoke: the emulator passes by its name, and fails with --require-card; so does software in the engine's place"
fresh_smoke
echo emulator >"$cell/host/flavour"
smoke
expect_code 0
expect "smoke: pass:" "EMULATOR, no card"
smoke --require-card
expect_code 3
expect "no card did anything"
rm "$cell/host/flavour"
touch "$cell/host/software"
rm -f "$cell/host/asked"
smoke --require-card
expect_code 3
expect "5 blocks were inflated in software"
rm -f "$cell/host/asked"
smoke
expect_code 0
expect "warning: 5 blocks"

# ---- collect ------------------------------------------------------------------------------------------------------------

# Secrets of every form that we know, in every place that collect reads.
secrets=(hunter2 'p@ss/w0rd!x' AKIAEXAMPLE1 s3cr3tk3y tok3nvalue tenant-seven QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVphYmNkZWY= \
    00112233445566778899aabbccddeeff b3BlbnNzaC1rZXktdjE '17,34,51' 'de ad be ef 01' Bearer-abc.def)
fresh_secrets() {
    fresh_smoke
    local at=$cell/card
    mkdir -p "$at/root/etc/kvlane" "$at/root/opt/kvlane/current/bin"
    cat >"$at/root/etc/kvlane/dpu-app.conf" <<'CONF'
store = redis://app:p@ss/w0rd!x@store.example:6379/0?db=1
#store = s3://bucket?access_key=AKIAEXAMPLE1&secret=s3cr3tk3y
socket = /run/kvlane/dpu-app.sock
CONF
    # shellcheck disable=SC2016 # expands in what is made here
    printf '#!/bin/sh\ncase "$1" in --version) echo "dpu-app 0.1.0 (DOCA SDK)" ;; limits) echo "store: redis://app:p@ss/w0rd!x@store.example:6379/0"; echo "slots: 32" ;; *) echo "0000:03:00.0 (mlx5_0)" ;; esac\n' \
        >"$at/root/opt/kvlane/current/bin/dpu-app"
    chmod +x "$at/root/opt/kvlane/current/bin/dpu-app"
    cat >"$at/answers/journalctl" <<'LOG'
INFO store redis://app:p@ss/w0rd!x@store.example:6379 holds 0 chunks
WARN redis://:hunter2@other: refused, password=hunter2 token: tok3nvalue
INFO argv: host-ctl store --salt tenant-seven --token tok3nvalue
INFO chunk 00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff missed
INFO export blob QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVphYmNkZWY= of 32 bytes
INFO export: [17, 34, 51, 68, 85, 102, 119, 136, 153, 170, 187, 204, 221, 238, 255, 0, 17,34,51]
INFO page de ad be ef 01 02 03 04 05 06 07 08 09 0a 0b 0c 0d 0e
INFO Authorization: Bearer-abc.def
-----BEGIN OPENSSH PRIVATE KEY-----
b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQ
-----END OPENSSH PRIVATE KEY-----
INFO fetched 2048 tokens, tokens: 2048
LOG
    printf '[Service]\nEnvironment=KVLANE_STORE=redis://app:hunter2@h KVLANE_TOKEN=tok3nvalue\nLimitMEMLOCK=infinity\n' >"$at/answers/systemctl_cat"
}
unpack() {
    rm -rf "$cell/unpacked"
    mkdir "$cell/unpacked"
    tar -xzf "$1" -C "$cell/unpacked"
}
no_secret_in() {
    local secret
    for secret in "${secrets[@]}"; do
        if grep -rqF -- "$secret" "$1"; then
            grep -rF -- "$secret" "$1" | head -n 3 >&2
            return 1
        fi
    done
}

claim "collect: on the card it gathers versions, limits, status, log and preflight, and no secret"
fresh_secrets
side=card
run bash "$scripts/collect.sh" --role card --out bundle.tar.gz
expect_code 0
expect "collect: bundle.tar.gz" "read it before you send it"
unpack "$cell/card/bundle.tar.gz"
holds no_secret_in "$cell/unpacked"
for text in app-config app-limits app-log app-status app-unit app-version preflight-text preflight-json device-pci system-limits; do
    holds [ -s "$cell/unpacked/kvlane-card/$text.txt" ]
done

claim "collect: what is no secret is still there"
cat "$cell/unpacked"/kvlane-card/*.txt >"$out"
expect "redis://REDACTED@store.example:6379/0?db=1" "tokens: 2048" "slots: 32" "LimitMEMLOCK=infinity" "dpu-app 0.1.0 (DOCA SDK)" \
    '"flavour":"sdk"' "BlueField-3" "preflight: card:" REDACTED-HEX REDACTED-PEM "task_decompress_deflate_max_buf_size         2097152"

claim "collect: the secrets were there to be found"
cat "$cell/card/answers/journalctl" "$cell/card/answers/systemctl_cat" "$cell/card/root/etc/kvlane/dpu-app.conf" >"$out"
expect "${secrets[@]}"

claim "collect: from the host it brings both sides into one bundle and leaves nothing on the card"
side=host
run bash "$scripts/collect.sh" --role host --out both.tar.gz --card ubuntu@192.168.100.2 --json
expect_code 0
expect '"ok":true' '"card":true'
unpack "$cell/host/both.tar.gz"
holds no_secret_in "$cell/unpacked"
holds [ -s "$cell/unpacked/kvlane-host/card/app-log.txt" ]
holds [ -s "$cell/unpacked/kvlane-host/preflight-text.txt" ]
holds [ -z "$(ls "$cell/card/tmp")" ]

claim "collect: a card that does not answer is code 4, and the host's side is written"
touch "$cell/card/down"
run bash "$scripts/collect.sh" --role host --out half.tar.gz --card ubuntu@192.168.100.2
expect_code 4
expect "the card's side is missing"
holds [ -s "$cell/host/half.tar.gz" ]
rm "$cell/card/down"

claim "collect: a known password in a form that no rule knows stops the bundle"
fresh_secrets
side=card
echo 'INFO login said: p@ss/w0rd!x, accepted' >>"$cell/card/answers/journalctl"
run bash "$scripts/collect.sh" --role card --out bundle.tar.gz
expect_code 1
expect "a password of the config is still in app-log.txt" "nothing was written"
refute 'p@ss/w0rd!x'
holds [ ! -e "$cell/card/bundle.tar.gz" ]

claim "collect: --dry-run lists and writes nothing"
run bash "$scripts/collect.sh" --role card --out bundle.tar.gz --dry-run
expect_code 0
expect "app-log" "journalctl --unit dpu-app"
holds [ ! -e "$cell/card/bundle.tar.gz" ]

# ---- all ----------------------------------------------------------------------------------------------------------------

claim "every script has --help and --dry-run, and refuses an unknown option"
for script in preflight hugepages deploy smoke rollback collect; do
    run bash "$scripts/$script.sh" --help
    expect_code 0
    expect --dry-run --json
    run bash "$scripts/$script.sh" --no-such-option
    case "$script" in preflight) expect_code 64 ;; *) expect_code 2 ;; esac
done

claim "in all of these cases nobody was asked to burn firmware, set a mode or reset a card"
cat "$work"/case-*/*/calls >"$out"
expect "mlxconfig -d 0000:3b:00.0 -e query INTERNAL_CPU_OFFLOAD_ENGINE"
refute " set " " -y " burn SW_RESET
holds [ "$(grep -cE '^(flint|mstflint|mlxburn|mlxfwreset|mlxfwmanager|bfb-install) ' "$out")" = 0 ]

claim "the unit says what it has to: no memory limit, after openibd, backoff, and no watchdog that nobody feeds"
cp "$scripts/systemd/dpu-app.service" "$out"
expect LimitMEMLOCK=infinity openibd.service Restart=on-failure RestartSec= StartLimitBurst= RestartPreventExitStatus=2 NoNewPrivileges=yes
holds [ "$(grep -cE '^(WatchdogSec|Type=notify|PrivateDevices=yes|ProtectClock=yes)' "$out")" = 0 ]

if command -v shellcheck >/dev/null; then
    claim "shellcheck has nothing to say"
    code=0
    shellcheck "$scripts"/{preflight,hugepages,deploy,smoke,rollback,collect}.sh "$scripts"/bring-up/*.sh "$here"/run.sh "$here"/fakes/* >"$out" 2>&1 || code=$?
    expect_code 0
fi

close_claim
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
