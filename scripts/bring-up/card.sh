# shellcheck shell=bash
# The way to the card, for scripts that source it: run a script there as root, put files there. `local` is this machine.
# What crosses is a script of ours on standard input and quoted words; nothing of ours has to be installed there.

card_target=
card_options=(-o BatchMode=yes -o ConnectTimeout=10 -o ServerAliveInterval=15)

# Chooses the card. TARGET is user@address, or local. Further words are options for ssh, each in the form Name=value.
card_reach() {
    card_target=$1
    shift
    case "$card_target" in
        '' | -* | *[[:space:]]*)
            echo "card: '$card_target' is not a target: it looks like ubuntu@192.168.100.2, or local" >&2
            return 2
            ;;
    esac
    local option
    for option in "$@"; do card_options+=(-o "$option"); done
}

# Refuses when a tmfifo address would be reached through another network: a stranger may answer there.
card_route() {
    local address=${card_target#*@} route
    case "$address" in 192.168.100.*) ;; *) return 0 ;; esac
    route=$(ip route get "$address" 2>/dev/null | head -n 1 || true)
    case " $route " in
        *" via "* | *" dev lo "* | "  ") ;;
        *" dev tmfifo_net"*) return 0 ;;
    esac
    echo "card: $address is not reached through tmfifo (${route:-no route}): a stranger may answer there." >&2
    echo "card: ip route replace $address/32 dev tmfifo_net0, or --any-route if this is meant" >&2
    return 4
}

# 'a b' -> ''\''a b'\''': for any POSIX shell.
card_quote() {
    local word out=
    for word in "$@"; do out+=" '${word//\'/\'\\\'\'}'"; done
    printf '%s' "${out# }"
}

# Runs the script in FILE on the card as root, with these arguments.
card_bash() {
    local file=$1
    shift
    if [ "$card_target" = local ]; then
        local as_root=()
        [ "$(id -u)" = 0 ] || as_root=(sudo --non-interactive)
        "${as_root[@]}" bash -s -- "$@" <"$file"
        return
    fi
    local words
    words=$(card_quote "$@")
    # sudo says itself when it wants a password; card_explain says the fix.
    # shellcheck disable=SC2029 # the words are quoted for the other side
    ssh "${card_options[@]}" "$card_target" \
        "if [ \"\$(id -u)\" = 0 ]; then exec bash -s -- $words; else exec sudo --non-interactive bash -s -- $words; fi" <"$file"
}

# One command of ours on the card, as the user who logs in there.
card_plain() {
    # shellcheck disable=SC2029 # a whole command line for the other side
    if [ "$card_target" = local ]; then bash -c "$1" </dev/null; else ssh "${card_options[@]}" "$card_target" "$1" </dev/null; fi
}

# Puts files into a new private directory on the card and prints its name.
card_put() {
    local staging
    # shellcheck disable=SC2016 # expands over there
    staging=$(card_plain 'mktemp -d "${TMPDIR:-/var/tmp}/kvlane.XXXXXXXX"') || return
    case "$staging" in /*kvlane.????????) ;; *)
        echo "card: mktemp on the card answered '$staging'" >&2
        return 4
        ;;
    esac
    if [ "$card_target" = local ]; then
        cp --recursive "$@" "$staging/" || return
    else
        scp -q -r "${card_options[@]}" "$@" "$card_target:$staging/" >&2 || return
    fi
    echo "$staging"
}

# What an exit code of ssh means, on standard error.
card_explain() {
    case "$1" in
        255) echo "card: ssh to $card_target failed: 'ssh $card_target true' has to work without a password (ssh-copy-id), see scripts/preflight.sh" >&2 ;;
        1) echo "card: if sudo asked for a password above: log in as root, or allow $card_target sudo without one" >&2 ;;
    esac
}
