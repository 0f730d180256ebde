#!/usr/bin/env bash
# Builds programs of a checkout of NVIDIA's doca-samples, unmodified, against the emulator, runs them and prints which
# of them gave the right answer. The only thing done to the checkout's copy is what the SDK's own packaging does:
# meson.build.public takes the place of meson.build.
# shellcheck disable=SC2317  # the run_ functions are called by name
set -euo pipefail

usage() {
    cat <<'USAGE'
Usage: scripts/emulator-samples.sh [--only NAME]... [--work DIR] [--debug] CHECKOUT
  CHECKOUT      a checkout of doca-samples (the directory with samples/ and applications/)
  --only NAME   only this program, as the table names it; may be given again
  --work DIR    build there and keep it (default: a temporary directory)
  --debug       build the emulator without optimisation
Needs meson, ninja and python3; file_compression also zlib's headers and a libc or libbsd with strlcpy.
Exit codes: 0 all right, 1 something did not build or gave a wrong answer, 2 usage.
USAGE
}

only=()
work=
debug=()
checkout=
while [ $# -gt 0 ]; do
    case "$1" in
        --only)
            only+=("${2:?--only wants a name}")
            shift
            ;;
        --work)
            work=${2:?--work wants a directory}
            shift
            ;;
        --debug) debug=(--debug) ;;
        --help | -h)
            usage
            exit 0
            ;;
        -*)
            usage >&2
            exit 2
            ;;
        *) checkout=$1 ;;
    esac
    shift
done
if [ -z "$checkout" ] || [ ! -d "$checkout/samples" ] || [ ! -d "$checkout/applications" ]; then
    usage >&2
    exit 2
fi
for tool in meson ninja python3 pkg-config; do
    command -v "$tool" >/dev/null || {
        echo "emulator-samples: $tool is not here: install it (meson and ninja also come from pip)" >&2
        exit 2
    }
done
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [ -z "$work" ]; then
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
fi
mkdir -p "$work"
work=$(cd "$work" && pwd)

for role in host dpu; do
    "$here/emulator-install.sh" --prefix "$work/$role" --role $role "${debug[@]}" >"$work/install-$role.log"
done

rm -rf "$work/source" "$work/run"
mkdir -p "$work/source" "$work/run"
cp -r "$checkout/samples" "$checkout/applications" "$work/source/"
if [ -f "$checkout/VERSION" ]; then cp "$checkout/VERSION" "$work/source/"; else echo 3.3.0 >"$work/source/VERSION"; fi
find "$work/source" -name meson.build.public | while IFS= read -r file; do cp "$file" "${file%.public}"; done

# build ROLE NAME: leaves the program at $work/build-ROLE-NAME/doca_NAME
build() {
    local role=$1 name=$2 log=$work/build-$1-$2.log directory=$work/build-$1-$2 source extra=()
    [ ! -f "$directory/built" ] || return 0
    case "$name" in
        file_compression | dma_copy)
            source=$work/source/applications
            extra=(-Denable_all_applications=false "-Denable_$name=true")
            ;;
        *)
            source=$(echo "$work"/source/samples/doca_*/"$name")
            ;;
    esac
    if PKG_CONFIG_PATH=$work/$role/lib/pkgconfig meson setup --wipe "${extra[@]}" "$directory" "$source" >"$log" 2>&1 ||
        PKG_CONFIG_PATH=$work/$role/lib/pkgconfig meson setup "${extra[@]}" "$directory" "$source" >"$log" 2>&1; then
        if ninja -C "$directory" >>"$log" 2>&1; then
            touch "$directory/built"
            return 0
        fi
    fi
    return 1
}

# start ROLE NAME [ARGUMENT]...: runs it in $work/run, its output in $work/run/NAME-ROLE.log
start() {
    local role=$1 name=$2 program
    shift 2
    program=$(find "$work/build-$role-$name" -type f -name "doca_$name" | head -n 1)
    (cd "$work/run" && LD_LIBRARY_PATH=$work/$role/lib exec timeout 30 "$program" "$@") >"$work/run/$name-$role.log" 2>&1
}

# Every pair of programs meets in a directory of its own.
settings() { export DOCA_EMULATOR="comch_dir=$work/run/comch,comch_wait_ms=5000,$1"; }

said() { grep -q -- "$2" "$work/run/$1.log"; }

# python CODE FILE...: exit status of the code
check() { (cd "$work/run" && python3 -c "$@"); }

inputs() {
    cd "$work/run" && python3 - <<'PYTHON'
import struct, zlib

def xxh32(data):
    p1, p2, p3, p4, p5 = 0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F, 0x165667B1
    m = 0xFFFFFFFF
    rotl = lambda x, r: ((x << r) | (x >> (32 - r))) & m
    i, n = 0, len(data)
    if n >= 16:
        v = [(p1 + p2) & m, p2, 0, (-p1) & m]
        while i + 16 <= n:
            for k in range(4):
                v[k] = rotl((v[k] + struct.unpack_from("<I", data, i + 4 * k)[0] * p2) & m, 13) * p1 & m
            i += 16
        h = sum(rotl(x, r) for x, r in zip(v, (1, 7, 12, 18))) & m
    else:
        h = p5
    h = (h + n) & m
    while i + 4 <= n:
        h = rotl((h + struct.unpack_from("<I", data, i)[0] * p3) & m, 17) * p4 & m
        i += 4
    while i < n:
        h = rotl((h + data[i] * p5) & m, 11) * p1 & m
        i += 1
    h = (h ^ (h >> 15)) * p2 & m
    h = (h ^ (h >> 13)) * p3 & m
    return h ^ (h >> 16)

def length(n):
    out = b""
    while n >= 255:
        out += b"\xff"
        n -= 255
    return out + bytes([n])

def lz4_block(pattern, matched, tail):
    """A pattern, repeated for `matched` bytes, then a tail."""
    token = (min(len(pattern), 15) << 4) | min(matched - 4, 15)
    out = bytes([token]) + (length(len(pattern) - 15) if len(pattern) >= 15 else b"") + pattern
    out += struct.pack("<H", len(pattern)) + (length(matched - 19) if matched - 4 >= 15 else b"")
    return out + bytes([min(len(tail), 15) << 4]) + (length(len(tail) - 15) if len(tail) >= 15 else b"") + tail

plain = b"".join(b"line %d of a text that is there to be squeezed\n" % i for i in range(3000))
open("plain", "wb").write(plain)
squeezer = zlib.compressobj(9, zlib.DEFLATED, -15)
open("plain.deflate", "wb").write(squeezer.compress(plain) + squeezer.flush())

pattern, tail = b"a pattern of twenty-six by", b"the last literals"
block = lz4_block(pattern, 50000, tail)
whole = (pattern * 3000)[: len(pattern) + 50000] + tail
blocks = struct.pack("<I", len(block)) + block
open("lz4.plain", "wb").write(whole)
open("lz4.blocks", "wb").write(blocks)
descriptor = bytes([0x64, 0x40])
frame = struct.pack("<I", 0x184D2204) + descriptor + bytes([xxh32(descriptor) >> 8 & 255])
open("lz4.frame", "wb").write(frame + blocks + struct.pack("<II", 0, xxh32(whole)))
PYTHON
}

same='import sys; sys.exit(open(sys.argv[1], "rb").read() != open(sys.argv[2], "rb").read())'

# run_NAME: builds were fine; true if the answer is right
run_compress_deflate() {
    settings profile=bf2
    start host compress_deflate -p 03:00.0 -f plain -o squeezed -c &&
        check 'import sys, zlib; sys.exit(zlib.decompress(open("squeezed", "rb").read(), -15) != open("plain", "rb").read())'
}
run_decompress_deflate() {
    settings profile=bf3
    start host decompress_deflate -p 03:00.0 -f plain.deflate -o plain.out -c && check "$same" plain plain.out
}
run_decompress_lz4_stream() {
    settings profile=bf3
    start host decompress_lz4_stream -p 03:00.0 -f lz4.blocks -o lz4.out -bi -c && check "$same" lz4.plain lz4.out &&
        start host decompress_lz4_stream -p 03:00.0 -f lz4.frame -o lz4.out2 -wf -c && check "$same" lz4.plain lz4.out2
}
run_dma_local_copy() {
    settings profile=bf3
    start dpu dma_local_copy -p 03:00.0 -t "a text to copy" && said dma_local_copy-dpu "verified as correct"
}
run_dma_copy_host_dpu() {
    local host answer=0
    settings role=host,pci=b1:00.0
    rm -f "$work/run/enter" "$work/run/descriptor" "$work/run/buffer"
    mkfifo "$work/run/enter"
    start host dma_copy_host -p b1:00.0 -t "across the bus" -d descriptor -b buffer <"$work/run/enter" &
    host=$!
    exec 9>"$work/run/enter"
    for _ in $(seq 100); do
        [ ! -s "$work/run/buffer" ] || break
        sleep 0.1
    done
    settings role=card,rep=b1:00.0
    start dpu dma_copy_dpu -p 03:00.0 -d descriptor -b buffer || answer=1
    said dma_copy_dpu-dpu "Memory content: across the bus" || answer=1
    echo >&9
    exec 9>&-
    wait "$host" && return "$answer"
}
run_pe() {
    settings profile=bf3
    start host "$1" && said "$1-host" "Sample finished successfully"
}
for name in pe_polling pe_event pe_multi_context pe_reactive pe_single_task_comp_cb pe_async_stop pe_task_error \
    pe_task_resubmit pe_task_try_submit; do
    eval "run_$name() { run_pe $name; }"
done

# pair NAME-OF-SERVER NAME-OF-CLIENT: card first, host second, both must end well
pair() {
    local server answer=0
    settings "role=card,rep=b1:00.0${3:-}"
    start dpu "$1" -p 03:00.0 -r b1:00.0 "${server_arguments[@]}" &
    server=$!
    sleep 0.5
    settings "role=host,pci=b1:00.0${3:-}"
    start host "$2" -p b1:00.0 "${client_arguments[@]}" || answer=1
    wait "$server" && return "$answer"
}
run_comch_ctrl_path() {
    server_arguments=(-t "from the card") client_arguments=(-t "from the host")
    pair comch_ctrl_path_server comch_ctrl_path_client &&
        said comch_ctrl_path_server-dpu "Message received: 'from the host'" &&
        said comch_ctrl_path_client-host "Message received: 'from the card'"
}
run_comch_data_path_high_speed() {
    server_arguments=(-t "from the card") client_arguments=(-t "from the host")
    pair comch_data_path_high_speed_server comch_data_path_high_speed_client &&
        said comch_data_path_high_speed_server-dpu "Message received: 'from the host'" &&
        said comch_data_path_high_speed_client-host "Message received: 'from the card'"
}
run_file_compression() {
    rm -f "$work/run/received"
    server_arguments=(-f received) client_arguments=(-f plain)
    pair file_compression file_compression && check "$same" plain received
}
run_dma_copy() {
    # to the card, then back to the host
    rm -f "$work/run/on-card" "$work/run/back"
    server_arguments=(-f on-card) client_arguments=(-f plain)
    pair dma_copy dma_copy || return 1
    check "$same" plain on-card || return 1
    client_arguments=(-f back)
    pair dma_copy dma_copy && check "$same" plain back
}

# program, its parts as ROLE:NAME, the function that runs it
programs=(
    "compress_deflate host:compress_deflate"
    "decompress_deflate host:decompress_deflate"
    "decompress_lz4_stream host:decompress_lz4_stream"
    "dma_local_copy dpu:dma_local_copy"
    "dma_copy_host_dpu host:dma_copy_host dpu:dma_copy_dpu"
    "pe_polling host:pe_polling"
    "pe_event host:pe_event"
    "pe_multi_context host:pe_multi_context"
    "pe_reactive host:pe_reactive"
    "pe_single_task_comp_cb host:pe_single_task_comp_cb"
    "pe_async_stop host:pe_async_stop"
    "pe_task_error host:pe_task_error"
    "pe_task_resubmit host:pe_task_resubmit"
    "pe_task_try_submit host:pe_task_try_submit"
    "comch_ctrl_path dpu:comch_ctrl_path_server host:comch_ctrl_path_client"
    "comch_data_path_high_speed dpu:comch_data_path_high_speed_server host:comch_data_path_high_speed_client"
    "file_compression dpu:file_compression host:file_compression"
    "dma_copy dpu:dma_copy host:dma_copy"
)

inputs
failed=0
printf '| %-28s | %-17s | %-12s |\n' program "builds unmodified" "right answer"
printf '|%s|%s|%s|\n' ------------------------------ ------------------- --------------
for entry in "${programs[@]}"; do
    read -r program rest <<<"$entry"
    if [ ${#only[@]} -gt 0 ] && ! printf '%s\n' "${only[@]}" | grep -qx "$program"; then continue; fi
    built=yes right=-
    for part in $rest; do
        build "${part%%:*}" "${part##*:}" || built=no
    done
    if [ $built = yes ]; then
        if "run_$program"; then right=yes; else right=no; fi
    fi
    [ "$built$right" = yesyes ] || failed=1
    printf '| %-28s | %-17s | %-12s |\n' "$program" $built $right
done
exit $failed
