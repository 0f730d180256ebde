# shellcheck shell=sh
# Sourced in the tree's root: puts a Rust that is new enough first in PATH where this machine has one: PATH's own, that
# of this user's rustup, or one of Ubuntu's versioned packages. Where there is none it changes nothing; scripts/setup.sh
# gets one.

kvlane_rust_needed=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' Cargo.toml)

# Prints the release of a program of the toolchain, like 1.89.0; nothing where it is not there or does not run.
kvlane_release() { "$1" --version 2>/dev/null | sed -n 's/^[a-z]* \([0-9][0-9.]*\).*/\1/p'; }

# Tells whether a release is the needed one or a newer one.
kvlane_new_enough() {
    [ -n "$1" ] && [ "$(printf '%s\n' "$kvlane_rust_needed" "$1" | sort --version-sort | head -n 1)" = "$kvlane_rust_needed" ]
}

# Tells whether cargo and rustc of PATH are new enough, if need be as rustup's stable toolchain. Only one that is
# installed is asked for: rustup would fetch what is merely named.
kvlane_rust_found() {
    kvlane_new_enough "$(kvlane_release cargo)" && kvlane_new_enough "$(kvlane_release rustc)" && return 0
    [ -z "${RUSTUP_TOOLCHAIN:-}" ] && rustup toolchain list 2>/dev/null | grep -q '^stable' || return 1
    RUSTUP_TOOLCHAIN=stable
    export RUSTUP_TOOLCHAIN
    kvlane_new_enough "$(kvlane_release cargo)" && kvlane_new_enough "$(kvlane_release rustc)" && return 0
    unset RUSTUP_TOOLCHAIN
    return 1
}

if ! kvlane_rust_found; then
    kvlane_path=$PATH
    for kvlane_bin in "${CARGO_HOME:-${HOME:-}/.cargo}/bin" \
        $(find "${KVLANE_ROOT:-}/usr/lib" -maxdepth 2 -path '*/rust-1.*/bin' 2>/dev/null | sort --version-sort --reverse); do
        PATH=$kvlane_bin:$kvlane_path
        kvlane_rust_found && break
        PATH=$kvlane_path
    done
    export PATH
fi
