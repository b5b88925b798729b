#!/bin/bash
# Times launches against docker.io, podman, crun and runc in one run: contenders take turns, so that what else the
# machine does hits all alike. Writes bench/results/launch.md and its pictures, and fails when a bar is missed. Arguments
# go to bench/launch:
#   bench/launch.sh -quick                          development: Berth and crun only, no report
#   bench/launch.sh -n 30 -only run,exec            some groups, with all peers, no report
#   bench/launch.sh -quick -only run -match gRPC    some contenders
#
# Everything runs in a network namespace of its own, with all stores on one journaled ext4 made for the run: on the
# host's own file system, whatever was deleted last would be measured too.
set -euo pipefail
cd "$(dirname "$0")/.."
[ "$(id -u)" = 0 ] || { echo "bench: starting engines needs root" >&2; exit 1; }
if [ -z "${BERTH_BENCH_INSIDE:-}" ]; then
	scripts/setup.sh bench
	mkdir -p bench/results
	export GOFLAGS="-trimpath -buildvcs=false" CGO_ENABLED=0
	go build -o bin/bench-launch ./bench/launch
	go build -o bin/bench-worker -tags grpcnotrace ./bench/worker
	go build -o bin/bench-empty ./bench/empty
	exec unshare --net --mount --propagation private env BERTH_BENCH_INSIDE=1 "$0" "$@"
fi

work=$(mktemp -d /tmp/berth-bench.XXXXXX)
hugetlb=
finish() {
	cd /
	grep -F " $work" /proc/self/mounts | cut -d' ' -f2 | sort -r | xargs -r -n1 umount -l 2>/dev/null || true
	# A group that was just removed holds the hierarchy for a moment, and then unmounting does not give it up.
	for _ in $(seq 20); do
		[ -n "$hugetlb" ] || break
		find $hugetlb -mindepth 1 -depth -type d -exec rmdir {} + 2>/dev/null || true
		umount $hugetlb
		grep -qw hugetlb /sys/fs/cgroup/unified/cgroup.controllers && break
		sleep 0.2
		mount -t cgroup -o hugetlb cgroup $hugetlb
	done
	rm -rf --one-file-system "$work" "$work.ext4"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

ip link set lo up
echo 1 >/proc/sys/net/ipv4/ip_forward
truncate -s 8G "$work.ext4"
mkfs.ext4 -q -F -E lazy_itable_init=1,lazy_journal_init=1 "$work.ext4"
mount -o loop,noatime "$work.ext4" "$work"
chmod 755 "$work"
# What engines keep below /run is on a tmpfs there.
mkdir "$work/run"
mount -t tmpfs -o mode=755 tmpfs "$work/run"

# crun wants each controller of a host with cgroup v1 to be a v1 one; some hosts leave hugetlb with v2. The mount point
# for it must not appear in the host's directory, where others would take it for a hierarchy: a private one lies over it.
if grep -qsw hugetlb /sys/fs/cgroup/unified/cgroup.controllers; then
	mkdir "$work/cgroup"
	mount -t tmpfs -o mode=755 cgroup "$work/cgroup"
	for h in /sys/fs/cgroup/*/; do
		mkdir "$work/cgroup/$(basename "$h")"
		mount --bind "$h" "$work/cgroup/$(basename "$h")"
	done
	mount --move "$work/cgroup" /sys/fs/cgroup
	mkdir -p /sys/fs/cgroup/hugetlb
	mount -t cgroup -o hugetlb cgroup /sys/fs/cgroup/hugetlb && hugetlb=/sys/fs/cgroup/hugetlb ||
		echo "bench: hugetlb cannot be had from v2: crun and podman may refuse" >&2
fi

bin/bench-launch -work "$work" -bin "$PWD/bin" -out "$PWD/bench/results" "$@"
