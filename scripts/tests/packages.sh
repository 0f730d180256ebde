#!/usr/bin/env bash
# The packages from first installation to purge, on a copy of this machine: an overlay over / in a mount and process
# namespace of its own, in which dpkg is the real one. Nothing of it is left afterwards. Needs root, dpkg and overlayfs;
# else it says what is missing and skips.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."

usage() {
    cat <<'USAGE'
Usage: scripts/tests/packages.sh [--no-build] [--keep]
  --no-build   take what cross-build.sh left in target/cross
  --keep       leave the packages in target/packages-test
USAGE
}
claim() { echo "packages: $*"; }
fail() {
    echo "packages: FAIL: $*" >&2
    exit 1
}

# --- on the copy -------------------------------------------------------------------------------------------------------
# Root, no systemd: the service is started as its unit says, by hand.

unit=/lib/systemd/system/dpu-app.service
conf=/etc/kvlane/dpu-app.conf
service=
# The value of a setting of the unit.
setting() { sed -n "s/^$1=//p" "$unit" | tail -n 1; }

start_service() {
    local user command
    user=$(setting User)
    install -d --mode="$(setting RuntimeDirectoryMode)" --owner="$user" --group="$(setting Group)" "/run/$(setting RuntimeDirectory)"
    install -d --mode="$(setting StateDirectoryMode)" --owner="$user" --group="$(setting Group)" "/var/lib/$(setting StateDirectory)"
    command=$(setting ExecStart)
    rm -f /tmp/notify /tmp/heard
    # What systemd does for Type=notify.
    perl -MSocket -e '
        socket(HEARD, PF_UNIX, SOCK_DGRAM, 0) && bind(HEARD, sockaddr_un("/tmp/notify")) && chmod 0666, "/tmp/notify" or die $!;
        $| = 1;
        print "listening\n";
        print "$word\n" while defined recv(HEARD, $word, 256, 0);
    ' >/tmp/heard &
    until grep --quiet listening /tmp/heard 2>/dev/null; do sleep 0.05; done
    (
        ulimit -l unlimited 2>/dev/null || true
        umask "$(setting UMask)"
        # shellcheck disable=SC2086 # words of a command
        exec env --ignore-environment PATH=/usr/bin NOTIFY_SOCKET=/tmp/notify WATCHDOG_USEC=600000 \
            setpriv --reuid "$user" --regid "$(setting Group)" --clear-groups --no-new-privs -- $command
    ) 2>/tmp/service.log &
    service=$!
    local tries=0
    until grep --quiet '^READY=1' /tmp/heard; do
        tries=$((tries + 1))
        if [ $tries -gt 200 ] || ! kill -0 $service 2>/dev/null; then fail "the service does not become ready: $(cat /tmp/service.log)"; fi
        sleep 0.05
    done
}
stop_service() {
    kill $service
    wait $service || fail "the service ends with $?: $(cat /tmp/service.log)"
}
as_service() { setpriv --reuid kvlane --regid kvlane --clear-groups -- "$@"; }

on_the_copy() {
    local old=$1 new=$2 arch=$3 version=$4
    export DEBIAN_FRONTEND=noninteractive KVLANE_SOCKET=/run/kvlane/dpu-app.sock

    claim "install: dpkg takes all five, the user and the config's owner are there"
    dpkg --install "$old"/*_"$arch".deb >/tmp/dpkg.log 2>&1 || fail "dpkg: $(cat /tmp/dpkg.log)"
    getent passwd kvlane >/dev/null || fail "no user kvlane"
    [ "$(stat --format='%U:%G %a' $conf)" = "root:kvlane 640" ] || fail "$conf is $(stat --format='%U:%G %a' $conf)"
    dpkg --verify dpu-app host-ctl kvlane-plan kvlane-doca-emulator kvlane-doca-emulator-dev || fail "files are not as packed"
    dpu-app --version | grep --quiet "^dpu-app .*(emulator)" || fail "dpu-app --version says $(dpu-app --version)"
    for page in dpu-app dpu-app-run host-ctl host-ctl-fetch kvlane-plan kvlane-plan-calibrate; do
        zcat "/usr/share/man/man1/$page.1.gz" | grep --quiet '^\.SH NAME' || fail "no manual page $page"
    done
    if command -v systemd-analyze >/dev/null; then
        systemd-analyze verify $unit 2>/tmp/verify || fail "the unit: $(cat /tmp/verify)"
        # Two keys are of systemd 254 and later.
        ! grep --invert-match 'RestartSteps\|RestartMaxDelaySec' /tmp/verify | grep 'dpu-app.service' || fail "the unit: $(cat /tmp/verify)"
    else
        claim "skipped: systemd-analyze verify: there is none here"
    fi

    claim "start: as the unit says, with the packaged config; ready, then alive"
    start_service
    sleep 0.7
    grep --quiet '^WATCHDOG=1' /tmp/heard || fail "no WATCHDOG=1: $(cat /tmp/heard)"

    claim "smoke: store, fetch and compare through the installed programs"
    "$here/../smoke.sh" --bin /usr/bin >/tmp/smoke 2>&1 || fail "smoke: $(cat /tmp/smoke)"
    tail -n 1 /tmp/smoke
    grep --quiet '^smoke: pass' /tmp/smoke || fail "smoke: $(cat /tmp/smoke)"

    claim "build: a DOCA program finds the emulator by pkg-config, and nothing finds it by itself"
    local prefix
    prefix=$(dirname "$(dirname "$(dpkg --listfiles kvlane-doca-emulator | grep 'libdoca_common.so.2$')")")
    cat >/tmp/program.c <<'PROGRAM'
#include <doca_dev.h>
#include <stdio.h>
int main(void)
{
	struct doca_devinfo **list;
	uint32_t n;
	if (doca_devinfo_create_list(&list, &n) != DOCA_SUCCESS)
		return 1;
	printf("%u devices\n", n);
	return doca_devinfo_destroy_list(list) != DOCA_SUCCESS;
}
PROGRAM
    # shellcheck disable=SC2046 # words
    cc -o /tmp/program /tmp/program.c $(PKG_CONFIG_PATH=$prefix/lib/pkgconfig pkg-config --cflags --libs doca-common) ||
        fail "the program does not build"
    LD_LIBRARY_PATH=$prefix/lib /tmp/program 2>/dev/null | grep --quiet '1 devices' || fail "the program does not run"
    ! /tmp/program >/dev/null 2>&1 || fail "the emulator is found without being asked for"
    ! pkg-config --exists doca-common 2>/dev/null || fail "pkg-config finds the emulator without being asked"
    ! dpkg --listfiles kvlane-doca-emulator kvlane-doca-emulator-dev | grep --extended-regexp '^/(opt|usr/include)' || fail "in the SDK's way"

    claim "upgrade: an edited config stays, the new default lies beside it, the store is whole"
    sed --in-place 's/^recipe = .*/recipe = q8/' $conf
    stop_service
    dpkg --install --force-confold "$new"/*_"$arch".deb >/tmp/dpkg.log 2>&1 || fail "dpkg: $(cat /tmp/dpkg.log)"
    [ "$(dpkg-query --show --showformat='${Version}' dpu-app)" = "$version" ] || fail "it is not the new version"
    grep --quiet '^recipe = q8' $conf || fail "the edit is gone"
    [ "$(stat --format='%U:%G %a' $conf)" = "root:kvlane 640" ] || fail "$conf is $(stat --format='%U:%G %a' $conf)"
    grep --quiet '^# a new default' $conf.dpkg-dist || fail "no new default in $conf.dpkg-dist"
    start_service
    as_service host-ctl ping --count 1 | grep --quiet '^recipe  q8' || fail "the edited config is not the one in use"
    as_service host-ctl lookup --model kvlane-smoke --recipe q5 --like "$here/../../testdata/decoder-kv.safetensors" |
        grep --quiet '^hit: all 8 chunks' || fail "what the old version stored is not found"
    stop_service

    claim "downgrade: the version before goes back over it, as rollback.sh does"
    dpkg --install --force-confold "$old"/*_"$arch".deb >/tmp/dpkg.log 2>&1 || fail "dpkg: $(cat /tmp/dpkg.log)"

    claim "remove: programs go, config and store stay"
    dpkg --remove dpu-app host-ctl kvlane-plan kvlane-doca-emulator-dev kvlane-doca-emulator >/tmp/dpkg.log 2>&1 || fail "dpkg: $(cat /tmp/dpkg.log)"
    ! command -v dpu-app >/dev/null || fail "dpu-app is still there"
    if [ ! -e $conf ] || [ ! -d /var/lib/kvlane/store ]; then fail "config or store is gone"; fi

    claim "purge: both go, and nothing is left but the user and dpkg's records"
    dpkg --purge dpu-app host-ctl kvlane-plan kvlane-doca-emulator-dev kvlane-doca-emulator >/tmp/dpkg.log 2>&1 || fail "dpkg: $(cat /tmp/dpkg.log)"
    ! dpkg-query --show 'dpu-app' 'host-ctl' 'kvlane-*' >/dev/null 2>&1 || fail "dpkg still knows them"
}

if [ "${1:-}" = --on-the-copy ]; then
    shift
    on_the_copy "$@"
    exit 0
fi

# --- on the machine ----------------------------------------------------------------------------------------------------

build=()
keep=false
for argument; do
    case "$argument" in
        --no-build) build=(--no-build) ;;
        --keep) keep=true ;;
        --help | -h)
            usage
            exit 0
            ;;
        *)
            usage >&2
            exit 2
            ;;
    esac
done
skip() {
    echo "packages: skipped: $1"
    exit 0
}
[ "$(id -u)" = 0 ] || skip "needs root, for a copy of the machine and for dpkg"
command -v dpkg-deb >/dev/null || skip "no dpkg here"

out=target/packages-test
rm -rf $out
mkdir -p $out/old $out/new
work=$(mktemp -d)
finish() {
    status=$?
    $keep || rm -rf "$out"
    rm -rf "$work"
    exit "$status"
}
trap finish EXIT
native=$(dpkg --print-architecture)
scripts/package.sh --yes --out $out/old "${build[@]}"

claim "arm64: unpacked and run: versions, and the demo in one recipe"
dpkg-deb --extract $out/old/dpu-app_*_arm64.deb "$work/arm64"
dpkg-deb --extract $out/old/host-ctl_*_arm64.deb "$work/arm64"
dpkg-deb --extract $out/old/kvlane-plan_*_arm64.deb "$work/arm64"
scripts/on-arm.sh "$work/arm64/usr/bin/dpu-app" --version
scripts/on-arm.sh scripts/demo.sh --bin "$work/arm64/usr/bin" --recipes q5 | tail -n 1 | grep '^demo: ok'

if command -v lintian >/dev/null; then
    claim "lintian has nothing to say"
    lintian --allow-root --fail-on error,warning $out/old/*.deb
else
    claim "skipped: lintian: it is not installed"
fi

# The next version: the same programs under a higher number, and a default config that changed.
for package in "$out"/old/*_"$native".deb; do
    next=$work/$(basename "$package" .deb)
    dpkg-deb --raw-extract "$package" "$next"
    version=$(sed -n 's/^Version: //p' "$next/DEBIAN/control")+next
    sed --in-place "s/^Version: .*/Version: $version/; s/(= .*)/(= $version)/" "$next/DEBIAN/control"
    if [ -e "$next/etc/kvlane/dpu-app.conf" ]; then
        app_version=$version
        echo '# a new default' >>"$next/etc/kvlane/dpu-app.conf"
        sed --in-place "s|.*  etc/kvlane/dpu-app.conf|$(md5sum "$next/etc/kvlane/dpu-app.conf" | cut --delimiter=' ' --fields=1)  etc/kvlane/dpu-app.conf|" "$next/DEBIAN/md5sums"
    fi
    dpkg-deb --build --root-owner-group -Znone "$next" $out/new/ >/dev/null
done

# shellcheck disable=SC2016 # expands inside
unshare --mount --pid --fork -- bash -c '
    set -e
    copy=$1 here=$2
    shift 2
    mount -t tmpfs none "$copy"
    mkdir "$copy/changes" "$copy/work" "$copy/root"
    mount -t overlay overlay -o "lowerdir=/,upperdir=$copy/changes,workdir=$copy/work" "$copy/root" 2>/dev/null || exit 77
    cd "$copy/root"
    mount --rbind /dev dev
    mount -t proc proc proc
    mount -t tmpfs none run
    mount -t tmpfs none tmp
    # The working tree may lie on a file system of its own.
    mount --bind "$here" ".$here"
    chroot . "$here/scripts/tests/packages.sh" --on-the-copy "$@"
    # What is written and not taken back; a character device marks a deletion.
    left=$(find "$copy/changes" -path "*/var/cache/man" -prune -o ! -type c \( -name "*kvlane*" -o -name "dpu-app*" -o -name "host-ctl*" -o -name "libdoca*" \) -printf "/%P ")
    [ -z "$left" ] || { echo "packages: FAIL: left behind: $left" >&2; exit 1; }
' packages "$work" "$PWD" "$PWD/$out/old" "$PWD/$out/new" "$native" "$app_version" || {
    code=$?
    [ $code != 77 ] || skip "no overlayfs over / here"
    exit $code
}
[ ! -e /etc/kvlane/dpu-app.conf.dpkg-dist ] || fail "the copy was not a copy"
echo "packages: ok"
