#!/usr/bin/env bash
# Brings dpu-app onto a card and starts it: copy, check, install, start, wait until it answers. The release that ran
# before stays there, and comes back by itself when the new one is not healthy. Run it twice and the second does
# nothing.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=/dev/null
. "$here/bring-up/card.sh"

usage() {
    cat <<'USAGE'
Usage: scripts/deploy.sh --bin DIR | --package FILE... [options]
  --bin DIR          directory with dpu-app, host-ctl and kvlane-plan, for aarch64 (scripts/cross-build.sh makes them)
  --package FILE     a .deb for arm64; again for another (scripts/package.sh makes them)
  --card TARGET      user@address over ssh or tmfifo, or local on the card itself [default: ubuntu@192.168.100.2]
  --config FILE      replace the card's config by this file [default: keep it; a first install gets systemd/dpu-app.conf]
  --unit FILE        systemd unit for --bin [default: systemd/dpu-app.service]
  --label TEXT       a word for the release, shown by rollback.sh --list
  --wait SECONDS     time for the new release to become healthy [default: 60]
  --health HOW       ping (host-ctl on the card gets an answer) or active (the service stays up) [default: ping]
  --keep-failed      leave a release that is not healthy in place, instead of going back
  --any-route        do not insist that 192.168.100.x goes through tmfifo
  --any-arch         do not insist on aarch64
  --ssh-option N=V   option for ssh and scp, as in IdentityFile=card.key; again for another
  --json             one JSON object on standard output; messages go to standard error
  --dry-run          check what is here and print the steps; nothing is sent
  --help             this

It touches neither firmware nor the card's mode. Exit codes: 0 runs, 1 does not, 2 wrong arguments or files, 4 no card.
USAGE
}

wrong() {
    echo "deploy: $1" >&2
    exit 2
}

bin=
packages=()
card=ubuntu@192.168.100.2
config=
unit=$here/systemd/dpu-app.service
label=-
wait_s=60
health=ping
keep_failed=false
any_route=false
any_arch=false
ssh_options=()
json=false
dry_run=false
while [ $# -gt 0 ]; do
    case "$1" in
        --keep-failed) keep_failed=true ;;
        --any-route) any_route=true ;;
        --any-arch) any_arch=true ;;
        --json) json=true ;;
        --dry-run) dry_run=true ;;
        --help | -h)
            usage
            exit 0
            ;;
        --bin | --package | --card | --config | --unit | --label | --wait | --health | --ssh-option)
            [ $# -ge 2 ] || wrong "$1 needs a value"
            case "$1" in
                --bin) bin=$2 ;;
                --package) packages+=("$2") ;;
                --card) card=$2 ;;
                --config) config=$2 ;;
                --unit) unit=$2 ;;
                --label) label=$2 ;;
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
say() { echo "deploy: $*" >&2; }
case "$wait_s" in '' | *[!0-9]*) wrong "--wait $wait_s: not a number of seconds" ;; esac
case "$health" in ping | active) ;; *) wrong "--health $health: ping or active" ;; esac
if [ -z "$bin" ] && [ ${#packages[@]} = 0 ]; then wrong "what? --bin DIR or --package FILE"; fi
if [ -n "$bin" ] && [ ${#packages[@]} -gt 0 ]; then wrong "--bin and --package exclude each other"; fi
if [ -n "$config" ] && [ ! -r "$config" ]; then wrong "--config $config: cannot be read"; fi
card_reach "$card" "${ssh_options[@]}" || exit 2

# The machine word of an ELF header: b7 00 is AArch64.
is_arm_program() { [ "$(od --address-radix=n --format=x1 --skip-bytes=18 --read-bytes=2 "$1" | tr --delete ' \n')" = b700 ]; }

work=$(mktemp -d)
trap 'rm --recursive --force "$work"' EXIT
release=$work/release
mkdir "$release"
if [ -n "$bin" ]; then
    [ -f "$bin/dpu-app" ] || wrong "--bin $bin: no dpu-app in it: build it with scripts/cross-build.sh"
    [ -r "$unit" ] || wrong "--unit $unit: cannot be read"
    mkdir "$release/bin"
    for name in dpu-app host-ctl kvlane-plan; do
        [ -f "$bin/$name" ] || continue
        $any_arch || is_arm_program "$bin/$name" ||
            wrong "$bin/$name is no program for aarch64: scripts/cross-build.sh makes one (--any-arch if it is meant)"
        cp "$bin/$name" "$release/bin/"
    done
    if [ ! -f "$bin/host-ctl" ] && [ "$health" = ping ]; then
        wrong "--bin $bin: no host-ctl in it, and --health ping needs it on the card: add it, or --health active"
    fi
    cp "$unit" "$release/dpu-app.service"
    cp "$here/systemd/kvlane.sysusers.conf" "$release/"
    cp "${config:-$here/systemd/dpu-app.conf}" "$release/dpu-app.conf"
else
    mkdir "$release/packages"
    for package in "${packages[@]}"; do
        [ -r "$package" ] || wrong "--package $package: cannot be read"
        arch=$(dpkg-deb --field "$package" Architecture 2>/dev/null) || wrong "$package is not a .deb"
        case "$arch" in
            arm64 | all) ;;
            *) $any_arch || wrong "$package is for $arch: the card is arm64 (--any-arch if it is meant)" ;;
        esac
        cp "$package" "$release/packages/"
    done
    [ -z "$config" ] || cp "$config" "$release/dpu-app.conf"
fi
[ -z "$config" ] || echo "the config of this release replaces the card's" >"$release/replace-config"
printf '%s\n' "${label//[[:space:]]/_}" >"$release/label"
(cd "$release" && find . -type f ! -name SHA256SUMS -print0 | LC_ALL=C sort --zero-terminated | xargs --null sha256sum) >"$work/SHA256SUMS"
mv "$work/SHA256SUMS" "$release/SHA256SUMS"
id=$(sha256sum "$release/SHA256SUMS" | cut --characters=1-12)

if $dry_run; then
    cat <<PLAN
deploy: release $id, $(du --summarize --bytes "$release" | cut --fields=1) bytes, for $card:
$(sed 's/^/  /' "$release/SHA256SUMS")
deploy: would do, and did nothing of:
  1. check that $card is reached through tmfifo where its address says so
  2. copy the release into a private directory there and check every sha256 there
  3. keep it in /opt/kvlane/releases/$id; ask the new dpu-app for its limits with the card's config
  4. $([ -n "$config" ] && echo "replace /etc/kvlane/dpu-app.conf" || echo "write /etc/kvlane/dpu-app.conf only if there is none"), $([ -n "$bin" ] && echo "install the unit" || echo "dpkg --install")
  5. point /opt/kvlane/current at it, restart dpu-app, wait up to $wait_s s for health ($health)
  6. $($keep_failed && echo "leave it in place if it is not healthy" || echo "go back to the release before if it is not healthy")
PLAN
    exit 0
fi

$any_route || card_route || exit 4
say "release $id to $card"
staging=$(card_put "$release") || {
    card_explain 255
    exit 4
}
started=$SECONDS
arguments=(install --staging "$staging" --release "$id" --wait "$wait_s" --health "$health")
$keep_failed && arguments+=(--keep-failed)
code=0
answer=$(card_bash "$here/bring-up/release.sh" "${arguments[@]}") || code=$?
# The line `result name=value ...` of release.sh.
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
version=$(word version | tr '_' ' ')
if $json; then
    printf '{"command":"deploy","ok":%s,"release":"%s","running":"%s","previous":"%s","version":"%s","changed":"%s","health":"%s","seconds":%d}\n' \
        "$([ "$code" = 0 ] && echo true || echo false)" "$id" "$(word release)" "$(word previous)" "$version" "$(word changed)" "$(word health)" \
        $((SECONDS - started))
fi
case "$version" in *'(emulator)'*) say "WARNING: this dpu-app is built for the EMULATOR and uses no engine of the card: build it with the sdk feature" ;; esac
if [ "$code" = 0 ]; then
    say "ok: $(word release) runs on $card (${version:-version unknown}), changed: $(word changed), before it: $(word previous | grep . || echo none)"
    say "next: scripts/smoke.sh --card $card"
else
    say "FAILED: $id does not run on $card; running there: $(word release | grep . || echo unknown) (health: $(word health | grep . || echo unknown))"
fi
exit "$code"
