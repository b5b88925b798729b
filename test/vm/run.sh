#!/bin/bash
# Installs the engine in a fresh machine under systemd and tests it there, once with cgroup v2 and once with cgroup v1.
# `make test-vm` calls it.
#
#   run.sh [v2|v1]... [engine|packages]...     what is named only; default: everything
set -euo pipefail
cd "$(dirname "$0")/../.."
[ "$(id -u)" = 0 ] || { echo "test-vm: making the machine needs root" >&2; exit 1; }

hierarchies=() parts=()
for word; do
	case $word in
	v2 | v1) hierarchies+=("$word") ;;
	engine | packages) parts+=("$word") ;;
	*) sed -n '2,6p' "$0" >&2; exit 2 ;;
	esac
done
[ ${#hierarchies[@]} -gt 0 ] || hierarchies=(v2 v1)
[ ${#parts[@]} -gt 0 ] || parts=(engine packages)

test/vm/make-image.sh
job=$(mktemp -d "${TMPDIR:-/var/tmp}/berth-job.XXXXXX")
trap 'rm -rf "$job"' EXIT
cp test/vm/inside.sh "$job/run"
echo "parts='${parts[*]}'" >"$job/parts"

# What a package would contain; inside.sh unpacks it as dpkg does.
if [[ " ${parts[*]} " == *" engine "* ]]; then
	DESTDIR=$job/install scripts/install.sh
fi
# Tests of the packages that meet the kernel, each with its testdata.
if [[ " ${parts[*]} " == *" packages "* ]]; then
	go build -ldflags '-s -w' -o "$job/berth-init" ./libcontainer/cmd/berth-init
	for package in libcontainer libcontainer/cgroup libcontainer/cgroup/devices libcontainer/feature libcontainer/loop libcontainer/netns; do
		mkdir -p "$job/packages/$package"
		go test -c -ldflags '-s -w' -o "$job/packages/$package/test" "./$package"
		[ ! -d "$package/testdata" ] || cp -r "$package/testdata" "$job/packages/$package/"
	done
fi

failed=()
for cgroup in "${hierarchies[@]}"; do
	echo "=== Debian bookworm, systemd, cgroup $cgroup"
	echo "$cgroup" >"$job/cgroup"
	began=$SECONDS
	code=0
	test/vm/boot.sh --cgroup "$cgroup" "$job" || code=$?
	# 125: no result. An emulated machine may lose its emulator (QEMU 7.2 has crashed here under load); once is no finding.
	[ $code != 125 ] || { code=0; test/vm/boot.sh --cgroup "$cgroup" "$job" || code=$?; }
	[ $code = 0 ] || failed+=("cgroup $cgroup (exit $code)")
	echo "=== cgroup $cgroup: $((SECONDS - began)) s"
done
[ ${#failed[@]} = 0 ] || { echo "test-vm: failed with ${failed[*]}" >&2; exit 1; }
