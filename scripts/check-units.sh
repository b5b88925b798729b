#!/bin/bash
# Verifies the systemd units and holds their exposure (systemd-analyze security, 0.0 best to 10.0 worst) below the
# gates. Works without a running systemd.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v systemd-analyze >/dev/null || { echo "check-units: systemd-analyze is not installed (scripts/setup.sh)" >&2; exit 1; }

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
mkdir -p "$root"/{bin,etc,usr/libexec/berth,usr/lib/systemd,run}
cp -r /usr/lib/systemd/system "$root/usr/lib/systemd/system"
cp deploy/systemd/* "$root/usr/lib/systemd/system/"
for d in apid imaged netd execd; do
	printf '#!/bin/sh\n' >"$root/usr/libexec/berth/$d"
	chmod 755 "$root/usr/libexec/berth/$d"
done
cp "$root/usr/libexec/berth/execd" "$root/bin/sh"
printf 'root:x:0:0::/:/bin/sh\n' >"$root/etc/passwd"
printf 'root:x:0:\n' >"$root/etc/group"

bad=0
for unit in deploy/systemd/*; do
	name=$(basename "$unit")
	# Documentation is installed by the package, not here.
	if ! out=$(systemd-analyze verify --root="$root" --man=no "$name" 2>&1) || grep -F "$name" <<<"$out"; then
		echo "check-units: $name: $out" >&2
		bad=1
	fi
done

gate() { # DAEMON LIMIT, in tenths
	score=$(systemd-analyze security --root="$root" --offline=true --threshold="$2" --no-pager "berth-$1.service" 2>&1 | tail -n 1) && ok=1 || ok=
	echo "berth-$1.service (gate $(($2 / 10)).$(($2 % 10))): ${score#*: }"
	[ -n "$ok" ] || bad=1
}
gate apid 5
gate imaged 35
gate netd 30
gate execd 90
[ $bad = 0 ] || { echo "check-units: failed" >&2; exit 1; }
