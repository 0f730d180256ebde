# shellcheck shell=bash disable=SC2034,SC2154
# What deploy.sh and rollback.sh do to a card, and what they refuse. Sourced by run.sh, whose words it uses.

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
    claim "deploy: a package whose program refuses the card's config is found before dpkg runs"
    : >"$cell/card/calls"
    mkdir -p "$cell/deb-refuses/DEBIAN" "$cell/deb-refuses/usr/bin"
    cp "$(build 9 LIVES 'echo "slots: 7 is too few" >&2; exit 2')/dpu-app" "$cell/deb-refuses/usr/bin/"
    sed 's/^Version: .*/Version: 9/' "$cell/deb-arm64/DEBIAN/control" >"$cell/deb-refuses/DEBIAN/control"
    dpkg-deb --build "$cell/deb-refuses" "$cell/refuses.deb" >/dev/null
    run bash "$scripts/deploy.sh" --package "$cell/refuses.deb" --wait 3
    expect_code 1
    expect "nothing was changed" "slots: 7 is too few"
    cp "$cell/card/calls" "$out"
    refute "dpkg --install" restart
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
