#!/usr/bin/env bash
# Looks at a host or a card and says what stands between it and dpu-app. Reads only: it changes nothing, anywhere.
# One file on purpose, so that it also runs where nothing of ours is installed:
#   ssh root@192.168.100.2 bash -s -- --role card < scripts/preflight.sh
set -euo pipefail

usage() {
    cat <<'USAGE'
Usage: scripts/preflight.sh --role host|card [options]
  --role ROLE          which side this machine is: host, or card (the Arm side)
  --device ADDRESS     PCI address of the function to use [default: card 03:00.0, host the first BlueField]
  --peer TARGET        ask the other side over ssh (as in root@192.168.100.2) and compare versions with it
  --peer-facts FILE    compare with this instead: what --facts printed on the other side
  --facts              print what was found as name=value lines, judge nothing (for --peer-facts)
  --tmfifo NAME        network interface to the card [default: tmfifo_net0]
  --host-address A     host's end of it [default: 192.168.100.1]
  --card-address A     card's end of it [default: 192.168.100.2]
  --hugepages-mib N    huge pages that should be reserved, MiB [default: 52 on the card, 0 on the host]
  --memlock-mib N      memory that must be lockable, MiB [default: 52 on the card, 1024 on the host, for a KV cache]
                       52 is what dpu-app pins with default flags; with others, or a tier in memory (dram=), it is what
                       `dpu-app limits --config FILE` calls pinned memory
  --engine-bytes N     largest task that the engines must take [default: 589824, the wire area of a 512 KiB block]
  --json               one JSON object instead of text
  --dry-run            print the commands that would be asked, ask none
  --help               this

Environment: KVLANE_ROOT reads /proc, /sys, /dev, /etc and /opt below this directory (recorded machines, tests).
Exit codes: 0 all ok, 1 warnings, 2 something fails, 64 wrong arguments.
USAGE
}

wrong() {
    echo "preflight: $1" >&2
    usage >&2
    exit 64
}

role=
device=
peer=
peer_facts=
only_facts=false
tmfifo=tmfifo_net0
host_address=192.168.100.1
card_address=192.168.100.2
hugepages_mib=
memlock_mib=
engine_bytes=589824
json=false
dry_run=false
root=${KVLANE_ROOT:-}
while [ $# -gt 0 ]; do
    case "$1" in
        --facts) only_facts=true ;;
        --json) json=true ;;
        --dry-run) dry_run=true ;;
        --help | -h)
            usage
            exit 0
            ;;
        --role | --device | --peer | --peer-facts | --tmfifo | --host-address | --card-address | --hugepages-mib | \
            --memlock-mib | --engine-bytes)
            [ $# -ge 2 ] || wrong "$1 needs a value"
            name=${1#--}
            printf -v "${name//-/_}" '%s' "$2"
            shift
            ;;
        *) wrong "$1: no such option" ;;
    esac
    shift
done
case "$role" in
    host) other=card ;;
    card) other=host ;;
    *) wrong "--role must be host or card" ;;
esac
[ -n "$hugepages_mib" ] || case "$role" in card) hugepages_mib=52 ;; host) hugepages_mib=0 ;; esac
[ -n "$memlock_mib" ] || case "$role" in card) memlock_mib=52 ;; host) memlock_mib=1024 ;; esac
for number in "$hugepages_mib" "$memlock_mib" "$engine_bytes"; do
    case "$number" in '' | *[!0-9]*) wrong "$number is not a number" ;; esac
done
[ -z "$peer" ] || [ -z "$peer_facts" ] || wrong "--peer and --peer-facts exclude each other"
[ -z "$peer_facts" ] || [ -r "$peer_facts" ] || wrong "--peer-facts $peer_facts: cannot be read"
case "$peer" in -*) wrong "--peer $peer: not a name" ;; esac

# 03:00.0 and 0000:03:00.0 are the same function.
with_domain() {
    case "$1" in
        *:*:*) echo "$1" ;;
        *) echo "0000:$1" ;;
    esac
}

if $dry_run; then
    cat <<PLAN
preflight: would read /proc/meminfo, /sys/bus/pci/devices, /dev/rshim*, /etc/mlnx-release and ask:
  uname -m; getconf GNU_LIBC_VERSION; ulimit -l
  lspci -D -nn -d 15b3:
  mlxconfig -d <address> -e query INTERNAL_CPU_OFFLOAD_ENGINE
  ofed_info -s; pkg-config --modversion doca-common
  doca_caps --pci-addr <address>
  ip -oneline -4 address show dev $tmfifo; ip route get $([ "$role" = host ] && echo "$card_address" || echo "$host_address")
  systemctl is-active rshim; systemctl show dpu-app --property=LimitMEMLOCK
PLAN
    [ -z "$peer" ] || echo "  ssh $peer: this script with --role $other --facts"
    exit 0
fi

# ---- gather: every fact is one word or one line; an empty one could not be found out -------------------------------

declare -A fact=()
# The first line that a command prints, or nothing; never fails, never waits for a terminal, gives up after 20 s.
ask() {
    local text
    text=$(timeout 20 "$@" 2>/dev/null </dev/null) || true
    echo "${text%%$'\n'*}"
}
have() { command -v "$1" >/dev/null 2>&1; }

gather_machine() {
    fact[role]=$role
    fact[arch]=$(ask uname -m)
    fact[glibc]=$(ask getconf GNU_LIBC_VERSION)
    fact[glibc]=${fact[glibc]#glibc }
    fact[memlock_kib]=$(ulimit -l)
    local unit
    unit=$(ask systemctl show dpu-app --property=LimitMEMLOCK)
    # systemctl shows a default for a unit that does not exist, too.
    if [ "$(ask systemctl show dpu-app --property=LoadState)" = LoadState=loaded ]; then
        fact[memlock_unit]=${unit#LimitMEMLOCK=}
    fi
    local name value
    while read -r name value _; do
        case "$name" in
            HugePages_Total:) fact[hugepages_total]=$value ;;
            HugePages_Free:) fact[hugepages_free]=$value ;;
            Hugepagesize:) fact[hugepage_kib]=$value ;;
        esac
    done < <(cat "$root/proc/meminfo" 2>/dev/null || true)
}

# Addresses of the BlueField's network functions, and its generation.
gather_pci() {
    fact[lspci]=missing
    have lspci || return 0
    local lines address line
    # A command that fails without a word is no card; the text says more than the code.
    lines=$(timeout 20 lspci -D -nn -d 15b3: 2>/dev/null </dev/null || true)
    fact[lspci]=there
    fact[pci]=
    fact[soc]=
    while read -r address line; do
        case "$line" in
            *"SoC Management"* | *:c2d[345]]* | *"SoC management"*) fact[soc]+="${fact[soc]:+ }$address" ;;
            *BlueField*" network controller"* | *"[15b3:a2d"[26c]"]"*)
                fact[pci]+="${fact[pci]:+ }$address"
                case "$line" in
                    *BlueField-3* | *:a2dc]*) fact[generation]=BlueField-3 ;;
                    *BlueField-2* | *:a2d6]*) fact[generation]=BlueField-2 ;;
                    *) fact[generation]=${fact[generation]:-unknown} ;;
                esac
                ;;
        esac
    done <<<"$lines"
    local wanted=$device
    [ -n "$wanted" ] || [ "$role" = host ] || wanted=03:00.0
    [ -z "$wanted" ] || wanted=$(with_domain "$wanted")
    fact[wanted]=$wanted
    case " ${fact[pci]} " in
        *" ${wanted:-none} "*) fact[device]=$wanted ;;
        *)
            # A device that was named is meant; a default is only a guess.
            if [ -z "$device" ]; then fact[device]=${fact[pci]%% *}; fi
            ;;
    esac
}

gather_device() {
    local address=${fact[device]:-}
    [ -n "$address" ] || return 0
    local at=$root/sys/bus/pci/devices/$address
    if [ -e "$at/driver" ]; then fact[driver]=$(basename "$(readlink "$at/driver")"); else fact[driver]=none; fi
    local file
    for file in "$at"/infiniband/*/fw_ver; do
        [ -r "$file" ] && fact[firmware]=$(head -n 1 "$file")
    done
    local tool config row
    for tool in mlxconfig mstconfig; do
        have "$tool" || continue
        fact[mode_tool]=$tool
        config=$(timeout 30 "$tool" -d "$address" -e query INTERNAL_CPU_OFFLOAD_ENGINE 2>&1 </dev/null || true)
        row=$(awk '$1 == "*" { sub(/^[ \t]*\*/, "") } $1 == "INTERNAL_CPU_OFFLOAD_ENGINE"' <<<"$config" | head -n 1)
        if [ -n "$row" ]; then
            # Default, Current, Next Boot; older tools print the last one only. Values are NAME(n), or n.
            fact[mode_next]=$(awk '{ v = $NF; sub(/.*\(/, "", v); sub(/\).*/, "", v); print v }' <<<"$row")
            fact[mode_now]=$(awk 'NF >= 4 { v = $(NF - 1); sub(/.*\(/, "", v); sub(/\).*/, "", v); print v }' <<<"$row")
        else
            fact[mode_error]=$(grep --max-count 1 --extended-regexp '^-E-|[Ee]rror|[Pp]ermission|denied' <<<"$config" ||
                echo "no INTERNAL_CPU_OFFLOAD_ENGINE in its answer")
        fi
        break
    done
}

gather_versions() {
    local path
    path=$(printf '%s:' "$root"/opt/mellanox/doca/lib/*/pkgconfig)
    if have pkg-config; then
        fact[doca]=$(PKG_CONFIG_PATH="$path${PKG_CONFIG_PATH:-}" ask pkg-config --modversion doca-common)
    fi
    for path in "$root"/opt/mellanox/doca/applications/VERSION "$root"/opt/mellanox/doca/VERSION; do
        [ -n "${fact[doca]:-}" ] || [ ! -r "$path" ] || fact[doca]=$(head -n 1 "$path")
    done
    if [ -r "$root/etc/mlnx-release" ]; then fact[image]=$(head -n 1 "$root/etc/mlnx-release"); fi
    fact[ofed]=$(ask ofed_info -s)
    fact[ofed]=${fact[ofed]%:}
}

# What doca_caps says of one function. Its layout has changed between releases, so names are looked for, not columns:
# task_decompress_deflate, task_decompress_deflate_is_supported and the like, with any of the words for yes.
gather_engines() {
    local tool=
    for tool in doca_caps "$root/opt/mellanox/doca/tools/doca_caps"; do
        have "$tool" && break
        tool=
    done
    fact[caps]=missing
    [ -n "$tool" ] || return 0
    fact[caps]=silent
    [ -n "${fact[device]:-}" ] || return 0
    local text name value
    text=$(timeout 30 "$tool" --pci-addr "${fact[device]}" 2>/dev/null </dev/null || true)
    [ -z "$text" ] || fact[caps]=there
    while read -r name value; do
        fact[$name]=$value
    done < <(awk -v wanted="${fact[device]}" '
        function engine_of(key) {
            if (key ~ /decompress_deflate/) return "inflate"
            if (key ~ /decompress_lz4_stream/) return "lz4"
            if (key ~ /task_memcpy/) return "dma"
            return ""
        }
        BEGIN { here = 1 }
        { gsub(/[:=]+[ \t]*$/, ""); line = $0; sub(/^[ \t]+/, "", line) }
        toupper(line) ~ /^PCI[: ]/ { address = $2; if (address !~ /:.*:/) address = "0000:" address; here = address == wanted; next }
        !here { next }
        {
            split(line, part, /[ \t=:]+/); key = part[1]; value = tolower(part[2]); engine = engine_of(key)
            if (engine == "") next
            if (key ~ /max_buf_list_len$/) print engine "_list", value
            else if (key ~ /max_buf_size$/) print engine "_bytes", value
            else if (key ~ /(deflate|lz4_stream|memcpy)(_is)?(_supported)?$/)
                print engine, (value ~ /^(supported|yes|true|1)$/ ? "yes" : "no")
        }' <<<"$text")
}

gather_link() {
    local to=$host_address
    [ "$role" = card ] || to=$card_address
    fact[link_to]=$to
    if [ "$role" = host ]; then
        local at
        fact[rshim_devices]=
        for at in "$root"/dev/rshim[0-9]*; do
            [ ! -e "$at" ] || fact[rshim_devices]+="${fact[rshim_devices]:+ }$(basename "$at")"
        done
        fact[rshim_service]=$(ask systemctl is-active rshim)
    fi
    have ip || return 0
    fact[tmfifo]=$(ask ip -oneline -4 address show dev "$tmfifo" | awk '{ for (i = 1; i < NF; i++) if ($i == "inet") print $(i + 1) }')
    if ask ip -oneline link show dev "$tmfifo" | grep --quiet "$tmfifo"; then fact[tmfifo_link]=there; else fact[tmfifo_link]=missing; fi
    fact[route]=$(ask ip route get "$to" | awk '{ dev = via = "-"; for (i = 1; i < NF; i++) { if ($i == "dev") dev = $(i + 1); if ($i == "via") via = $(i + 1) } print dev, via }')
}

gather_machine
gather_pci
gather_device
gather_versions
gather_engines
gather_link

facts_text() {
    local name
    for name in "${!fact[@]}"; do printf '%s=%s\n' "$name" "${fact[$name]}"; done | LC_ALL=C sort
}
if $only_facts; then
    facts_text
    exit 0
fi

# ---- the other side ---------------------------------------------------------------------------------------------------

declare -A theirs=()
peer_error=
if [ -n "$peer" ]; then
    if [ ! -r "${BASH_SOURCE[0]:-}" ]; then
        peer_error="this script came from standard input and cannot be sent on: use --peer-facts"
    else
        peer_text=$(timeout 120 ssh -o BatchMode=yes -o ConnectTimeout=10 "$peer" "bash -s -- --role $other --facts" \
            <"${BASH_SOURCE[0]}" 2>&1) || peer_error="ssh $peer: $(tail -n 1 <<<"$peer_text")"
    fi
elif [ -n "$peer_facts" ]; then
    peer_text=$(cat "$peer_facts")
fi
if [ -z "$peer_error" ]; then
    while IFS='=' read -r name value; do
        case "$name" in *[!a-z0-9_]* | '') ;; *) theirs[$name]=$value ;; esac
    done <<<"${peer_text:-}"
fi

# ---- judge: from facts alone ------------------------------------------------------------------------------------------

verdicts=()
names=()
founds=()
fixes=()
# verdict, name, what was found, what to do
check() {
    verdicts+=("$1")
    names+=("$2")
    founds+=("$3")
    fixes+=("${4:-}")
}

# Whether dotted version $1 is at least $2.
at_least() {
    local have_parts want_parts index have_part want_part
    IFS=. read -r -a have_parts <<<"${1//[!0-9.]/.}"
    IFS=. read -r -a want_parts <<<"${2//[!0-9.]/.}"
    for index in "${!want_parts[@]}"; do
        have_part=$((10#0${have_parts[index]:-})) want_part=$((10#0${want_parts[index]:-}))
        [ "$have_part" = "$want_part" ] || return $((have_part < want_part))
    done
}

judge_machine() {
    case "$role/${fact[arch]}" in
        card/aarch64) check ok arch "aarch64" ;;
        card/*) check fail arch "${fact[arch]:-unknown}: this is not the Arm side of a card" \
            "run this on the card, or with --role host here" ;;
        host/x86_64 | host/aarch64) check ok arch "${fact[arch]}" ;;
        *) check fail arch "${fact[arch]:-unknown}: there is no host-ctl for it" "use an x86_64 or aarch64 host" ;;
    esac
    if [ -z "${fact[glibc]}" ]; then
        check fail glibc "no GNU libc here" "use a distribution with glibc 2.35 or newer (Ubuntu 22.04)"
    elif at_least "${fact[glibc]}" 2.35; then
        check ok glibc "${fact[glibc]}"
    elif [ "$role" = card ]; then
        check fail glibc "${fact[glibc]}: our binaries need 2.35" \
            "flash a BFB with Ubuntu 22.04 or newer (bfb-install --bfb FILE --rshim rshim0 on the host: it erases the card's disk)"
    else
        check fail glibc "${fact[glibc]}: our binaries need 2.35" "upgrade to Ubuntu 22.04, Debian 12 or newer, or build host-ctl here"
    fi
}

judge_pci() {
    if [ "${fact[lspci]}" = missing ]; then
        check fail pci "no lspci here" "install pciutils and run again"
    elif [ -z "${fact[pci]}" ] && [ -n "${fact[soc]}" ]; then
        check fail pci "management function ${fact[soc]} only, no network function" \
            "the card is still booting or its firmware hangs: wait two minutes, then look at the console (screen /dev/rshim0/console)"
    elif [ -z "${fact[pci]}" ]; then
        check fail pci "no BlueField function" \
            "on the host: reseat the card and its power cable, look at dmesg; on the card: power cycle the machine, then see check mode on the host"
    elif [ -z "${fact[device]:-}" ]; then
        check fail pci "no BlueField function at ${fact[wanted]}; there is ${fact[pci]}" \
            "name one of these: --device here, and device = ADDRESS in /etc/kvlane/dpu-app.conf on the card"
    elif [ -n "${fact[wanted]}" ] && [ "${fact[device]}" != "${fact[wanted]}" ]; then
        check warn pci "${fact[generation]} at ${fact[pci]}, not at the usual ${fact[wanted]}" \
            "write device = ${fact[device]} into /etc/kvlane/dpu-app.conf, and give --device ${fact[device]} here"
    elif [ "${fact[generation]}" = BlueField-3 ]; then
        check ok pci "BlueField-3 at ${fact[pci]}, using ${fact[device]}"
    else
        check warn pci "${fact[generation]} at ${fact[pci]}: kvlane is made for BlueField-3" \
            "BlueField-2 has no LZ4 engine: keep to recipes with +deflate and expect other figures"
    fi
    [ -n "${fact[device]:-}" ] || return 0
    case "${fact[driver]}" in
        mlx5_core) check ok driver "mlx5_core" ;;
        none) check fail driver "no driver on ${fact[device]}" \
            "modprobe mlx5_core; if it is not there install the DOCA packages; then systemctl start openibd and look at dmesg" ;;
        *) check fail driver "${fact[driver]} on ${fact[device]}" \
            "give it back: echo ${fact[device]} > /sys/bus/pci/drivers/${fact[driver]}/unbind, then ... > /sys/bus/pci/drivers/mlx5_core/bind" ;;
    esac
}

judge_mode() {
    [ -n "${fact[device]:-}" ] || return 0
    local set="mlxconfig -d ${fact[device]} set INTERNAL_CPU_OFFLOAD_ENGINE=0"
    local warning="WARNING: it takes effect at the next power cycle of the whole machine, a reboot is not enough, and the host's network through this card stops meanwhile"
    case "${fact[mode_now]:-}/${fact[mode_next]:-}" in
        0/0 | /0) check ok mode "DPU mode (INTERNAL_CPU_OFFLOAD_ENGINE=0)" ;;
        0/1) check warn mode "DPU mode now, NIC mode after the next power cycle" \
            "as root, by hand: $set  (this script changes no firmware setting)" ;;
        1/0) check fail mode "NIC mode now, DPU mode after the next power cycle" \
            "power cycle the machine (off and on, a reboot is not enough)" ;;
        */1) check fail mode "NIC mode (INTERNAL_CPU_OFFLOAD_ENGINE=1): the Arm cores do not run" \
            "as root on the host, by hand: $set  $warning" ;;
        *)
            if [ -z "${fact[mode_tool]:-}" ]; then
                check warn mode "not known: neither mlxconfig nor mstconfig here" "install mft (or mstflint) and run again as root"
            else
                check warn mode "not known: ${fact[mode_tool]}: ${fact[mode_error]:-no answer}" "run again as root"
            fi
            ;;
    esac
}

judge_link() {
    local mine=$host_address
    [ "$role" = host ] || mine=$card_address
    # Where the other side is reached on another way, the tmfifo is a spare.
    local gravity=fail
    case "${peer#*@}" in '' | "$card_address" | "$host_address") ;; *) gravity=warn ;; esac
    if [ "$role" = host ]; then
        if [ -n "${fact[rshim_devices]}" ]; then
            check ok rshim "${fact[rshim_devices]} (service ${fact[rshim_service]:-unknown})"
        elif [ "${fact[rshim_service]}" = active ]; then
            check "$gravity" rshim "the service runs, but there is no /dev/rshim0" \
                "another machine holds it, often the card's BMC: end it there, then systemctl restart rshim; dmesg and journalctl --unit rshim say which"
        else
            check "$gravity" rshim "no /dev/rshim0, service ${fact[rshim_service]:-unknown}" \
                "install rshim (DOCA host packages), then systemctl enable --now rshim"
        fi
    fi
    if [ "${fact[tmfifo_link]:-missing}" = missing ]; then
        check "$gravity" tmfifo "no interface $tmfifo" \
            "$([ "$role" = host ] && echo "it comes with rshim: mend that first; with several cards name it by --tmfifo" || echo "modprobe mlxbf_tmfifo")"
    elif [ -z "${fact[tmfifo]}" ]; then
        check "$gravity" tmfifo "$tmfifo has no IPv4 address" \
            "ip address add $mine/30 dev $tmfifo && ip link set $tmfifo up; write it into netplan to keep it"
    elif [ "${fact[tmfifo]%/*}" != "$mine" ]; then
        check "$gravity" tmfifo "$tmfifo is ${fact[tmfifo]}, expected $mine/30" \
            "ip address replace $mine/30 dev $tmfifo and remove the other; or say --$role-address ${fact[tmfifo]%/*} if that is meant"
    else
        check ok tmfifo "$tmfifo is ${fact[tmfifo]}"
    fi
    local dev via
    read -r dev via <<<"${fact[route]:-}" || true
    if [ -z "$dev" ]; then
        check "$gravity" route "no route to ${fact[link_to]}" "mend check tmfifo first"
    elif [ "$dev" = "$tmfifo" ] && [ "$via" = - ]; then
        check ok route "${fact[link_to]} goes through $tmfifo"
    else
        local through=$dev
        [ "$via" = - ] || through="$dev via $via"
        check "$gravity" route "${fact[link_to]} goes through $through, not $tmfifo: a stranger may answer there" \
            "ip route replace ${fact[link_to]}/32 dev $tmfifo; or renumber the network that also uses 192.168.100.0"
    fi
}

# One number per side: equal, or say which side to upgrade.
judge_versions() {
    local mine=${fact[doca]:-} their=${theirs[doca]:-}
    if [ -z "$mine" ]; then
        check fail doca "no DOCA found" "install the DOCA packages (host: doca-all or doca-networking; card: they are in the BFB)"
    elif ! at_least "$mine" 2.7; then
        check fail doca "$mine: other names for Comch and one LZ4 task" "upgrade to 2.10 or newer, on both sides"
    elif ! at_least "$mine" 2.10; then
        check warn doca "$mine: kvlane is made against 2.10 to 3.3" "upgrade to 2.10 or newer, on both sides"
    else
        check ok doca "$mine${fact[image]:+, image ${fact[image]}}"
    fi
    [ -n "${fact[firmware]:-}" ] || [ -z "${fact[device]:-}" ] || check warn firmware "not known: no fw_ver below ${fact[device]}" \
        "see check driver; the version is what flint -d ${fact[device]} query prints"
    if [ -n "$peer_error" ]; then
        check fail peer "$peer_error" "make 'ssh $peer true' work without a password, or use --peer-facts FILE"
        return 0
    elif [ "${#theirs[@]}" = 0 ]; then
        check warn peer "versions are not compared with the $other" "--peer TARGET, or --peer-facts FILE with what --role $other --facts prints there"
        return 0
    elif [ "${theirs[role]:-}" != "$other" ]; then
        check fail peer "these are facts of a ${theirs[role]:-nobody}, not of the $other" "run --role $other --facts on the $other"
        return 0
    fi
    check ok peer "the $other answers: ${theirs[arch]:-unknown}, DOCA ${their:-unknown}"
    local behind=$role newest=$their
    ! at_least "${mine:-0}" "${their:-0}" || { behind=$other newest=$mine; }
    if [ -z "$mine" ] || [ -z "$their" ]; then
        check fail doca-agree "here ${mine:-none}, on the $other ${their:-none}" "install DOCA on both sides, the same version"
    elif [ "$(cut -d . -f 1,2 <<<"$mine")" != "$(cut -d . -f 1,2 <<<"$their")" ]; then
        check fail doca-agree "here $mine, on the $other $their" \
            "upgrade the $behind to $newest$([ "$behind" = host ] || echo " (bfb-install from the host: it erases the card's disk)")"
    elif [ "$mine" != "$their" ]; then
        check warn doca-agree "here $mine, on the $other $their" "bring the $behind to $newest when convenient"
    else
        check ok doca-agree "$mine on both sides"
    fi
    local ours=${fact[firmware]:-} firmware=${theirs[firmware]:-}
    if [ -z "$ours" ] || [ -z "$firmware" ]; then
        check warn firmware-agree "here ${ours:-unknown}, on the $other ${firmware:-unknown}" "see check driver on the side that does not know"
    elif [ "$ours" != "$firmware" ]; then
        check fail firmware-agree "here $ours, on the $other $firmware: one card has one firmware" \
            "--device names another card on one side; or an update waits for its reset: power cycle (this script burns nothing)"
    else
        check ok firmware-agree "$ours on both sides"
    fi
    local a=${fact[ofed]:-} b=${theirs[ofed]:-}
    if [ -n "$a" ] && [ -n "$b" ] && [ "$(grep --only-matching '[0-9][0-9]\.[0-9]*' <<<"$a" | head -n 1)" != "$(grep --only-matching '[0-9][0-9]\.[0-9]*' <<<"$b" | head -n 1)" ]; then
        check warn ofed-agree "here $a, on the $other $b" "install drivers of one release on both sides"
    fi
}

judge_memory() {
    local mib=$((${fact[hugepages_total]:-0} * ${fact[hugepage_kib]:-0} / 1024)) page=${fact[hugepage_kib]:-2048}
    local count=$(((hugepages_mib * 1024 + page - 1) / page))
    if [ "$mib" -ge "$hugepages_mib" ]; then
        check ok hugepages "${fact[hugepages_total]:-0} of ${page} KiB, ${fact[hugepages_free]:-0} free"
    else
        check warn hugepages "${fact[hugepages_total]:-0} of ${page} KiB, $hugepages_mib MiB wanted: registration at start takes longer" \
            "scripts/hugepages.sh --count $count"
    fi
    # The unit's limit counts where there is a unit: a login's has no say there.
    local kib=${fact[memlock_kib]} where="of this login"
    local fix="a line '* - memlock unlimited' in /etc/security/limits.d/kvlane.conf, then log in again; in a container --ulimit memlock=-1"
    if [ -n "${fact[memlock_unit]:-}" ]; then
        where="of dpu-app.service"
        fix="LimitMEMLOCK=infinity in its [Service] section: systemctl edit dpu-app, then systemctl restart dpu-app"
        case "${fact[memlock_unit]}" in
            infinity | 18446744073709551615) kib=unlimited ;;
            *) kib=$((fact[memlock_unit] / 1024)) ;;
        esac
    fi
    if [ "$kib" = unlimited ]; then
        check ok memlock "unlimited ($where)"
    elif [ "$kib" -ge $((memlock_mib * 1024)) ]; then
        check ok memlock "$((kib / 1024)) MiB ($where)"
    else
        check fail memlock "$kib KiB ($where), $memlock_mib MiB wanted: registered memory is pinned" "$fix"
    fi
}

# An engine: its fact, its name for people, what its absence means, the fix.
judge_engine() {
    local engine=$1 name=$2 absent=$3 fix=$4 bytes=${fact[$1_bytes]:-}
    if [ "${fact[$engine]:-no}" != yes ]; then
        check "$absent" "$name" "not on ${fact[device]}" "$fix"
    elif [ -z "$bytes" ]; then
        check warn "$name" "there, largest task not known" "dpu-app devices prints it"
    elif [ "$bytes" -lt "$engine_bytes" ]; then
        check fail "$name" "tasks up to $bytes bytes, $engine_bytes wanted" \
            "a smaller block-bytes in dpu-app.conf (at most $((bytes * 8 / 10))), and --engine-bytes $bytes here"
    else
        check ok "$name" "tasks up to $bytes bytes, lists up to ${fact[${engine}_list]:-unknown}"
    fi
}

judge_engines() {
    [ -n "${fact[device]:-}" ] || return 0
    case "${fact[caps]}" in
        missing)
            check warn engines "no doca_caps here" "install doca-caps; or ask ours: dpu-app devices"
            return 0
            ;;
        silent)
            check fail engines "doca_caps says nothing of ${fact[device]}" "doca_caps --list-devs shows what DOCA sees; run as root; see checks driver and mode"
            return 0
            ;;
    esac
    if [ "$role" = host ]; then
        check ok engines "DOCA sees ${fact[device]}"
        return 0
    fi
    judge_engine dma dma fail "DPU mode and a DOCA that knows the card are needed: see checks mode and doca"
    judge_engine inflate deflate fail \
        "see check mode; to run all the same, slowly: allow-software = true in dpu-app.conf, or a recipe with +raw"
    judge_engine lz4 lz4 warn "keep to recipes with +deflate (the default)"
}

judge_machine
judge_pci
judge_mode
judge_link
judge_versions
judge_memory
judge_engines

# ---- print once --------------------------------------------------------------------------------------------------------

# A JSON string of what is on one line.
quoted() {
    local text=${1//\\/\\\\}
    text=${text//\"/\\\"}
    printf '"%s"' "${text//[[:cntrl:]]/ }"
}

ok=0 warned=0 failed=0
for verdict in "${verdicts[@]}"; do
    case "$verdict" in ok) ok=$((ok + 1)) ;; warn) warned=$((warned + 1)) ;; fail) failed=$((failed + 1)) ;; esac
done
code=0 word=ok
[ "$warned" = 0 ] || { code=1 word=warn; }
[ "$failed" = 0 ] || { code=2 word=fail; }

if $json; then
    printf '{"command":"preflight","role":"%s","verdict":"%s","ok":%d,"warn":%d,"fail":%d,"checks":[' "$role" "$word" "$ok" "$warned" "$failed"
    for index in "${!names[@]}"; do
        [ "$index" = 0 ] || printf ','
        printf '{"name":%s,"verdict":"%s","found":%s,"fix":%s}' "$(quoted "${names[$index]}")" "${verdicts[$index]}" \
            "$(quoted "${founds[$index]}")" "$(quoted "${fixes[$index]}")"
    done
    printf '],"facts":{'
    comma=
    while IFS='=' read -r name value; do
        printf '%s%s:%s' "$comma" "$(quoted "$name")" "$(quoted "$value")"
        comma=,
    done < <(facts_text)
    printf '}}\n'
else
    for index in "${!names[@]}"; do
        printf '%-4s  %-14s  %s\n' "${verdicts[$index]}" "${names[$index]}" "${founds[$index]}"
        [ -z "${fixes[$index]}" ] || printf '      %-14s  fix: %s\n' '' "${fixes[$index]}"
    done
    echo "preflight: $role: $word: $ok ok, $warned warn, $failed fail"
fi
exit "$code"
