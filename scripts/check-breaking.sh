#!/bin/bash
# Fails when the contracts break clients of the last release (the newest v* tag) or, before there is one, of the
# commit before this one. $1: directory with buf.
set -euo pipefail
cd "$(dirname "$0")/.."
base=$(git describe --tags --match 'v*' --abbrev=0 HEAD 2>/dev/null || git rev-parse -q --verify HEAD~1 || true)
if [ -z "$base" ] || ! git cat-file -e "$base:buf.yaml" 2>/dev/null; then
	echo "buf breaking: nothing to compare with yet"
	exit 0
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
git archive "$base" proto buf.yaml | tar -x -C "$work"
"$1/buf" breaking --against "$work"
