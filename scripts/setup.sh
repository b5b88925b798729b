#!/bin/bash
# Installs the Debian packages that the tests and the demo use, if any is missing. Root; does nothing the second time.
#   scripts/setup.sh          what `make test` and `make demo` need
#   scripts/setup.sh bench    also the peers that `make bench` compares with
#   scripts/setup.sh vm       also what `make test-vm` needs
set -euo pipefail

packages=(
	busybox-static   # a small root file system to put into an image
	docker-registry  # a real registry
	debootstrap      # a real distribution as an image
	iproute2 procps util-linux curl ca-certificates python3
	nftables         # tests read rules with nft; the engine does not
	strace           # tests that count or inject system calls
	skopeo           # a second opinion on images
	systemd          # systemd-analyze verifies the units; it need not run
	python3-grpcio protobuf-compiler-grpc protobuf-compiler python3-protobuf # a client in another language
	make git
)
case "${1:-}" in
bench) packages+=(docker.io podman crun runc netavark aardvark-dns iptables) ;;
vm) packages+=(qemu-system-x86 e2fsprogs) ;;
esac

missing=()
for p in "${packages[@]}"; do
	dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null | grep -qx installed || missing+=("$p")
done
[ ${#missing[@]} -gt 0 ] || exit 0
if [ "$(id -u)" != 0 ]; then
	echo "setup: these Debian packages are missing, and installing them needs root: ${missing[*]}" >&2
	exit 1
fi
echo "setup: installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# No service is started by what is installed here: the tests start their own.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
	printf '#!/bin/sh\nexit 101\n' >$policy
	chmod +x $policy
	trap 'rm -f "$log" $policy' EXIT
fi
if ! { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
	tail -n 20 "$log" >&2
	echo "setup: apt-get failed" >&2
	exit 1
fi
