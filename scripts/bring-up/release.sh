#!/usr/bin/env bash
# Runs on the card, as root, sent there by deploy.sh and rollback.sh: takes a release in, switches to it, goes back.
#
#   /opt/kvlane/releases/<id>/   bin/ or *.deb, unit, config, SHA256SUMS; <id> is the hash of SHA256SUMS
#   /opt/kvlane/current          the one that runs         /opt/kvlane/previous   the one before it
#   /etc/kvlane/dpu-app.conf     the operator's: replaced only by a deploy with --config, and given back by a rollback
#
# Prints one line `result name=value ...` on standard output; all else is on standard error.
set -euo pipefail
# The service's user executes what root installs here.
umask 022

root=${KVLANE_ROOT:-}
home=$root/opt/kvlane
config=$root/etc/kvlane/dpu-app.conf
unit=$root/etc/systemd/system/dpu-app.service
drop_in=$unit.d/kvlane-release.conf
releases_kept=3

say() { echo "card: $*" >&2; }
die() {
    say "$*"
    exit 1
}

command=${1:-}
shift || true
wait_s=60
health=ping
keep_failed=false
staging=
wanted=
while [ $# -gt 0 ]; do
    case "$1" in
        --wait) wait_s=$2 && shift ;;
        --health) health=$2 && shift ;;
        --staging) staging=$2 && shift ;;
        --release) wanted=$2 && shift ;;
        --keep-failed) keep_failed=true ;;
        *) die "release.sh: $1: no such option" ;;
    esac
    shift
done
case "$wanted" in *[!0-9a-f]*) die "$wanted is not the name of a release: rollback.sh --list shows them" ;; esac

# The name that a link points at, or nothing.
linked() { [ ! -L "$home/$1" ] || basename "$(readlink "$home/$1")"; }

# Repoints a link in one step: at no time is there none.
link() {
    ln --symbolic --force --no-dereference "releases/$2" "$home/$1.new"
    mv --force --no-target-directory "$home/$1.new" "$home/$1"
}

program() {
    local at
    for at in "$home/current/bin/$1" "$root/usr/bin/$1"; do
        [ ! -x "$at" ] || { echo "$at" && return; }
    done
}

socket_path() {
    local path
    path=$(sed --quiet 's/#.*//; s/^[[:space:]]*socket[[:space:]]*=[[:space:]]*//p' "$config" 2>/dev/null | tail -n 1 | tr --delete '[:space:]')
    echo "$root${path:-/run/kvlane/dpu-app.sock}"
}

# The socket is its owner's alone, and root's: host-ctl runs as its owner, so that its memory can be reached, too.
as_owner() {
    local owner
    owner=$(stat --format=%u:%g "$1")
    shift
    # Not runuser: PAM would put the login's memory limit back.
    if [ "${owner%:*}" = "$(id -u)" ]; then "$@"; else setpriv --reuid "${owner%:*}" --regid "${owner#*:}" --clear-groups -- "$@"; fi
}

is_healthy() {
    [ "$(systemctl is-active dpu-app 2>/dev/null || true)" = active ] || return 1
    [ "$health" = ping ] || return 0
    local client socket
    client=$(program host-ctl)
    socket=$(socket_path)
    [ -n "$client" ] && [ -e "$socket" ] || return 1
    as_owner "$socket" timeout 15 "$client" ping --count 1 --quiet --socket "$socket" >/dev/null 2>&1
}

# Waits until dpu-app serves, and goes on doing so.
wait_healthy() {
    local deadline=$((SECONDS + wait_s)) good=0 needed=2
    $is_activated || return 1
    [ "$health" = ping ] || needed=10
    while [ "$SECONDS" -le "$deadline" ]; do
        if is_healthy; then
            good=$((good + 1))
            [ "$good" -lt "$needed" ] || return 0
        else
            good=0
            [ "$(systemctl is-failed dpu-app 2>/dev/null || true)" != failed ] || return 1
        fi
        sleep 0.2
    done
    return 1
}

# Passwords do not belong on a terminal that is being copied into a ticket.
show_log() {
    journalctl --unit dpu-app --lines 20 --no-pager --output cat 2>/dev/null |
        sed --regexp-extended 's#://[^[:space:]"]*@#://REDACTED@#g; s/^/card:   /' >&2 || true
}

replaces_config() { [ -n "$1" ] && [ -e "$home/releases/$1/replace-config" ]; }

is_activated=true
# Switches from release $1 (may be empty) to $2 and starts it. Does not wait.
activate() {
    is_activated=true
    local from=$1 to=$2 at=$home/releases/$2
    mkdir --parents "$root/etc/kvlane" "$unit.d"
    if [ -n "$from" ] && [ -e "$config" ] && { replaces_config "$from" || replaces_config "$to"; }; then
        cp --preserve=mode,ownership "$config" "$home/releases/$from/dpu-app.conf.was"
    fi
    local source=
    if [ ! -e "$config" ]; then
        source=$at/dpu-app.conf
    elif replaces_config "$from" || replaces_config "$to"; then
        if [ -e "$at/dpu-app.conf.was" ]; then
            source=$at/dpu-app.conf.was
        elif replaces_config "$to"; then
            source=$at/dpu-app.conf
        fi
    fi
    if [ -e "$at/kvlane.sysusers.conf" ]; then
        mkdir --parents "$root/etc/sysusers.d"
        install --mode=0644 "$at/kvlane.sysusers.conf" "$root/etc/sysusers.d/kvlane.conf"
        systemd-sysusers "$root/etc/sysusers.d/kvlane.conf"
    fi
    if [ -n "$source" ] && [ -e "$source" ] && ! cmp --quiet "$source" "$config"; then
        install --mode=0640 "$source" "$config.new"
        mv --force "$config.new" "$config"
        say "config: $config is that of release $to"
    fi
    if [ -d "$at/packages" ]; then
        # The package brings its own unit: ours would hide it.
        if [ -e "$drop_in" ]; then rm --force "$drop_in" "$unit"; fi
        DEBIAN_FRONTEND=noninteractive dpkg --install --force-confold "$at"/packages/*.deb >&2 || {
            say "dpkg did not install release $to: see above"
            is_activated=false
        }
    else
        install --mode=0644 "$at/dpu-app.service" "$unit"
        cat >"$drop_in" <<'DROP_IN'
# Written by deploy.sh: run the release that /opt/kvlane/current points at.
[Service]
ExecStart=
ExecStart=/opt/kvlane/current/bin/dpu-app run --config /etc/kvlane/dpu-app.conf
DROP_IN
    fi
    # A store's URL may hold a password: the service may read it, others not. Its group comes with sysusers or the
    # package.
    if [ -e "$config" ] && getent group kvlane >/dev/null; then chgrp kvlane "$config"; fi
    link current "$to"
    systemctl daemon-reload
    systemctl enable --quiet dpu-app
    # A start from an earlier failure must not run into its start limit.
    systemctl reset-failed dpu-app 2>/dev/null || true
    systemctl restart dpu-app || true
}

version_now() {
    local app
    app=$(program dpu-app)
    [ -z "$app" ] || "$app" --version 2>/dev/null | head -n 1 | tr ' ' '_'
}

result() {
    echo "result release=$(linked current) previous=$(linked previous) version=$(version_now) $*"
}

# Only what neither runs nor is next in line goes.
prune() {
    local name kept=0
    while read -r name; do
        kept=$((kept + 1))
        case "$name" in "$(linked current)" | "$(linked previous)") continue ;; esac
        [ "$kept" -le "$releases_kept" ] || rm --recursive --force "$home/releases/${name:?}"
    done < <(ls --sort=time "$home/releases")
}

take_in() {
    local incoming=$home/releases/.incoming
    rm --recursive --force "$incoming"
    mkdir --parents "$incoming"
    # Copied first and checked then, where its sender cannot change it any more.
    cp --recursive --no-preserve=mode,ownership "$staging/release/." "$incoming/"
    (cd "$incoming" && sha256sum --check --quiet --strict SHA256SUMS) >&2 ||
        die "what arrived is not what was sent: run deploy.sh again; if it stays so, look at disk and link"
    # Every file is listed: nothing comes along unseen.
    local listed found
    listed=$(wc --lines <"$incoming/SHA256SUMS")
    found=$(find "$incoming" -type f ! -name SHA256SUMS | wc --lines)
    [ "$listed" = "$found" ] || die "$found files arrived, $listed are listed: run deploy.sh again"
    [ "$(sha256sum "$incoming/SHA256SUMS" | cut --characters=1-12)" = "$wanted" ] || die "this is not release $wanted: run deploy.sh again"
    find "$incoming" -type d -exec chmod 0755 {} +
    find "$incoming" -type f -exec chmod 0644 {} +
    chmod 0640 "$incoming"/dpu-app.conf 2>/dev/null || true
    if [ -d "$incoming/bin" ]; then chmod 0755 "$incoming"/bin/*; fi
    rm --recursive --force "$home/releases/${wanted:?}"
    mv "$incoming" "$home/releases/$wanted"
}

# Asks the new binary for its limits with the config that it will get, while the old one still serves.
rehearse() {
    local at=$home/releases/$wanted with=$config answer app package unpacked=
    app=$at/bin/dpu-app
    if [ -d "$at/packages" ]; then
        unpacked=$home/releases/.rehearsal
        rm --recursive --force "$unpacked"
        for package in "$at"/packages/*.deb; do dpkg-deb --extract "$package" "$unpacked"; done
        app=$unpacked/usr/bin/dpu-app
    fi
    [ -x "$app" ] || return 0
    if replaces_config "$wanted"; then
        with=$at/dpu-app.conf
    elif [ ! -e "$config" ]; then
        with=${unpacked:+$unpacked/etc/kvlane}
        with=${with:-$at}/dpu-app.conf
    fi
    answer=$("$app" limits --config "$with" 2>&1) ||
        die "release $wanted does not run here with its config, nothing was changed: $(tail -n 1 <<<"$answer" | sed --regexp-extended 's#://[^[:space:]"]*@#://REDACTED@#g')"
}

install_release() {
    local before
    before=$(linked current)
    if [ "$before" = "$wanted" ] && is_healthy; then
        say "release $wanted runs already and is healthy"
        result changed=no health=ok
        return
    fi
    take_in
    rehearse
    if [ -n "$before" ] && [ "$before" != "$wanted" ]; then link previous "$before"; fi
    say "switching from ${before:-nothing} to $wanted"
    activate "$before" "$wanted"
    if wait_healthy; then
        touch "$home/releases/$wanted"
        prune
        result changed=yes health=ok
        return
    fi
    say "release $wanted is not healthy after at most $wait_s s; its log:"
    show_log
    if $keep_failed || [ -z "$before" ] || [ "$before" = "$wanted" ]; then
        say "it is left as it is; scripts/rollback.sh goes back, scripts/preflight.sh --role card and collect.sh look closer"
        result changed=yes health=bad
    else
        say "going back to $before"
        activate "$wanted" "$before"
        link previous "$wanted"
        local back=bad
        ! wait_healthy || back=ok
        result changed=back health="$back"
    fi
    exit 1
}

roll_back() {
    local before to
    before=$(linked current)
    to=${wanted:-$(linked previous)}
    [ -n "$to" ] || die "there is no release before ${before:-the first}: rollback.sh --list shows what is here"
    [ -d "$home/releases/$to" ] || die "release $to is not here: rollback.sh --list shows what is"
    if [ "$before" = "$to" ] && is_healthy; then
        say "release $to runs already and is healthy"
        result changed=no health=ok
        return
    fi
    (cd "$home/releases/$to" && sha256sum --check --quiet --strict SHA256SUMS) >&2 || die "release $to is damaged: deploy it again"
    say "switching from ${before:-nothing} to $to"
    activate "$before" "$to"
    if [ -n "$before" ] && [ "$before" != "$to" ]; then link previous "$before"; fi
    if wait_healthy; then
        result changed=yes health=ok
        return
    fi
    say "release $to is not healthy after at most $wait_s s; its log:"
    show_log
    result changed=yes health=bad
    exit 1
}

list() {
    local name mark
    [ -d "$home/releases" ] || return 0
    while read -r name; do
        mark=-
        [ "$name" != "$(linked previous)" ] || mark=previous
        [ "$name" != "$(linked current)" ] || mark=current
        echo "release $name $mark $(head -n 1 "$home/releases/$name/label" 2>/dev/null || echo -)"
    done < <(ls --sort=time "$home/releases")
}

mkdir --parents "$home/releases"
exec 9>"$home/lock"
flock --nonblock 9 || die "another deploy or rollback is at work here: wait for it"
trap 'rm --recursive --force "$home/releases/.rehearsal"; [ -z "$staging" ] || rm --recursive --force "${staging:?}"' EXIT
case "$command" in
    install)
        [ -n "$wanted" ] || die "install needs --release"
        [ -d "$staging/release" ] || die "install needs --staging with a release in it"
        install_release
        ;;
    rollback) roll_back ;;
    list) list ;;
    *) die "release.sh: '$command': no such command" ;;
esac
