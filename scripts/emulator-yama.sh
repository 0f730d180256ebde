#!/usr/bin/env bash
# Runs the emulator's tests of memory between processes as an ordinary user under Yama's ptrace_scope 1, Ubuntu's
# default: boots Debian's kernel in a software-emulated machine whose whole system is busybox and the test.
set -euo pipefail

usage() {
    cat <<'USAGE'
Usage: scripts/emulator-yama.sh [--kernel FILE] [--scope N] [--timeout-s N] [--work DIR] [--install] [TEST]
  --kernel FILE   a bzImage with Yama and a serial console (default: that of apt's linux-image-amd64, downloaded, not installed)
  --scope N       ptrace_scope: 0, 1 (default), 2, 3
  --timeout-s N   how long the machine may take (default 300)
  --work DIR      build there and keep it (default: a temporary directory)
  --install       install missing apt packages (qemu-system-x86 busybox-static)
  TEST            run only tests whose names contain this
Needs no KVM and no privilege. Exit codes: 0 all tests passed, 1 a test or the check of Yama failed, 2 usage.
USAGE
}

kernel=
scope=1
timeout_s=300
work=
install=false
only=
while [ $# -gt 0 ]; do
    case "$1" in
        --kernel | --scope | --timeout-s | --work)
            [ $# -ge 2 ] || {
                echo "emulator-yama: $1 wants a value" >&2
                exit 2
            }
            case "$1" in
                --kernel) kernel=$2 ;;
                --scope) scope=$2 ;;
                --timeout-s) timeout_s=$2 ;;
                --work) work=$2 ;;
            esac
            shift
            ;;
        --install) install=true ;;
        --help | -h)
            usage
            exit 0
            ;;
        -*)
            usage >&2
            exit 2
            ;;
        *) only=$1 ;;
    esac
    shift
done
[[ $scope =~ ^[0-3]$ && $timeout_s =~ ^[0-9]+$ && $only =~ ^[a-z_]*$ ]] || {
    usage >&2
    exit 2
}
cd "$(dirname "$0")/.."
if [ -z "$work" ]; then
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
fi
mkdir -p "$work"
work=$(cd "$work" && pwd)

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

# 1. the tools
if ! command -v qemu-system-x86_64 >/dev/null || ! command -v busybox >/dev/null; then
    $install || {
        echo "emulator-yama: qemu-system-x86_64 or busybox is not here: run with --install, or apt-get install qemu-system-x86 busybox-static" >&2
        exit 2
    }
    as_root apt-get update --quiet --quiet
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet --quiet --no-install-recommends \
        qemu-system-x86 busybox-static >/dev/null
fi
if ldd "$(command -v busybox)" >/dev/null 2>&1; then
    echo "emulator-yama: busybox is not static: install busybox-static" >&2
    exit 2
fi

# 2. the kernel
if [ -z "$kernel" ]; then
    package=$(apt-cache depends linux-image-amd64 | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1)
    [ -n "$package" ] || {
        echo "emulator-yama: apt knows no linux-image-amd64: run apt-get update, or give --kernel" >&2
        exit 2
    }
    [ -n "$(find "$work" -name "$package*.deb")" ] || (cd "$work" && apt-get download --quiet --quiet "$package" 2>/dev/null)
    dpkg-deb --fsys-tarfile "$work/$package"*.deb | tar --extract --directory="$work" --wildcards './boot/vmlinuz*'
    kernel=$(find "$work/boot" -name 'vmlinuz*' | head -n 1)
fi

# 3. the system: busybox, the test with its libraries, and an init that runs it
cargo test --locked --package doca-emulator --test processes --no-run --message-format=json 2>"$work/build.log" >"$work/build.json" || {
    cat "$work/build.log" >&2
    exit 1
}
test=$(sed -n 's/.*"name":"processes".*"executable":"\([^"]*\)".*/\1/p' "$work/build.json" | head -n 1)
root=$work/root
rm -rf "$root"
mkdir -p "$root"/{bin,proc,sys,dev,tmp,etc}
cp "$(command -v busybox)" "$root/bin/busybox"
for applet in sh mount poweroff dd sleep su id uname; do ln -s busybox "$root/bin/$applet"; done
objcopy --strip-debug "$test" "$root/bin/processes"
ldd "$test" | grep -o '/[^ ]*' | while read -r library; do
    mkdir -p "$root$(dirname "$library")"
    cp --dereference "$library" "$root$library"
done
printf 'root:x:0:0::/:/bin/sh\nuser:x:1000:1000::/tmp:/bin/sh\n' >"$root/etc/passwd"
cat >"$root/bin/as-user" <<AS_USER
#!/bin/sh
# A process that is no ancestor of another must not get at its memory under Yama: without this, the tests would prove
# nothing.
sleep 1000 &
if dd if=/proc/\$!/mem of=/dev/null count=0 2>/dev/null; then may=yes; else may=no; fi
echo "@yama scope \$(cat /proc/sys/kernel/yama/ptrace_scope), user \$(id -u), a stranger's memory: \$may"
if [ \$may = yes ] && [ $scope != 0 ]; then exit 1; fi
processes --test-threads=2 $only
AS_USER
cat >"$root/init" <<INIT
#!/bin/sh
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
chmod 1777 /tmp
echo $scope >/proc/sys/kernel/yama/ptrace_scope
echo "@kernel \$(uname -r)"
su user -c as-user
echo "@exit \$?"
poweroff -f
INIT
for applet in cat chmod; do ln -s busybox "$root/bin/$applet"; done
chmod +x "$root/init" "$root/bin/as-user"
(cd "$root" && find . | busybox cpio -o -H newc 2>/dev/null | gzip --fast) >"$work/initramfs.gz"

# 4. boot it
timeout --foreground "$timeout_s" qemu-system-x86_64 -accel tcg,thread=multi -cpu max -smp 2 -m 1024 -nographic -no-reboot \
    -nodefaults -serial stdio -kernel "$kernel" -initrd "$work/initramfs.gz" \
    -append "console=ttyS0 quiet panic=-1 rdinit=/init" </dev/null 2>&1 | tr -d '\r' | tee "$work/console.log" || true
grep -q '^@exit 0$' "$work/console.log" || {
    echo "emulator-yama: failed, or the machine did not finish within $timeout_s s" >&2
    exit 1
}
