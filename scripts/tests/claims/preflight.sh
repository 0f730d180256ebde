# shellcheck shell=bash disable=SC2034,SC2154
# What preflight.sh finds on healthy and on broken machines. Sourced by run.sh, whose words it uses.

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
expect "warn  hugepages       0 of 2048 KiB, 52 MiB wanted" "scripts/hugepages.sh --count 26"

claim "broken: a unit that may lock too little fails with the line to add"
fresh card
echo LimitMEMLOCK=65536 | answer systemctl_LimitMEMLOCK
preflight
expect_code 2
expect "fail  memlock         64 KiB (of dpu-app.service), 52 MiB wanted" "LimitMEMLOCK=infinity" "systemctl edit dpu-app"

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
