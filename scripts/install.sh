#!/bin/bash
# Installs what bin/ holds, and all that goes with it. `make install` calls it.
#   PREFIX   default /usr; with /usr/local, systemd reads that too
#   DESTDIR  a directory that stands for /, for packagers; then nothing outside it is touched or started
set -euo pipefail
cd "$(dirname "$0")/.."
prefix=${PREFIX:-/usr}
dest=${DESTDIR:-}
case $prefix in /*) ;; *) echo "install: PREFIX must be an absolute path" >&2; exit 1 ;; esac
for p in berth berthd imaged berth-monitor berth-init berth-unpack; do
	[ -x "bin/$p" ] || { echo "install: bin/$p is missing: run make build" >&2; exit 1; }
done

put() { # MODE DIRECTORY FILE...
	local mode=$1 dir=$dest$prefix/$2
	shift 2
	install -d -m 755 "$dir"
	install -m "$mode" -t "$dir" "$@"
}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

put 755 bin bin/berth
put 755 libexec/berth bin/{berthd,imaged,berth-monitor,berth-init,berth-unpack}
for d in apid netd execd; do ln -f "$dest$prefix/libexec/berth/"{berthd,$d}; done

mkdir "$work/units"
for unit in deploy/systemd/*; do
	sed "s,/usr/libexec/berth/,$prefix/libexec/berth/," "$unit" >"$work/units/$(basename "$unit")"
done
put 644 lib/systemd/system "$work"/units/*
put 644 lib/sysusers.d deploy/sysusers.d/berth.conf
put 644 lib/tmpfiles.d deploy/tmpfiles.d/berth.conf

mkdir "$work/completion" "$work/man"
bin/berth completion bash >"$work/completion/berth"
bin/berth completion zsh >"$work/completion/_berth"
bin/berth completion fish >"$work/completion/berth.fish"
put 644 share/bash-completion/completions "$work/completion/berth"
put 644 share/zsh/site-functions "$work/completion/_berth"
put 644 share/fish/vendor_completions.d "$work/completion/berth.fish"
go run ./tools/man -o "$work/man" bin/berth
put 644 share/man/man1 "$work"/man/*.1
put 644 share/doc/berth LICENSE ARCHITECTURE.md

[ -z "$dest" ] || exit 0
if [ -d /run/systemd/system ]; then
	systemd-sysusers
	systemd-tmpfiles --create berth.conf
	systemctl daemon-reload
	echo "Start the engine, now and at each boot:"
	echo "  systemctl enable --now berth-apid.socket berth-imaged.socket berth-netd.socket berth-execd.service"
else
	echo "Start the engine: berth up --detach"
fi
echo "Let someone use it: usermod -aG berth NAME    (whoever can start containers can become root)"
