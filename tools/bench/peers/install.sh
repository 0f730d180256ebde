#!/usr/bin/env bash
# Installs the peers that kvlane is measured beside into a Python environment of their own. Running it again changes
# nothing.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

usage() {
    cat <<'USAGE'
Usage: tools/bench/peers/install.sh [--dir VENV] [--vllm-lmcache VENV FOLDER] [--yes] [--dry-run]
  --dir VENV   where the environment goes [default: target/peers of this repository]; 7 GB, most of it torch
  --vllm-lmcache VENV FOLDER
               instead of that: LMCache for the vLLM in VENV (scripts/vllm/install.sh) into FOLDER, which VENV does not see by itself
  --yes        install Debian packages that are missing without asking
  --dry-run    say what would be done
USAGE
}

venv=$here/../../../target/peers
folder=
yes=false
dry=
while [ $# -gt 0 ]; do
    case "$1" in
        --dir) venv=${2:?--dir needs a path} && shift ;;
        --vllm-lmcache)
            venv=${2:?--vllm-lmcache needs an environment} folder=${3:?--vllm-lmcache needs a folder}
            shift 2
            ;;
        --yes) yes=true ;;
        --dry-run) dry='echo' ;;
        --help | -h) usage && exit 0 ;;
        *) usage >&2 && exit 2 ;;
    esac
    shift
done

missing=()
command -v redis-server >/dev/null || missing+=(redis-server)
command -v ip >/dev/null || missing+=(iproute2)
command -v taskset >/dev/null || missing+=(util-linux)
# Mooncake and NIXL link against the verbs libraries even where they go by TCP.
for library in libibverbs1 libnl-3-200 librdmacm1 libnuma1; do
    dpkg-query --show --showformat='${Status}' "$library" 2>/dev/null | grep --quiet 'ok installed' || missing+=("$library")
done
if [ ${#missing[@]} -gt 0 ]; then
    if ! $yes && [ -z "$dry" ]; then
        echo "install.sh: missing: ${missing[*]}: install them, or run with --yes" >&2
        exit 2
    fi
    $dry apt-get update --quiet --quiet
    $dry apt-get install --yes --quiet --quiet --no-install-recommends "${missing[@]}"
fi
if [ -n "$folder" ]; then
    $dry "$venv/bin/python" -m pip install --quiet --no-deps --upgrade --target "$folder" --requirement "$here/requirements-vllm.txt"
    echo "install.sh: ready: KVLANE_VLLM_VENV=$venv KVLANE_VLLM_LMCACHE=$folder tools/bench/peers/run.sh serving --quick"
    exit 0
fi
[ -x "$venv/bin/python" ] || $dry python3 -m venv "$venv"
$dry "$venv/bin/pip" install --quiet --requirement "$here/requirements.txt"
echo "install.sh: ready: KVLANE_PEERS_VENV=$venv tools/bench/peers/run.sh peers --quick"
