#!/bin/bash
# Fails when the committed generated code differs from what proto/ gives. $1: directory with the pinned tools.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp -r proto buf.yaml buf.gen.yaml buf.gen.cli.yaml "$work/"
find "$work/proto" -name '*.pb.go' -delete
(cd "$work" && PATH=$1:$PATH buf generate && PATH=$1:$PATH buf generate --template buf.gen.cli.yaml)
if ! diff -r proto "$work/proto" || ! diff -r --exclude=doc.go --exclude='*_test.go' cli/apiv1 "$work/cli/apiv1"; then
	echo "generated code is not fresh: run make generate and commit" >&2
	exit 1
fi
