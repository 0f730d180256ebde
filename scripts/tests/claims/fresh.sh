# shellcheck shell=bash disable=SC2034,SC2154
# What the two commands say and do on machines that lack what they need. The package tools are fakes; fresh.sh beside
# run.sh tries the same in real roots. Sourced by run.sh, whose words it uses.

# A machine with apt, whose archives offer the lines given, and nothing installed. It runs a copy of the tree, without
# git.
fresh_machine() {
    fresh host
    local at=$cell/host
    mkdir -p "$at/apt" "$at/tree"
    cp -r "$scripts" "$at/tree/scripts"
    cp "$scripts/../Cargo.toml" "$at/tree/"
    : >"$at/apt/installed"
    : >"$at/apt/archives"
    printf '%s\n' "build-essential 12.9" "pkg-config 1.8" "libclang-dev 14" "ca-certificates 2023" "curl 7.88" "$@" >"$at/apt/offered"
    for tool in apt-get apt-cache dpkg-query; do ln -s "$here/fakes/apt" "$at/bin/$tool"; done
    ln -s "$here/fakes/answer" "$at/bin/timeout"
    ln -s "$here/fakes/answer" "$at/bin/id"
    echo 0 | answer id
    out_of_reach
}
reachable() { echo 0 | answer timeout.code; }
out_of_reach() { echo 124 | answer timeout.code; }
in_tree() { run env FAKE_SCRIPTS="$cell/host/tree/scripts" bash -c 'cd tree && "$@"' - "$@"; }
setup() { in_tree scripts/setup.sh "$@"; }
# A toolchain that is there before anybody installs one.
has_rust() {
    mkdir -p "$1"
    echo "$2" >"$1/version"
    for program in cargo rustc; do ln -sf "$here/fakes/cargo" "$1/$program"; done
}
installed() { grep -q "^$1 " "$cell/host/apt/installed"; }
called() { grep -q -- "$1" "$cell/host/calls"; }
nothing_installed() { [ ! -s "$cell/host/apt/installed" ] && ! called install; }
debian_12=("rustc 1.63.0+dfsg1-2" "cargo 0.66.0+ds1-1" "rustc-web 1.96.0+dfsg1-1" "cargo-web 1.96.0+dfsg1-1")
ubuntu_24=("rustc 1.75.0+dfsg0ubuntu1" "cargo 1.75.0" "rustc-1.85 1.85" "cargo-1.85 1.85" "rustc-1.89 1.89" "cargo-1.89 1.89" "cargo-1.89-doc 1.89"
    "rustc-1.91 1.91" "cargo-1.91 1.91" "rustup 1.26.0")

claim "fresh: one line at once says what is missing and where it comes from; without leave nothing is installed"
fresh_machine "${debian_12[@]}"
for script in setup demo test; do
    in_tree "scripts/$script.sh"
    expect_code 2
    expect "setup: missing: build-essential pkg-config libclang-dev ca-certificates, and Rust 1.89 or newer (there is no cargo); to be installed: those packages from apt (https://archive.example/debian), Rust 1.96.0 from apt (rustc-web cargo-web)" "run with --yes"
    holds nothing_installed
done

claim "fresh: Debian's rustc-web is taken where its rustc is too old, and it is said in whose place it comes"
setup --yes
expect_code 0
for package in build-essential libclang-dev rustc-web cargo-web; do holds installed "$package"; done
holds not installed curl
setup
expect_code 0
refute setup:
fresh_machine "${debian_12[@]}"
echo "rustc 1.63.0+dfsg1-2" >"$cell/host/apt/installed"
has_rust "$cell/host/bin" 1.63.0
setup
expect "(cargo 1.63.0 in $cell/host/bin is too old)" "Rust 1.96.0 from apt (rustc-web cargo-web) in the place of apt's older one"

claim "fresh: Ubuntu's newest versioned packages lie beside an old cargo and are found without PATH"
fresh_machine "${ubuntu_24[@]}"
has_rust "$cell/host/bin" 1.75.0
setup --yes
expect_code 0
expect "Rust 1.91 from apt (rustc-1.91 cargo-1.91)"
refute "in the place"
in_tree bash -c '. scripts/toolchain.sh && cargo --version'
expect "cargo 1.91.1"

claim "fresh: a cargo that is too old is named with its version, its place and what is needed, not by cargo's own messages"
for release in 1.63.0 1.85.1 1.88.9; do
    fresh_machine "${debian_12[@]}"
    has_rust "$cell/host/bin" "$release"
    in_tree scripts/demo.sh
    expect_code 2
    expect "Rust 1.89 or newer (cargo $release in $cell/host/bin is too old)"
done
for release in 1.89.0 1.100.0 2.0.0; do
    fresh_machine
    sed 's/^\([^ ]*\).*/\1 1/' "$cell/host/apt/offered" >"$cell/host/apt/installed"
    has_rust "$cell/host/bin" "$release"
    setup
    expect_code 0
    refute setup:
done

claim "fresh: with no list of apt's, or an old one, it is said that apt is asked first, and then what apt has is taken"
for known in "" "rustc 1.63.0" "rustc-web 1.85.0"; do
    fresh_machine "${debian_12[@]}"
    mv "$cell/host/apt/offered" "$cell/host/apt/after-update"
    echo "$known" >"$cell/host/apt/offered"
    setup --yes
    expect_code 0
    expect "Rust from apt if its archives have 1.89, else from rustup" "setup: Rust 1.96.0 from apt (rustc-web cargo-web)"
done

claim "fresh: Debian's rustup package is taken where apt has no newer Rust, and gets the stable toolchain"
fresh_machine "rustc 1.85.0" "cargo 1.85.0" "rustc-web 1.85.0" "rustup 1.27.1"
reachable
setup --yes
expect_code 0
expect "rustup (apt's package), and by it a stable toolchain for this user"
holds called "rustup toolchain install stable"

claim "fresh: a rustup whose default is too old gets the stable toolchain, and it is used"
fresh_machine "${debian_12[@]}"
has_rust "$cell/host/bin" 1.70.0
ln -s "$here/fakes/rustup" "$cell/host/bin/rustup"
reachable
setup --yes
expect_code 0
expect "rustup's stable toolchain"
in_tree bash -c '. scripts/toolchain.sh && cargo --version'
expect "cargo 1.97.0"

claim "fresh: rustup's site is the last way, and its script is run for this user"
fresh_machine "rustc 1.63.0"
reachable
cat >"$cell/host/bin/curl" <<'CURL'
#!/bin/sh
echo "curl $*" >>"$FAKE/calls"
echo 'mkdir -p "$HOME/.cargo/bin"; echo 1.97.0 >"$HOME/.cargo/bin/version"; for p in cargo rustc; do ln -s "$FAKE_SCRIPTS/tests/fakes/cargo" "$HOME/.cargo/bin/$p"; done'
CURL
chmod +x "$cell/host/bin/curl"
setup --yes
expect_code 0
expect "Rust for this user from rustup (https://rustup.rs)"
holds called "--connect-timeout 5 --max-time 60 https://sh.rustup.rs"

claim "fresh: where rustup's site cannot be reached it is said within seconds, with what was tried and what helps"
fresh_machine "rustc 1.63.0+dfsg1-2" "rustc-web 1.85.0+dfsg3-1"
mkdir -p "$(machine)/etc"
printf 'ID=debian\nVERSION_CODENAME=bookworm\n' >"$(machine)/etc/os-release"
in_tree scripts/demo.sh --yes
expect_code 1
expect "sh.rustup.rs did not answer within 5 s, and apt offers no Rust of 1.89 or newer (it has rustc 1.63.0, rustc-web 1.85.0)" \
    "nothing was installed" "security archive (bookworm-security)" "https_proxy" "cargo and rustc 1.89"
holds nothing_installed
echo " release v=12,o=Debian,a=oldstable-security,n=bookworm-security,l=Debian-Security,c=main,b=amd64" >"$cell/host/apt/archives"
setup --yes
refute "security archive"
fresh_machine "rustc 1.85.0" "rustup 1.27.1"
setup --yes
expect_code 1
expect "static.rust-lang.org did not answer within 5 s"
run env FAKE_SCRIPTS="$cell/host/tree/scripts" https_proxy=http://proxy.example:3128 bash tree/scripts/setup.sh
refute "did not answer"

claim "fresh: who is not root and has no sudo hears that, and the command for root; with sudo it is used"
fresh_machine "${debian_12[@]}"
lacks sudo
echo 1000 | answer id
setup --yes
expect_code 1
expect "setup: not root, and there is no sudo: as root run \`apt-get update && apt-get install build-essential" "rustc-web cargo-web"
holds nothing_installed
ln -s "$here/fakes/sudo" "$cell/host/bin/sudo"
setup --yes
expect_code 0
holds installed rustc-web

claim "fresh: a tree without git, or below somebody else's, builds as one without history"
fresh_machine
in_tree scripts/build-word.sh
expect_code 0
holds [ ! -s "$out" ]
# A git that answers for a directory above.
printf '#!/bin/sh\ncase "$*" in *rev-list*) echo 7 ;; *) echo abc1234 ;; esac\n' >"$cell/host/bin/git"
chmod +x "$cell/host/bin/git"
in_tree scripts/build-word.sh
holds [ ! -s "$out" ]

claim "fresh: a build says how far it is, of all, passes warnings on, and fails as cargo does"
fresh_machine
has_rust "$cell/host/bin" 1.95.0
in_tree scripts/build.sh build --release
expect_code 0
expect "build: 3 of 164 crates done" "warning: one to read"
refute Compiling "Building ["
holds called "cargo build --release"
echo 101 >"$cell/host/cargo-code"
in_tree scripts/build.sh build
expect_code 101
