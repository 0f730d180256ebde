#!/usr/bin/env bash
# Prints what tells one build of a version from another: `+42.gabc1234` is the 42nd commit, abc1234; `.dirty` if files
# were changed since. Nothing where there is no git, or only that of a directory above. Scripts put it into
# KVLANE_BUILD; binaries show it in --version, packages have it in their version, and it grows.
set -euo pipefail
cd "$(dirname "$0")/.."
[ -e .git ] || exit 0
git rev-parse --is-inside-work-tree >/dev/null 2>&1 || exit 0
dirty=
[ -z "$(git status --porcelain --untracked-files=no)" ] || dirty=.dirty
printf '+%s.g%s%s\n' "$(git rev-list --count HEAD)" "$(git rev-parse --short=7 HEAD)" "$dirty"
