#!/bin/bash
# Boots a throw-away copy of the machine that make-image.sh made, runs a job in it as root under systemd, streams the
# job's output and exits with its code.
#
#   boot.sh [--cgroup v2|v1] [--timeout SECONDS] [--console FILE] DIRECTORY
#
# DIRECTORY becomes /job in the machine; /job/run is what runs. Nothing the job writes is kept, no packet leaves the
# machine (it has no network card). Exit codes besides the job's: 124 out of time, 125 the machine ended without a
# result; the end of its console then follows on stderr.
set -euo pipefail

cgroup=v2 timeout=1200 console=
while [ $# -gt 1 ]; do
	case $1 in
	--cgroup) cgroup=$2; shift 2 ;;
	--timeout) timeout=$2; shift 2 ;;
	--console) console=$2; shift 2 ;;
	*) sed -n '2,10p' "$0" >&2; exit 2 ;;
	esac
done
job=${1:?a directory with the program run}
[ -x "$job/run" ] || { echo "boot: $job/run is not a program" >&2; exit 2; }
case $cgroup in
v2) hierarchy=systemd.unified_cgroup_hierarchy=1 ;;
# Both words: without the second, systemd keeps a v2 tree for itself beside the v1 controllers.
v1) hierarchy="systemd.unified_cgroup_hierarchy=0 systemd.legacy_systemd_cgroup_controller=1" ;;
*) echo "boot: --cgroup v2 or v1" >&2; exit 2 ;;
esac
cache=${BERTH_VM_CACHE:-$HOME/.cache/berth-vm}
[ -e "$cache/recipe" ] || { echo "boot: no machine in $cache (test/vm/make-image.sh)" >&2; exit 2; }

work=$(mktemp -d "${TMPDIR:-/var/tmp}/berth-vm.XXXXXX")
vm= cat=
trap 'kill -9 $vm $cat 2>/dev/null || true; rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
console=${console:-$work/console}

# The job travels as a file system: its size and a little for what the job writes beside itself.
size=$(($(du -sm "$job" | cut -f1) * 5 / 4 + 64))
truncate -s "${size}M" "$work/job.ext4"
mkfs.ext4 -q -L job -d "$job" -E root_owner=0:0 "$work/job.ext4"

# Hardware virtualisation where there is some: the device file alone does not say so, the processor's flags do.
if [ -w /dev/kvm ] && grep -qE '^flags.* (vmx|svm)( |$)' /proc/cpuinfo; then
	accelerator=(-accel kvm -cpu host)
else
	# Emulated. Without the 16-byte compare and exchange, which QEMU 7.2 emulates wrongly when processors are
	# emulated by threads of their own; without nested virtualisation and 5-level pages, which only cost time.
	accelerator=(-accel tcg,thread=multi -cpu max,cx16=off,svm=off,la57=off)
fi

mkfifo "$work/out"
: >"$work/code"
cat "$work/out" &
cat=$!
# A panic becomes a reboot (panic=-1), and a reboot the end (-no-reboot). ttyS0 is the console, ttyS1 the job's
# output, ttyS2 its exit code.
nice timeout --foreground -k 5 "$timeout" qemu-system-x86_64 -nodefaults -no-user-config -display none -no-reboot -machine pc \
	"${accelerator[@]}" -smp 2 -m 3072 \
	-kernel "$cache/vmlinuz" -initrd "$cache/initrd" \
	-append "console=ttyS0 root=/dev/vda rw panic=-1 mitigations=off quiet systemd.show_status=error $hierarchy" \
	-drive "file=$cache/disk.ext4,format=raw,if=virtio,snapshot=on,cache=unsafe" \
	-drive "file=$work/job.ext4,format=raw,if=virtio,cache=unsafe" \
	-device virtio-rng-pci \
	-serial "file:$console" -serial "file:$work/out" -serial "file:$work/code" </dev/null &
vm=$!
ended=0
wait "$vm" || ended=$?
vm=
wait "$cat" || true
code=$(tr -dc 0-9 <"$work/code")
[ -z "$code" ] || exit "$code"
tail -n 25 "$console" | sed 's/^/console: /' >&2
[ "$ended" != 124 ] || { echo "boot: out of time after $timeout s" >&2; exit 124; }
echo "boot: the machine ended without a result" >&2
exit 125
