#!/bin/bash
# Times the command line: whole processes of `berth --version`, `ps`, `version`, `exec` and `run` against an engine of their
# own, and of a Go program that does nothing. It measures bin/; further programs, such as the berth of another commit, can
# be given after the options and take turns with it: bench/cli.sh [-n ROUNDS] [BERTH...].
#
# Everything runs in a network namespace of its own.
set -euo pipefail
cd "$(dirname "$0")/.."
[ "$(id -u)" = 0 ] || { echo "bench: starting an engine needs root" >&2; exit 1; }
if [ -z "${BERTH_BENCH_INSIDE:-}" ]; then
	export GOFLAGS="-trimpath -buildvcs=false" CGO_ENABLED=0
	go build -o bin/bench-cli ./bench/cli
	go build -ldflags '-s -w' -o bin/bench-empty ./bench/empty
	exec unshare --net --mount --propagation private env BERTH_BENCH_INSIDE=1 "$0" "$@"
fi

options=()
if [ "${1:-}" = -n ]; then options=(-n "$2"); shift 2; fi
work=$(mktemp -d /tmp/berth-bench-cli.XXXXXX)
chmod 755 "$work"
export BERTH_ROOT=$work/root BERTH_RUN=$work/run
unset BERTH_HOST
finish() {
	bin/berth rm -f c >/dev/null 2>&1 || true
	bin/berth down >/dev/null 2>&1 || true
	rm -rf --one-file-system "$work"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
ip link set lo up
bin/berth up --detach >/dev/null
mkdir -p "$work/fs/bin"
cp /bin/busybox "$work/fs/bin/"
ln -s busybox "$work/fs/bin/true"
ln -s busybox "$work/fs/bin/sleep"
tar -C "$work/fs" -c . | bin/berth import - bench >/dev/null 2>&1
bin/berth run -d --name c --network none bench sleep 86400 >/dev/null
bin/bench-cli -empty bin/bench-empty "${options[@]}" bin/berth "$@"
