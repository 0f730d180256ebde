# shellcheck shell=bash disable=SC2034,SC2154
# What smoke.sh calls a pass. Sourced by run.sh, whose words it uses.

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

claim "smoke: it goes by Comch from the host, by the socket where one is named, and by one of them only"
smoke --dry-run
expect "host-ctl ping --count 10"
refute "--socket"
smoke --dry-run --socket /run/some.sock
expect "ping --count 10 --socket /run/some.sock"
smoke --dry-run --socket /run/some.sock --comch-name other
expect "ping --count 10 --comch-name other"
refute "--socket"

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
