#!/bin/bash
# Times cold pulls from a local docker-registry against docker.io, podman, skopeo and containerd in one run. Writes
# bench/results/pull.md and pull.svg. Arguments go to bench/pull: -n ROUNDS, -quick (no peers, no report), -images NAME,
# -images moves (save, push, commit, load), -images shapes (40 layers, 200,000 files, by graph driver), -engines docker,skopeo.
#
# The images are made once and kept in the user's cache directory. Everything runs in a network namespace of its own.
set -euo pipefail
cd "$(dirname "$0")/.."
[ "$(id -u)" = 0 ] || { echo "bench: starting engines needs root" >&2; exit 1; }
if [ -z "${BERTH_BENCH_INSIDE:-}" ]; then
	scripts/setup.sh bench
	scripts/setup.sh test
	mkdir -p bench/results
	GOFLAGS="-trimpath -buildvcs=false" CGO_ENABLED=0 go build -o bin/bench-pull ./bench/pull
	exec unshare --net --mount --propagation private env BERTH_BENCH_INSIDE=1 "$0" "$@"
fi

cache=${XDG_CACHE_HOME:-$HOME/.cache}/berth-test
work=$(mktemp -d /tmp/berth-pull.XXXXXX)
finish() {
	cd /
	grep -F " $work" /proc/self/mounts | cut -d' ' -f2 | sort -r | xargs -r -n1 umount -l 2>/dev/null || true
	rm -rf --one-file-system "$work"
}
chmod 755 "$work"
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
ip link set lo up
bin/bench-pull -work "$work" -bin "$PWD/bin" -out "$PWD/bench/results" -cache "$cache" -debian "$cache/debian-bookworm-minbase.tar" "$@"
