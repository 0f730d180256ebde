# shellcheck shell=bash disable=SC2034,SC2154
# What is in a bundle of collect.sh, and what is not. Sourced by run.sh, whose words it uses.

# Secrets of every form that we know, in every place that collect reads.
secrets=(hunter2 'p@ss/w0rd!x' AKIAEXAMPLE1 s3cr3tk3y tok3nvalue tenant-seven QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVphYmNkZWY= \
    00112233445566778899aabbccddeeff b3BlbnNzaC1rZXktdjE '17,34,51' 'de ad be ef 01' Bearer-abc.def m1sspelt9 'sp aced77' fr0mfile n0scheme)
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
INFO argv: dpu-app run --store redis//app:m1sspelt9@store.example
WARN line 3: store = Redis://app:sp aced77@store.example
WARN line 4: store = redis://:fr0mfile
WARN line 5: store = app:n0scheme@store.example
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
