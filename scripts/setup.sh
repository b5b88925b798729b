#!/bin/bash
# Installs the Debian packages that the tests and the demo use, if any is missing. Root; does nothing the second time.
#   scripts/setup.sh          what `make demo` needs
#   scripts/setup.sh test     also a Debian root file system, which the tests put into an image
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
	erofs-utils      # mkfs.erofs, a second opinion on EROFS images
	skopeo zstd      # a second opinion on images; archives compressed by another program
	systemd          # systemd-analyze verifies the units; it need not run
	python3-grpcio protobuf-compiler-grpc protobuf-compiler python3-protobuf libprotobuf-dev # a client in another language
	make git
)
case "${1:-}" in
bench) packages+=(docker.io podman crun runc netavark aardvark-dns iptables containerd zstd) ;;
vm) packages+=(qemu-system-x86 e2fsprogs) ;;
esac

missing=()
for p in "${packages[@]}"; do
	dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null | grep -qx installed || missing+=("$p")
done
install_missing() {
	if [ "$(id -u)" != 0 ]; then
		echo "setup: these Debian packages are missing, and installing them needs root: ${missing[*]}" >&2
		exit 1
	fi
	echo "setup: installing ${missing[*]}"
	export DEBIAN_FRONTEND=noninteractive
	log=$(mktemp)
	# No service is started by what is installed here: the tests start their own.
	policy=/usr/sbin/policy-rc.d
	if [ ! -e $policy ]; then
		printf '#!/bin/sh\nexit 101\n' >$policy
		chmod +x $policy
		made_policy=1
		trap 'rm -f "$log" $policy' EXIT
	fi
	if ! { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
		tail -n 20 "$log" >&2
		echo "setup: apt-get failed" >&2
		exit 1
	fi
	rm -f "$log"
	[ -z "${made_policy:-}" ] || rm -f $policy
}
[ ${#missing[@]} = 0 ] || install_missing

[ "${1:-}" = test ] || exit 0
# A real distribution for the tests, made once: debootstrap takes a minute.
debian=${XDG_CACHE_HOME:-$HOME/.cache}/berth-test/debian-bookworm-minbase.tar
if [ ! -e "$debian" ]; then
	echo "setup: making $debian"
	mkdir -p "$(dirname "$debian")"
	work=$(mktemp -d)
	mirror=$(apt-get indextargets --format '$(REPO_URI)' 2>/dev/null | grep -v security | head -n 1)
	if ! debootstrap --variant=minbase bookworm "$work/fs" "${mirror%/}" >"$work/log" 2>&1; then
		tail -n 20 "$work/log" >&2
		rm -rf --one-file-system "$work"
		exit 1
	fi
	rm -rf "$work"/fs/var/cache/apt/archives/*.deb "$work"/fs/var/lib/apt/lists/*
	tar -C "$work/fs" --numeric-owner --xattrs -cf "$debian.part" .
	mv "$debian.part" "$debian"
	rm -rf --one-file-system "$work"
fi
