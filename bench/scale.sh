#!/bin/bash
# Measures what docs/scale.md is made of, in some six minutes, and brings its tables up to date. It fails when the model
# misses the runs that it was held against by more than it may. Arguments go to bench/scale:
#   bench/scale.sh -only veth,cgroup          some probes, nothing else
#   bench/scale.sh -n 1,50                    fewer containers; nothing is written
#   bench/scale.sh -from bench/results/scale.json -docs docs/scale.md
#                                             the tables and predictions once more, without measuring; any user
#
# Everything runs in a network namespace of its own, with all state on one journaled ext4 made for the run.
set -euo pipefail
cd "$(dirname "$0")/.."
export GOFLAGS="-trimpath -buildvcs=false" CGO_ENABLED=0
if [ -z "${BERTH_BENCH_INSIDE:-}" ]; then
	go build -o bin/bench-scale ./bench/scale
	case " $* " in *" -from "*) exec bin/bench-scale "$@" ;; esac
	[ "$(id -u)" = 0 ] || { echo "scale: starting an engine needs root" >&2; exit 1; }
	[ -x /bin/busybox ] || { echo "scale: the containers are made of /bin/busybox: apt-get install busybox-static" >&2; exit 1; }
	go build -o bin/bench-worker -tags grpcnotrace ./bench/worker
	mkdir -p bench/results docs/img
	exec unshare --net --mount --propagation private env BERTH_BENCH_INSIDE=1 "$0" "$@"
fi

work=$(mktemp -d /tmp/berth-scale.XXXXXX)
finish() {
	cd /
	grep -F " $work" /proc/self/mounts | cut -d' ' -f2 | sort -r | xargs -r -n1 umount -l 2>/dev/null || true
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
mkdir "$work/run"
mount -t tmpfs -o mode=755 tmpfs "$work/run"
ulimit -n "$(ulimit -Hn)"

[ $# -gt 0 ] || set -- -out bench/results/scale.json -docs docs/scale.md
bin/bench-scale -work "$work" -bin "$PWD/bin" "$@"
