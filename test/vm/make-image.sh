#!/bin/bash
# Makes the virtual machine that test/vm boots: Debian bookworm with systemd, its cloud kernel, and what the tests use.
# The result, in ${BERTH_VM_CACHE:-~/.cache/berth-vm}: disk.ext4, vmlinuz, initrd. Made again when this file changes.
# Root; three minutes, half a gigabyte.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${BERTH_VM_CACHE:-$HOME/.cache/berth-vm}
recipe=$(sha256sum <"${BASH_SOURCE[0]}" | cut -c1-16)
mkdir -p "$cache"
exec 9>"$cache/lock"
flock 9
[ "$(cat "$cache/recipe" 2>/dev/null)" != "$recipe" ] || exit 0
[ "$(id -u)" = 0 ] || { echo "make-image: debootstrap needs root" >&2; exit 1; }
"$here/../../scripts/setup.sh" vm

packages=(
	systemd systemd-sysv udev dbus kmod
	apparmor nftables iproute2 procps curl
	busybox-static docker-registry # an image to import, a registry to pull from
	erofs-utils                    # other images than the engine's own
)
began=$SECONDS
work=$(mktemp -d "$cache/new.XXXXXX")
trap 'mountpoint -q "$work/tree/proc" && umount "$work/tree/proc"; rm -rf --one-file-system "$work"' EXIT
tree=$work/tree
run() { # a command whose output matters only when it fails
	"$@" >"$work/log" 2>&1 || { tail -n 25 "$work/log" >&2; echo "make-image: $1 failed" >&2; exit 1; }
}
in_tree() { run env DEBIAN_FRONTEND=noninteractive nice chroot "$tree" "$@"; }

# The mirror that this host uses, if it has one; else debootstrap's own choice.
mirror=$(apt-get indextargets --format '$(REPO_URI)' 2>/dev/null | grep -v security | head -n 1) || true
echo "make-image: debootstrap"
mkdir -p "$cache/debs"
run nice debootstrap --variant=minbase --cache-dir="$cache/debs" \
	--include="$(IFS=,; echo "${packages[*]},initramfs-tools,zstd")" bookworm "$tree" ${mirror:+"$mirror"}

echo "make-image: kernel"
# The disk is virtio and ext4, so the initial RAM disk needs no more; a small one boots faster under emulation.
mkdir -p "$tree/etc/initramfs-tools/conf.d"
echo MODULES=list >"$tree/etc/initramfs-tools/conf.d/berth"
printf '%s\n' virtio_pci virtio_blk ext4 >>"$tree/etc/initramfs-tools/modules"
printf '#!/bin/sh\nexit 101\n' >"$tree/usr/sbin/policy-rc.d" # services start in the machine, not here
chmod 755 "$tree/usr/sbin/policy-rc.d"
mount -t proc proc "$tree/proc"
in_tree apt-get install -y -q --no-install-recommends linux-image-cloud-amd64
in_tree apt-get clean
umount "$tree/proc"
rm "$tree/usr/sbin/policy-rc.d"

echo berth-vm >"$tree/etc/hostname"
printf '127.0.0.1\tlocalhost berth-vm\n' >"$tree/etc/hosts"
printf '/dev/vda / ext4 defaults 0 0\n' >"$tree/etc/fstab"
: >"$tree/etc/machine-id"
# The job: boot.sh puts it on a second disk and listens on the serial ports.
cat >"$tree/usr/local/sbin/berth-job" <<'J'
#!/bin/bash
# Runs /job/run, its output on ttyS1 and, when it is over, its exit code on ttyS2; then the power goes.
export HOME=/root LANG=C.UTF-8 PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
stty -F /dev/ttyS1 raw -echo
stty -F /dev/ttyS2 raw -echo
mkdir -p /job
mount LABEL=job /job
cd /job
./run </dev/null >/dev/ttyS1 2>&1
echo $? >/dev/ttyS2
stty -F /dev/ttyS1 drain
systemctl poweroff -ff
J
chmod 755 "$tree/usr/local/sbin/berth-job"
cat >"$tree/etc/systemd/system/berth-job.service" <<'J'
[Unit]
Description=Run what the host handed in
After=multi-user.target
ConditionPathExists=/dev/disk/by-label/job
[Service]
ExecStart=/usr/local/sbin/berth-job
# Tests make control groups of their own below the service's, and let one run out of memory.
Delegate=yes
TasksMax=infinity
OOMPolicy=continue
[Install]
WantedBy=graphical.target
J
in_tree systemctl enable berth-job.service
in_tree systemctl set-default graphical.target
in_tree systemctl mask apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer \
	dpkg-db-backup.timer getty@tty1.service serial-getty@ttyS0.service systemd-pstore.service docker-registry.service

echo "make-image: disk"
cp "$tree"/boot/vmlinuz-* "$work/vmlinuz"
cp "$tree"/boot/initrd.img-* "$work/initrd"
truncate -s 8G "$work/disk.ext4"
run nice mkfs.ext4 -q -L root -E lazy_itable_init=1 -d "$tree" "$work/disk.ext4"
mv "$work"/{vmlinuz,initrd,disk.ext4} "$cache/"
echo "$recipe" >"$cache/recipe"
echo "make-image: $(ls "$tree/boot" | sed -n 's/^vmlinuz-//p') in $cache, $((SECONDS - began)) s"
