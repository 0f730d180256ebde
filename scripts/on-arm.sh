#!/usr/bin/env bash
# Runs a command where programs for aarch64 run like any other, and so do their children: with qemu-user, registered for
# this command alone. The kernel keeps such registrations per user namespace from Linux 6.7 on, so the machine stays as
# it was.
set -euo pipefail

usage() {
    cat <<'USAGE'
Usage: scripts/on-arm.sh [--help] COMMAND [ARGUMENT...]
  COMMAND   anything: an Arm program, or a script that starts some (scripts/on-arm.sh target/aarch64-.../release/dpu-app --version)

Needs qemu-user and the Arm C library (scripts/setup.sh --arm), and Linux 6.7 or a machine on which qemu is registered for
aarch64 already (Debian's qemu-user-binfmt, Ubuntu's qemu-user-static do that). Inside, the caller is root of a user namespace.
Exit code: that of COMMAND; 2 wrong arguments, 3 Arm programs cannot run here.
USAGE
}

case "${1:-}" in
    --help | -h)
        usage
        exit 0
        ;;
    '')
        usage >&2
        exit 2
        ;;
esac

die() {
    echo "on-arm: $1" >&2
    exit 3
}

[ "$(uname --machine)" != aarch64 ] || exec "$@"

qemu=$(command -v qemu-aarch64 || command -v qemu-aarch64-static) || die "there is no qemu-aarch64: scripts/setup.sh --arm installs it"
loader=lib/ld-linux-aarch64.so.1
if [ ! -e "/$loader" ]; then
    export QEMU_LD_PREFIX=${QEMU_LD_PREFIX:-/usr/aarch64-linux-gnu}
    [ -e "$QEMU_LD_PREFIX/$loader" ] || die "no $loader in $QEMU_LD_PREFIX: scripts/setup.sh --arm installs it"
fi

binfmt=/proc/sys/fs/binfmt_misc
is_registered() { [ -e "$binfmt/qemu-aarch64" ] && grep --quiet enabled "$binfmt/qemu-aarch64"; }
if is_registered; then exec "$@"; fi

# An ELF header of 64 bits, little endian, a program or a library, for machine 183. P: argv[0] stays what it was. F:
# qemu is opened now, so that it is found in a chroot, too.
magic='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
# shellcheck disable=SC2016 # expands inside the namespace
exec unshare --user --map-root-user --mount -- bash -c '
    binfmt=$1 rule=$2
    shift 2
    { mount -t binfmt_misc none "$binfmt" && printf %s "$rule" >"$binfmt/register"; } 2>/dev/null || {
        echo "on-arm: this kernel keeps no registrations per user namespace (Linux 6.7 does): apt-get install qemu-user-binfmt" >&2
        exit 3
    }
    exec "$@"
' on-arm "$binfmt" ":qemu-aarch64:M::$magic:$mask:$qemu:PF" "$@"
