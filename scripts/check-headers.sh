#!/usr/bin/env bash
# Proves that our own DOCA headers (the emulator's, which the tests build against) say what an installed SDK's headers
# say: prototypes, callback types, enum values, sizes, macros. Compiles a few lines and runs none; changes nothing.
set -euo pipefail
export LC_ALL=C

usage() {
    cat <<'USAGE'
Usage: scripts/check-headers.sh [options]
  --sdk DIR      the SDK: a directory with include/doca_types.h, or with doca_types.h itself
                 (default: DOCA_DIR if it is set, else what pkg-config says of doca-common)
  --headers DIR  our headers (default: ffi/doca-emulator/include beside this script's directory)
  --uses DIR     the sources that say which of them the app needs (default: ffi/doca/src)
  --json         one JSON object
  --help         this

A name that the SDK has and we do not is counted and no difference: the emulator is a part of DOCA.
A name that we have and the SDK does not is `missing`: a difference if the app uses it, else only said.
Needs a C compiler (CC, or cc, gcc, clang).
Exit codes: 0 they agree, 1 they differ, 2 wrong arguments, no SDK, no compiler, or headers that do not compile.
USAGE
}
die() {
    echo "check-headers: $1" >&2
    exit 2
}

sdk=
json=false
house=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
headers=$house/ffi/doca-emulator/include
uses=$house/ffi/doca/src
while [ $# -gt 0 ]; do
    case "$1" in
        --sdk | --headers | --uses)
            [ -n "${2:-}" ] || die "$1 wants a directory"
            case "$1" in --sdk) sdk=$2 ;; --headers) headers=$2 ;; --uses) uses=$2 ;; esac
            shift
            ;;
        --json) json=true ;;
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

cc=${CC:-}
for tool in cc gcc clang; do
    [ -n "$cc" ] || ! command -v $tool >/dev/null || cc=$tool
done
command -v "${cc:-cc}" >/dev/null || die "no C compiler: install gcc, or name one with CC"

# Where the SDK's headers are. Who names a place gets that one or an error.
flags=()
if [ -z "$sdk" ] && [ -n "${DOCA_DIR:-}" ]; then sdk=$DOCA_DIR; fi
if [ -n "$sdk" ]; then
    include=$sdk/include
    [ -f "$include/doca_types.h" ] || include=$sdk
    [ -f "$include/doca_types.h" ] || die "no doca_types.h in $sdk/include nor in $sdk: name the SDK's directory, e.g. --sdk /opt/mellanox/doca"
else
    command -v pkg-config >/dev/null || die "no --sdk, no DOCA_DIR, and no pkg-config to ask: name the SDK's directory, e.g. --sdk /opt/mellanox/doca"
    said=$(pkg-config --cflags doca-common 2>&1) ||
        die "pkg-config does not know doca-common: put the SDK's pkgconfig directory on PKG_CONFIG_PATH, or use --sdk DIR"
    read -r -a flags <<<"$said"
    include=$(printf '#include <doca_types.h>\n' | "$cc" ${flags[@]+"${flags[@]}"} -E -x c - 2>/dev/null |
        sed -n 's/^# [0-9]* "\(.*\)\/doca_types\.h".*/\1/p' | head -n 1)
    [ -n "$include" ] || die "pkg-config --cflags doca-common says '$said', but no doca_types.h is there: is the -dev package installed?"
fi
include=$(cd "$include" && pwd -P)
[ -f "$headers/doca_types.h" ] || die "no doca_types.h in $headers: --headers wants the directory of our own headers"
headers=$(cd "$headers" && pwd -P)
[ "$include" != "$headers" ] || die "the SDK's headers and ours are the same directory: $headers"
[ -d "$uses" ] || die "$uses: no such directory (--uses)"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

# The headers that both sides have, in one file; those that only we have are missing with all that they declare.
shared=()
for file in "$headers"/*.h; do
    name=$(basename "$file")
    echo "#include <$name>" >>ours.c
    [ ! -f "$include/$name" ] || { shared+=("$name") && echo "#include <$name>" >>theirs.c; }
done
ours=("-I$headers" -DDOCA_ALLOW_EXPERIMENTAL_API -w)
theirs=("-I$include" ${flags[@]+"${flags[@]}"} -DDOCA_ALLOW_EXPERIMENTAL_API -w)

declarations() { awk -v under="$1/" -f "$house/scripts/bring-up/declarations.awk"; }
"$cc" "${ours[@]}" -fsyntax-only ours.c 2>messages || die "our headers do not compile: $(head -n 1 messages)"
"$cc" "${theirs[@]}" -fsyntax-only theirs.c 2>messages || die "the SDK's headers do not compile here: $(head -n 1 messages)"
"$cc" "${ours[@]}" -E -dD ours.c | declarations "$headers" >ours.tsv
"$cc" "${theirs[@]}" -E -dD theirs.c | declarations "$include" >theirs.tsv
version=$(sed -n 's/^[ \t]*#define DOCA_VER[A-Z]*_STRING "\(.*\)".*/\1/p' "$include/doca_version.h" 2>/dev/null | head -n 1)
version=${version:-unknown}

# What each side says of a name: `kind name header ours theirs`. Kinds that C does not tell apart count as one.
grep --recursive --only-matching --no-filename --word-regexp '\(doca\|DOCA\)_[A-Za-z0-9_]*' "$uses" | sort --unique >used
awk -F '\t' '
    function group(kind) { return kind == "inline" ? "function" : kind == "number" ? "constant" : kind }
    FILENAME == "used" { used[$0] = 1; next }
    FILENAME == "theirs.tsv" { text[group($1), $2] = $4; kind[group($1), $2] = $1; next }
    {
        key = group($1) SUBSEP $2
        print $1 "\t" $2 "\t" $3 "\t" $4 "\t" (key in kind ? kind[key] : "-") "\t" text[key] "\t" ($2 in used ? "used" : "-")
    }' used theirs.tsv ours.tsv | sort --unique >pairs.tsv

# Prototypes and types: ours, said again after the SDK's, is an error of the compiler where they disagree.
awk -F '\t' -v items=items '
    $5 != "-" && ($1 == "function" || $1 == "inline" || $1 == "typedef") {
        mark = $1 == "inline" && $5 == "inline" ? "static " : ""
        print mark $4 ";"
        print $2 >items
    }' pairs.tsv >lines
: >>items
{ cat theirs.c && cat lines; } >again.c
no_limit=()
case "$("$cc" --version)" in *clang*) no_limit=(-ferror-limit=0) ;; esac
compiles=true
"$cc" "${theirs[@]}" ${no_limit[@]+"${no_limit[@]}"} -fsyntax-only again.c 2>messages || compiles=false
sed -n 's/^again\.c:\([0-9]*\):.*error: \(.*\)/\1\t\2/p' messages |
    awk -F '\t' -v before="$(wc -l <theirs.c)" 'FILENAME == "items" { name[FNR + before] = $0; next } $1 in name { print name[$1] "\t" $2 }' items - >conflicts
$compiles || [ -s conflicts ] || die "the compiler refuses our prototypes beside the SDK's and says: $(head -n 1 messages)"

# Numbers: the compiler writes each into its assembly, which nobody assembles.
facts() {
    local side=$1
    shift
    {
        cat "$side.c"
        echo '#include <stddef.h>'
        echo 'void facts(void) {'
        awk -F '\t' '
            function fact(name, value) { printf "\tasm volatile(\"@fact %s = %%c0\" : : \"i\"(%s));\n", name, value }
            $5 == "-" { next }
            $1 == "constant" || $1 == "number" { fact($2, "(long long)(" $2 ")") }
            $1 == "struct" { fact($2, "sizeof(" $2 ")") }
            $1 == "field" {
                owner = field = $2
                sub(/\.[^.]*$/, "", owner)
                sub(/^.*\./, "", field)
                fact($2, "offsetof(" owner ", " field ") * 65536 + sizeof(((" owner " *)0)->" field ")")
            }' pairs.tsv
        echo '}'
    } >"facts-$side.c"
    "$cc" "$@" -O0 -S -o "facts-$side.s" "facts-$side.c" 2>messages || die "the $side headers' numbers cannot be had: $(grep error messages | head -n 1)"
    sed -n 's/^.*@fact \(.*\) = [$#]*\(-*[0-9]*\).*/\1\t\2/p' "facts-$side.s" >"facts-$side"
    [ "$(wc -l <"facts-$side")" = "$(grep --count '@fact' "facts-$side.c")" ] || die "$cc does not write numbers the way this script reads them: try gcc (CC=gcc)"
}
facts ours "${ours[@]}"
facts theirs "${theirs[@]}"

# verdict: kind, name, header, used, verdict (same | differs | missing), ours, theirs, the compiler's words
awk -F '\t' '
    FILENAME == "conflicts" { conflict[$1] = $2; next }
    FILENAME == "facts-ours" { a[$1] = $2; next }
    FILENAME == "facts-theirs" { b[$1] = $2; next }
    function say(verdict, ours, theirs, words) {
        print $1 "\t" $2 "\t" $3 "\t" $7 "\t" verdict "\t" ours "\t" theirs "\t" words
    }
    function parameters(text) { return text == "()" ? 0 : split(text, unused, ",") }
    function place(value) { return "at byte " int(value / 65536) ", " value % 65536 " bytes" }
    $5 == "-" { say("missing", $4, "", ""); next }
    $1 == "macro" { say(parameters($4) == parameters($6) ? "same" : "differs", $2 $4, $2 $6, ""); next }
    $1 == "struct" { say(a[$2] == b[$2] ? "same" : "differs", a[$2] " bytes", b[$2] " bytes", ""); next }
    $1 == "field" { say(a[$2] == b[$2] ? "same" : "differs", place(a[$2]), place(b[$2]), ""); next }
    $1 == "constant" && $5 == "constant" && $4 != $6 { say("differs", "in enum " $4, "in enum " $6, ""); next }
    $1 == "constant" || $1 == "number" { say(a[$2] == b[$2] ? "same" : "differs", $2 " = " a[$2], $2 " = " b[$2], ""); next }
    $1 != $5 { say("differs", $1 == "inline" ? "in the header: " $4 : "in the library: " $4, $5 == "inline" ? "in the header: " $6 : "in the library: " $6, ""); next }
    { say($2 in conflict ? "differs" : "same", $4, $6, conflict[$2]) }
' conflicts facts-ours facts-theirs pairs.tsv >verdicts.tsv

# What the SDK has in these headers and we do not.
newer=$(awk -F '\t' 'FILENAME == "ours.tsv" { ours[$2] = 1; next } !($2 in ours) && ($1 == "function" || $1 == "inline")' ours.tsv theirs.tsv | wc -l)
differing=$(awk -F '\t' '$5 == "differs"' verdicts.tsv | wc -l)
missing_used=$(awk -F '\t' '$5 == "missing" && $4 == "used"' verdicts.tsv | wc -l)
missing=$(awk -F '\t' '$5 == "missing"' verdicts.tsv | wc -l)
agree=true
[ "$differing" = 0 ] && [ "$missing_used" = 0 ] || agree=false

if $json; then
    awk -F '\t' -v version="$version" -v sdk="$include" -v agree=$agree -v newer="$newer" '
        function text(s) { gsub(/\\/, "\\\\", s); gsub(/"/, "\\\"", s); return "\"" s "\"" }
        { count[$1]++; same[$1] += $5 == "same" }
        $5 != "same" {
            list = list (list == "" ? "" : ",") "{\"verdict\":" text($5) ",\"kind\":" text($1) ",\"name\":" text($2) ",\"header\":" text($3) \
                ",\"used_by_app\":" ($4 == "used" ? "true" : "false") ",\"ours\":" text($6) ",\"sdk\":" text($7) "}"
        }
        END {
            printf "{\"command\":\"check-headers\",\"sdk_version\":%s,\"sdk\":%s,\"agree\":%s,\"only_in_sdk\":%d,\"compared\":{", text(version), text(sdk), agree, newer
            for (kind in count) printf "%s\"%s\":{\"same\":%d,\"of\":%d}", (n++ ? "," : ""), kind, same[kind], count[kind]
            printf "},\"differences\":[%s]}\n", list
        }' verdicts.tsv
else
    awk -F '\t' '
        $5 == "differs" {
            printf "differs  %s %s (%s)%s\n    ours  %s\n    SDK   %s\n", $1, $2, $3, ($4 == "used" ? ", which the app uses" : ""), $6, $7
            if ($8 != "") printf "    %s\n", $8
        }
        $5 == "missing" && $4 == "used" { printf "missing  %s %s (%s), which the app uses\n", $1, $2, $3 }
        $5 == "missing" && $4 != "used" {
            if (!($3 in unused)) header[++headers] = $3
            unused[$3] = unused[$3] " " $2
        }
        END { for (i = 1; i <= headers; i++) printf "missing, and the app does not use them (%s):%s\n", header[i], unused[header[i]] }
    ' verdicts.tsv
    awk -F '\t' '
        BEGIN { order = "function inline typedef constant number struct field macro" }
        { count[$1]++; is[$1, $5]++ }
        END {
            printf "%-10s %6s %8s %8s\n", "", "same", "differs", "missing"
            n = split(order, kinds, " ")
            for (i = 1; i <= n; i++) if (count[kinds[i]]) printf "%-10s %6d %8d %8d\n", kinds[i], is[kinds[i], "same"], is[kinds[i], "differs"], is[kinds[i], "missing"]
        }' verdicts.tsv
    what="our headers against DOCA $version in $include"
    also="${#shared[@]} headers; $newer functions of the SDK's are not ours"
    if $agree && [ "$missing" = 0 ]; then
        echo "check-headers: agree: $what ($also)"
    elif $agree; then
        echo "check-headers: agree, but $missing names of ours are not in the SDK: $what ($also)"
    else
        echo "check-headers: differ: $differing differences, $missing_used missing that the app uses: $what ($also)"
    fi
fi
if $agree; then exit 0; else exit 1; fi
