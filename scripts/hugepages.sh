#!/usr/bin/env bash
# Reserves huge pages for dpu-app's ring, now and after every boot. Without them it runs, too; registering its memory
# takes longer. Run it twice and the second does nothing.
set -euo pipefail

usage() {
    cat <<'USAGE'
Usage: scripts/hugepages.sh --count N | --remove [options]
  --count N    huge pages of the system's default size to have, all programs together. dpu-app wants as many as
               `dpu-app limits` says: 26 of 2 MiB on a BlueField-3 with default flags, a tier in memory (dram=) beside them
  --shrink     also go down to N where there are more; they may be another program's (OVS, SPDK)
  --remove     forget the setting of an earlier run; pages stay until the next boot
  --json       one JSON object
  --dry-run    say what would be written, write nothing
  --help       this

It writes /etc/sysctl.d/80-kvlane-hugepages.conf and nothing else. KVLANE_ROOT puts a directory in front (images, tests).
Exit codes: 0 they are there, 1 not all could be had, 2 wrong arguments.
USAGE
}

wrong() {
    echo "hugepages: $1" >&2
    usage >&2
    exit 2
}

count=
shrink=false
remove=false
json=false
dry_run=false
root=${KVLANE_ROOT:-}
while [ $# -gt 0 ]; do
    case "$1" in
        --count)
            count=${2:-}
            case "$count" in '' | *[!0-9]* | ???????*) wrong "--count '$count': not a number below a million" ;; esac
            shift
            ;;
        --shrink) shrink=true ;;
        --remove) remove=true ;;
        --json) json=true ;;
        --dry-run) dry_run=true ;;
        --help | -h)
            usage
            exit 0
            ;;
        *) wrong "$1: no such option" ;;
    esac
    shift
done
if [ -z "$count" ] && ! $remove; then wrong "--count N or --remove"; fi
if [ -n "$count" ] && $remove; then wrong "--count and --remove exclude each other"; fi

setting=$root/etc/sysctl.d/80-kvlane-hugepages.conf
meminfo() { awk -v name="$1:" '$1 == name { print $2 }' "$root/proc/meminfo"; }
page_kib=$(meminfo Hugepagesize)
before=$(meminfo HugePages_Total)
[ -n "$page_kib" ] || {
    echo "hugepages: this kernel has none (CONFIG_HUGETLBFS): dpu-app runs without, use the distribution's kernel to have them" >&2
    exit 1
}

say() { $json || echo "hugepages: $*"; }
# changed, verdict
finish() {
    ! $json || printf '{"command":"hugepages","ok":%s,"changed":%s,"wanted":%s,"before":%s,"total":%s,"free":%s,"page_kib":%s,"dry_run":%s}\n' \
        "$2" "$1" "${count:-0}" "$before" "$(meminfo HugePages_Total)" "$(meminfo HugePages_Free)" "$page_kib" "$dry_run"
    if $2; then exit 0; else exit 1; fi
}
may_write() {
    if [ ! -w "$1" ]; then
        echo "hugepages: $1 cannot be written: run as root (sudo scripts/hugepages.sh ...)" >&2
        exit 1
    fi
}

if $remove; then
    if [ ! -e "$setting" ]; then
        say "no setting of ours here: nothing to do"
        finish false true
    fi
    if $dry_run; then
        say "would remove $setting"
        finish false true
    fi
    may_write "$(dirname "$setting")"
    rm --force "$setting"
    say "removed $setting; $before pages stay until the next boot"
    finish true true
fi

target=$count
if [ "$before" -gt "$count" ] && ! $shrink; then target=$before; fi
line="vm.nr_hugepages = $target"
text="# Written by kvlane's scripts/hugepages.sh: huge pages for dpu-app and all others.
$line"
is_set=false
[ "$(cat "$setting" 2>/dev/null || true)" != "$text" ] || is_set=true

# Files are read in the order of their names: a later one wins at the next boot.
for file in "$root"/etc/sysctl.d/*.conf "$root"/etc/sysctl.conf; do
    if [ ! -r "$file" ] || [ "$file" = "$setting" ]; then continue; fi
    if [[ ! "$(basename "$file")" < "$(basename "$setting")" ]] && grep --quiet --extended-regexp '^[[:space:]]*vm[./]nr_hugepages[[:space:]]*=' "$file"; then
        echo "hugepages: warning: $file also sets vm.nr_hugepages and is read after ours: take its line out" >&2
    fi
done

if $is_set && [ "$before" -ge "$target" ] && { ! $shrink || [ "$before" = "$target" ]; }; then
    say "$before pages of $page_kib KiB are there and will be after a boot: nothing to do"
    finish false true
fi
if $dry_run; then
    say "would write to $setting: $line"
    say "would load it: $before pages of $page_kib KiB now, $target then ($((target * page_kib / 1024)) MiB)"
    finish false true
fi
mkdir --parents "$(dirname "$setting")" 2>/dev/null || true
may_write "$(dirname "$setting")"
printf '%s\n' "$text" >"$setting.new"
mv --force "$setting.new" "$setting"
sysctl --quiet --load="$setting" || true
after=$(meminfo HugePages_Total)
if [ "$after" -lt "$target" ]; then
    echo "hugepages: $after of $target pages: memory is in pieces or short ($((target * page_kib / 1024)) MiB wanted)." >&2
    echo "hugepages: it will be tried again at boot: reboot, or free memory and run this again" >&2
    finish true false
fi
say "$after pages of $page_kib KiB ($((after * page_kib / 1024)) MiB), $(meminfo HugePages_Free) free; kept after a boot by $setting"
finish true true
