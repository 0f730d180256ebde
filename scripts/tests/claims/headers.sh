# shellcheck shell=bash disable=SC2034,SC2154
# What check-headers.sh sees and what it does not let pass. The SDK is our own headers, drifted. Sourced by run.sh,
# whose words it uses.

ours=$scripts/../ffi/doca-emulator/include
# A cell with a C compiler and an SDK whose headers say what ours say.
fresh_sdk() {
    fresh host
    sdk=$cell/host/sdk
    mkdir -p "$sdk"
    cp -r "$ours" "$sdk/include"
    sed -i 's/3\.0\.0-emulator/2.10.0087/' "$sdk/include/doca_version.h"
    ln -s "$compiler" "$cell/host/bin/cc"
}
check_headers() { run bash "$scripts/check-headers.sh" "$@"; }
# drift HEADER SED-EXPRESSION: has to change something, or the case would test nothing.
drift() {
    sed "$2" "$ours/$1" >"$sdk/include/$1"
    if cmp -s "$ours/$1" "$sdk/include/$1"; then miss "the drift of $1 changed nothing: $2"; fi
}

compiler=$(command -v cc || command -v gcc || true)
if [ -z "$compiler" ]; then
    claim "check-headers: needs a C compiler for these claims"
    code=0
    : >"$out"
    miss "no cc here: scripts/setup.sh installs it"
else
    claim "check-headers: equal headers agree, by directory, by DOCA_DIR and by pkg-config, and the version is said"
    fresh_sdk
    check_headers --sdk "$sdk"
    expect_code 0
    expect "check-headers: agree: our headers against DOCA 2.10.0087" "function      303        0        0"
    check_headers --sdk "$sdk/include"
    expect_code 0
    run env DOCA_DIR="$sdk" bash "$scripts/check-headers.sh"
    expect_code 0
    echo "-I$sdk/include -DDOCA_ALLOW_EXPERIMENTAL_API" | answer pkg-config_--cflags
    check_headers --json
    expect_code 0
    expect '"agree":true' '"sdk_version":"2.10.0087"' '"function":{"same":303,"of":303}' '"differences":[]'

    claim "check-headers: a changed prototype is named with both sides"
    fresh_sdk
    drift doca_dma.h 's/doca_dma_create(struct doca_dev \*dev,/doca_dma_create(const struct doca_dev *dev,/'
    check_headers --sdk "$sdk"
    expect_code 1
    expect "differs  function doca_dma_create (doca_dma.h), which the app uses" "ours  doca_error_t doca_dma_create(struct doca_dev *dev" \
        "SDK   doca_error_t doca_dma_create(const struct doca_dev *dev" "differ: 1 differences"

    claim "check-headers: a changed callback type, an integer's width and a moved inline are seen too"
    fresh_sdk
    drift doca_pe.h 's/^uint8_t doca_pe_progress/uint32_t doca_pe_progress/'
    drift doca_ctx.h '/^typedef void (\*doca_ctx_state_changed_callback_t)/,/;/s/const union doca_data/union doca_data */'
    drift doca_buf_inventory.h '/^static inline.*_by_data/,/^}/{s/^static inline //;/^{/,/^}/d;s/struct doca_buf \*\*buf)$/&;/}'
    check_headers --sdk "$sdk"
    expect_code 1
    expect "differs  function doca_pe_progress" "differs  typedef doca_ctx_state_changed_callback_t" \
        "differs  inline doca_buf_inventory_buf_get_by_data" "SDK   in the library: "

    claim "check-headers: a changed enum value, a value in another enum and a changed constant"
    fresh_sdk
    drift doca_error.h 's/DOCA_ERROR_IO_FAILED = 17/DOCA_ERROR_IO_FAILED = 117/'
    drift doca_types.h 's/^enum doca_access_flag {/enum doca_access_flags {/'
    drift doca_dev.h 's/DOCA_DEVINFO_PCI_ADDR_SIZE 13/DOCA_DEVINFO_PCI_ADDR_SIZE 16/'
    check_headers --sdk "$sdk"
    expect_code 1
    expect "ours  DOCA_ERROR_IO_FAILED = 17" "SDK   DOCA_ERROR_IO_FAILED = 117" "in enum doca_access_flags" \
        "ours  DOCA_DEVINFO_PCI_ADDR_SIZE = 13" "SDK   DOCA_DEVINFO_PCI_ADDR_SIZE = 16"

    claim "check-headers: a changed size or layout, and a macro with other parameters"
    fresh_sdk
    drift doca_types.h '/^union doca_data {/,/^};/s/uint64_t u64;/uint32_t u64; uint64_t more[2];/'
    drift doca_error.h 's/#define DOCA_IS_ERROR(r)/#define DOCA_IS_ERROR(r, unused)/'
    check_headers --sdk "$sdk" --json
    expect_code 1
    expect '"kind":"struct","name":"union doca_data"' '"ours":"8 bytes","sdk":"16 bytes"' \
        '"ours":"at byte 0, 8 bytes","sdk":"at byte 0, 4 bytes"' '"sdk":"DOCA_IS_ERROR(r,unused)"'

    claim "check-headers: a removed function differs if the app uses it, and is only said if not"
    fresh_sdk
    drift doca_dev.h '/doca_devinfo_get_sf_index/d'
    check_headers --sdk "$sdk"
    expect_code 0
    expect "missing, and the app does not use them (doca_dev.h): doca_devinfo_get_sf_index" "agree, but 1 names"
    drift doca_ctx.h '/doca_ctx_get_state(/d'
    check_headers --sdk "$sdk"
    expect_code 1
    expect "missing  function doca_ctx_get_state (doca_ctx.h), which the app uses" "1 missing that the app uses"

    claim "check-headers: what the SDK has beside ours is counted and no difference"
    fresh_sdk
    drift doca_pe.h 's/^doca_error_t doca_pe_create/void doca_pe_from_the_future(void);\n&/'
    check_headers --sdk "$sdk"
    expect_code 0
    expect "1 functions of the SDK's are not ours"

    claim "check-headers: no SDK, a wrong directory, no compiler, headers that do not compile: code 2 and what to do"
    fresh_sdk
    check_headers --sdk "$cell/nowhere"
    expect_code 2
    expect "no doca_types.h in" "--sdk /opt/mellanox/doca"
    echo 1 >"$cell/host/answers/pkg-config.code"
    check_headers
    expect_code 2
    expect "pkg-config does not know doca-common" PKG_CONFIG_PATH
    check_headers --sdk "$ours"
    expect_code 2
    expect "are the same directory"
    echo 'doca_error_t doca_broken(struct' >>"$sdk/include/doca_dma.h"
    check_headers --sdk "$sdk"
    expect_code 2
    expect "the SDK's headers do not compile here"
    lacks cc
    check_headers --sdk "$sdk"
    expect_code 2
    expect "install gcc"
    check_headers --no-such-option
    expect_code 2
fi
