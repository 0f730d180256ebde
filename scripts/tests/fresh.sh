#!/usr/bin/env bash
# The two commands in a machine's minimal root, made here and now: no cargo, curl, sudo, git, nor this tree's history.
# What a person sees before anything is installed takes seconds; with --build all of it is done: installing, building,
# demo, the README's block "By hand", and with --test the tests. Every claim is one line, as in run.sh, which has more
# of them with fakes.
set -euo pipefail
cd "$(dirname "$0")/../.."

usage() {
    cat <<'USAGE'
Usage: scripts/tests/fresh.sh [--suite bookworm|trixie|noble] [--mirror URL] [--plain] [--build] [--test] [--keep]
  --suite NAME  what kind of machine: Debian 12 or 13, Ubuntu 24.04 [default: bookworm]
  --mirror URL  where its packages are [default: what apt of this machine uses, or the distribution's own]
  --plain       only the suite itself is in apt's sources, as debootstrap leaves them: no updates, no security archive
  --build       also install, build, run the demo and the README's block: half an hour on two cores
  --test        after that also run scripts/test.sh
  --keep        leave the root behind and say where it is
It needs root and debootstrap, and writes below TMPDIR only. Network settings of this machine (apt's, certificates, names) are
copied into the root.
USAGE
}

suite=bookworm
mirror=
plain=false
build=false
tests=false
keep=false
while [ $# -gt 0 ]; do
    case "$1" in
        --suite | --mirror)
            declare "${1#--}=${2:?$1 needs a value}"
            shift
            ;;
        --plain) plain=true ;;
        --build) build=true ;;
        --test)
            build=true
            tests=true
            ;;
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
    shift
done
case "$suite" in
    bookworm | trixie) distribution=debian components=main security=$suite-security ;;
    noble) distribution=ubuntu components=main,universe security=noble-security ;;
    *)
        usage >&2
        exit 2
        ;;
esac
if [ "$(id -u)" != 0 ] || ! command -v debootstrap >/dev/null; then
    echo "fresh: skipped: it needs root and debootstrap (scripts/setup.sh --test installs it)"
    exit 0
fi
# Mounts of the root end with this process, whatever happens.
if [ -z "${KVLANE_FRESH_INSIDE:-}" ]; then
    arguments=(--suite "$suite")
    [ -z "$mirror" ] || arguments+=(--mirror "$mirror")
    for flag in plain build keep; do ! ${!flag} || arguments+=("--$flag"); done
    ! $tests || arguments+=(--test)
    KVLANE_FRESH_INSIDE=1 exec unshare --mount --fork --kill-child "$0" "${arguments[@]}"
fi

work=$(mktemp -d)
root=$work/root
finish() {
    status=$?
    for mounted in proc dev; do umount --lazy "$root/$mounted" 2>/dev/null || true; done
    if $keep; then echo "fresh: the root is $root"; else rm -rf --one-file-system "$work"; fi
    exit "$status"
}
trap finish EXIT

# The first address from which apt of this machine takes a release of such a name.
# shellcheck disable=SC2016 # $(SITE) is apt's
sites() { apt-get indextargets --format '$(SITE) $(RELEASE)' 2>/dev/null | sed -n "s#^\(.*/${distribution}[a-z-]*\) $1\$#\1#p" | head -n 1; }
case "$distribution" in
    debian)
        here_security=$(sites "[a-z]*-security")
        mirror=${mirror:-$(sites "[a-z]*")}
        mirror=${mirror:-http://deb.debian.org/debian}
        security_mirror=${here_security:-$mirror-security}
        ;;
    ubuntu)
        mirror=${mirror:-http://archive.ubuntu.com/ubuntu}
        security_mirror=$mirror
        ;;
esac
script=/usr/share/debootstrap/scripts/$suite
[ -e "$script" ] || script=/usr/share/debootstrap/scripts/gutsy
checks=()
if [ "$distribution" = ubuntu ] && [ ! -e /usr/share/keyrings/ubuntu-archive-keyring.gpg ]; then
    echo "fresh: this machine has no keyring of Ubuntu's: the root's own packages are not checked"
    checks=(--no-check-gpg)
fi
echo "fresh: making a minimal root of $suite"
debootstrap --variant=minbase --components="$components" ${checks[@]+"${checks[@]}"} "$suite" "$root" "$mirror" "$script" >"$work/debootstrap.log" 2>&1 || {
    tail -n 5 "$work/debootstrap.log"
    echo "fresh: skipped: debootstrap could not make the root: can this machine reach $mirror?"
    exit 0
}
list=$root/etc/apt/sources.list
echo "deb $mirror $suite ${components//,/ }" >"$list"
if ! $plain; then
    printf 'deb %s %s %s\n' "$mirror" "$suite-updates" "${components//,/ }" "$security_mirror" "$security" "${components//,/ }" >>"$list"
fi
cp /etc/resolv.conf "$root/etc/resolv.conf"
mkdir -p "$root/usr/local/share/ca-certificates"
cp /usr/local/share/ca-certificates/*.crt "$root/usr/local/share/ca-certificates/" 2>/dev/null || true
for file in /etc/apt/apt.conf.d/*proxy*; do [ ! -e "$file" ] || cp "$file" "$root/etc/apt/apt.conf.d/"; done
mount --bind /dev "$root/dev"
mount --types proc proc "$root/proc" 2>/dev/null || mount --bind /proc "$root/proc"
mkdir -p "$root/home/kvlane"
# The tree as a person gets it who has no git: what is in it or would be, and no history.
if git ls-files >/dev/null 2>&1; then git ls-files --cached --others --exclude-standard -z; else find . -path ./target -prune -o -type f -print0; fi |
    tar --create --null --files-from=- --file=- | tar --extract --file=- --directory="$root/home/kvlane"

out=$work/out
code=0
# inside [OPTION-OF-CHROOT...] -- COMMAND...: in the tree of the root, with an empty environment and no terminal.
inside() {
    local options=()
    while [ "$1" != -- ]; do
        options+=("$1")
        shift
    done
    shift
    env --ignore-environment PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 ${https_proxy:+"https_proxy=$https_proxy"} \
        chroot ${options[@]+"${options[@]}"} "$root" bash -c 'cd /home/kvlane && "$@"' - "$@"
}
try() {
    code=0
    began=$SECONDS
    inside "$@" >"$out" 2>&1 </dev/null || code=$?
    took=$((SECONDS - began))
}
passed=0
failed=0
# claim TEXT CODE SECONDS WORDS...: the last try ended with that code, within that time, and said all of the words.
claim() {
    local text=$1 expected=$2 limit=$3 good=true words said
    shift 3
    said=$(<"$out")
    [ "$code" = "$expected" ] && [ "$took" -le "$limit" ] || good=false
    for words in "$@"; do [[ $said == *"$words"* ]] || good=false; done
    if $good; then
        passed=$((passed + 1))
        echo "ok    $suite: $text"
    else
        failed=$((failed + 1))
        echo "FAIL  $suite: $text (code $code after $took s, expected $expected; words: $*)"
        sed 's/^/      | /' "$out"
    fi
}

needs="setup: missing: build-essential pkg-config libclang-dev ca-certificates, and Rust $(sed -n 's/^rust-version = "\(.*\)"$/\1/p' Cargo.toml) or newer (there is no cargo)"
for script in demo test; do
    try -- "scripts/$script.sh"
    claim "$script.sh says at once what is missing and where it comes from, and installs nothing unasked" 2 20 "$needs" "to be installed" "$mirror" "run with --yes"
done
try --userspec=nobody: -- scripts/demo.sh --yes
claim "who is not root and has no sudo hears it, and the command for root" 1 20 "$needs" "not root, and there is no sudo" "apt-get install build-essential"
mkdir -p "$root/old"
for program in cargo rustc; do
    printf '#!/bin/sh\necho "%s 1.85.0 (abcdef012 2025-01-03)"\n' "$program" >"$root/old/$program"
    chmod +x "$root/old/$program"
done
try -- env PATH=/old:/usr/bin:/bin scripts/demo.sh
claim "an old cargo is named, with its place" 2 20 "(cargo 1.85.0 in /old is too old)"
rm -r "$root/old"
if $plain && [ "$suite" = bookworm ]; then
    try -- timeout 120 scripts/setup.sh --yes
    [ "$code" = 0 ] || claim "without a Rust in apt's sources and without rustup's site, what helps is said" 1 60 "did not answer within" "$security"
fi
code=0 began=$SECONDS
export -f inside
export root
unshare --net bash -c 'inside -- scripts/demo.sh --yes' >"$out" 2>&1 </dev/null || code=$?
took=$((SECONDS - began))
claim "without a network it ends within a minute, with a plain word" 1 60 "$needs" "setup: "
try -- scripts/build-word.sh
claim "a tree without history has no word of a build" 0 20

if $build; then
    code=0 began=$SECONDS
    inside -- scripts/demo.sh --yes </dev/null 2>&1 | tee "$out" | sed 's/^/      | /' || code=$?
    took=$((SECONDS - began))
    claim "demo.sh installs, builds and shows how far it is, and the demo is right" 0 7200 "crates done" "demo: ok:"
    # shellcheck disable=SC2016 # three backticks
    sed -n '/^## By hand$/,/^## /p' README.md | sed -n '/^```$/,/^```$/p' | sed '/^```$/d' >"$root/home/kvlane/pasted"
    code=0 began=$SECONDS
    # As pasted into a terminal: what reads its standard input eats the lines that follow.
    inside -- bash -c 'bash <pasted' 2>&1 | tee "$out" | sed 's/^/      | /' || code=$?
    took=$((SECONDS - began))
    claim "the README's block runs as pasted" 0 3600 "within bound"
    if $tests; then
        code=0 began=$SECONDS
        inside -- scripts/test.sh --yes </dev/null 2>&1 | tee "$out" | grep '^test result\|FAILED\|failed\|^build\|^== ' | sed 's/^/      | /' || code=$?
        took=$((SECONDS - began))
        code=0
        claim "test.sh passes" 0 7200 "test result: ok"
    fi
fi
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
