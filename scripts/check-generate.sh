#!/bin/bash
# Fails when the committed generated code differs from what proto/ gives. $1: directory with the pinned tools.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp -r proto buf.yaml buf.gen.yaml "$work/"
find "$work/proto" -name '*.pb.go' -delete
(cd "$work" && PATH=$1:$PATH buf generate)
if ! diff -r proto "$work/proto"; then
	echo "generated code is not fresh: run make generate and commit" >&2
	exit 1
fi
