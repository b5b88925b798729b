#!/bin/bash
# The tests inside the machine, as root under systemd. run.sh hands them in as /job/run, with the installed files in
# /job/install and the packages' test binaries in /job/packages. One line a test; the exit code is 1 if any failed.
set -uo pipefail
cd /job
. ./parts
cgroup=$(cat cgroup)
daemons="apid imaged netd execd"
failures=0

ok() { echo "ok    $*"; }
fail() { # WHAT DETAILS
	echo "FAIL  $1${2:+: $2}"
	failures=$((failures + 1))
}
need() { # WHAT COMMAND... succeeds; else so does not this
	local what=$1 out
	shift
	if out=$("$@" 2>&1); then
		ok "$what"
	else
		fail "$what" "exit $?, $* says: $(tail -n 4 <<<"$out")"
		return 1
	fi
}
expect() { need "$@" || true; } # what follows does not depend on it
same() { # WHAT GOT WANT
	if [ "$2" = "$3" ]; then ok "$1"; else fail "$1" "got '$2', want '$3'"; fi
}
contains() { # WHAT GOT WANT
	case $2 in *"$3"*) ok "$1" ;; *) fail "$1" "no '$3' in '$2'" ;; esac
}
within() { # SECONDS COMMAND...: until it succeeds
	local end=$((SECONDS + $1))
	shift
	until "$@" >/dev/null 2>&1; do
		[ $SECONDS -lt $end ] || return 1
		sleep 0.2
	done
}
units() { # SUFFIX
	for d in $daemons; do echo "berth-$d.$1"; done
}
all_active() { systemctl -q is-active $(units service) && ! systemctl is-active $(units service) | grep -qvx active; }
main_pid() { systemctl show -p MainPID --value "berth-$1.service"; }
serves() { berth version -f '{{range .Server.Daemons}}{{.Status}} {{end}}' | grep -qx 'serving serving serving serving '; }
answers() { [ "$(curl -fsS -m 10 http://127.0.0.1:8080/ 2>&1)" = "hello from a container" ]; }
still_there() { # WHAT: the container of before is the one of now, and reachable
	same "$1: the container runs on" "$(cat "/proc/$web/comm" 2>&1)" httpd
	expect "$1: its port answers" within 10 answers
}

test_install() {
	local files
	cp -a install/. /
	systemd-sysusers && systemd-tmpfiles --create && systemctl daemon-reload || { fail "install the files"; return 1; }
	files=$(systemd-analyze verify --man=no $(units socket) $(units service) 2>&1 | grep berth)
	same "systemd has nothing against the units" "$files" ""
	expect "the manual page is there" test -s /usr/share/man/man1/berth.1
	systemctl -q enable --now $(units socket) || { fail "start the sockets"; return 1; }
	same "only sockets are active" "$(systemctl is-active $(units service) | sort -u)" inactive
	same "apid's socket" "$(stat -c '%U:%G %a' /run/berth/apid.sock)" "root:berth 660"
	same "directory of the engine's sockets" "$(stat -c '%U:%G %a' /run/berth/engine)" "root:berth-engine 750"
}

test_activation() {
	need "the first call starts the daemons" within 60 serves || return 1
	all_active || { fail "all units are active" "$(systemctl is-active $(units service) | paste -sd' ')"; return 1; }
	ok "all units are active"
	contains "apid knows the kernel" "$(berth version)" "$(uname -r)"
	berth version
}

# identity DAEMON USER CAPABILITIES [FOR-CHILDREN]: the masks are upper bounds, a daemon may drop more. The second is of what
# it does not use itself and hands on.
identity() {
	local pid status mask
	pid=$(main_pid "$1")
	same "$1 runs as $2" "$(stat -c %U "/proc/$pid")" "$2"
	for set in CapEff CapBnd; do
		mask=$(sed -n "s/^$set:\t//p" "/proc/$pid/status")
		same "$1: $set has nothing beyond its unit" "$(printf %x $((0x${mask:-ffffffffff} & ~$3 & ~$([ $set = CapBnd ] && echo "${4:-0}" || echo 0))))" 0
	done
}
bits() { # of capabilities(7), by number
	local m=0
	for n; do m=$((m | 1 << n)); done
	echo $m
}
test_identities() {
	identity apid berth-apid 0
	# CHOWN DAC_OVERRIDE FOWNER FSETID; SYS_CHROOT MKNOD SETFCAP are for the processes that unpack
	identity imaged berth-imaged "$(bits 0 1 3 4)" "$(bits 18 27 31)"
	identity netd berth-netd "$(bits 10 12)"             # NET_BIND_SERVICE NET_ADMIN
	identity execd root "$((~$(bits 16 17 22 25 33 32 34 20 35 36)))"
	useradd --system outsider && useradd --system --groups berth insider
	expect "a member of the group berth may call" setpriv --reuid insider --regid insider --init-groups berth ps
	out=$(setpriv --reuid outsider --regid outsider --init-groups berth ps 2>&1) && fail "others may not call" "berth ps worked" ||
		contains "others may not call" "$out" "error: "
}

test_run() {
	local fs=/tmp/fs
	mkdir -p $fs/{bin,etc,www,tmp,proc,sys,dev}
	cp /bin/busybox $fs/bin/
	for applet in sh httpd cat dd sleep true mknod head ps grep id ls; do ln -sf busybox $fs/bin/$applet; done
	echo "hello from a container" >$fs/www/index.html
	echo 'root:x:0:0:root:/:/bin/sh' >$fs/etc/passwd
	tar -C $fs --owner=0 --group=0 -cf /tmp/fs.tar .
	need "import an image" berth import -c 'CMD ["/bin/httpd","-f","-p","80","-h","/www"]' /tmp/fs.tar web:v1 || return 1
	# The first start of all loads kernel modules and starts the monitor: emulated, that can outlast apid's patience.
	need "run a first container" within 60 berth run --rm web:v1 true || return 1
	need "run a web server" berth run -d --name web --memory 64m --cpus 0.5 --pids-limit 30 -p 8080:80 web:v1 || return 1
	expect "its published port answers" within 20 answers
	web=$(berth inspect -f '{{.State.Pid}}' web)
	same "exec" "$(berth exec web cat /www/index.html)" "hello from a container"
	berth exec web sh -c 'exit 42'
	same "exec's exit code" $? 42
	case $cgroup in
	v2) expect "it is in the delegated control group" grep -q '^0::/system.slice/berth-containers.service/berth/' "/proc/$web/cgroup" ;;
	v1) expect "it is in a memory group of its own" grep -q '^[0-9]*:memory:/berth/' "/proc/$web/cgroup" ;;
	esac
}

test_registry() {
	local registry
	printf 'version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: /tmp/registry}}\nhttp: {addr: "127.0.0.1:5000"}\n' >/tmp/registry.yml
	docker-registry serve /tmp/registry.yml >/tmp/registry.log 2>&1 &
	registry=$!
	need "a registry answers" within 30 curl -fs http://127.0.0.1:5000/v2/ || return 0
	berth tag web:v1 127.0.0.1:5000/web:v1
	expect "push" berth push -q 127.0.0.1:5000/web:v1
	berth rmi 127.0.0.1:5000/web:v1 >/dev/null
	expect "pull" berth pull -q 127.0.0.1:5000/web:v1
	same "run what was pulled, with a volume" "$(berth run --rm -v data:/data 127.0.0.1:5000/web:v1 sh -c 'echo kept >/data/x; cat /data/x' 2>&1)" kept
	kill $registry
}

test_limits() {
	local out
	if [ "$cgroup" = v2 ]; then
		same "the container sees its memory limit" "$(berth exec web cat /sys/fs/cgroup/memory.max)" 67108864
		same "and its share of processors" "$(berth exec web cat /sys/fs/cgroup/cpu.max)" "50000 100000"
		same "and its limit of processes" "$(berth exec web cat /sys/fs/cgroup/pids.max)" 30
	else
		same "the container sees its memory limit" "$(berth exec web cat /sys/fs/cgroup/memory/memory.limit_in_bytes)" 67108864
		same "and its share of processors" "$(berth exec web cat /sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us)" 50000
		same "and its limit of processes" "$(berth exec web cat /sys/fs/cgroup/pids/pids.max)" 30
	fi
	berth run --name hog --memory 16m web:v1 dd if=/dev/zero of=/dev/null bs=64M count=1 >/dev/null 2>&1
	same "too much memory is fatal" $? 137
	same "and said to be so" "$(berth inspect -f '{{.State.OOMKilled}}' hog)" true
	berth rm hog >/dev/null
	out=$(berth run --rm --pids-limit 10 web:v1 sh -c 'i=0; while [ $i -lt 20 ]; do sleep 3 & i=$((i+1)); done' 2>&1)
	contains "too many processes are refused" "$out" "can't fork"
	out=$(berth run --rm web:v1 sh -c 'mknod /tmp/disk b 254 0 && head -c 1 /tmp/disk' 2>&1)
	contains "the host's disk cannot be opened" "$out" "not permitted"
	expect "/dev/null can" berth run --rm web:v1 sh -c 'echo x >/dev/null'
	expect "pause" berth pause web
	if answers; then fail "a paused container does not answer"; else ok "a paused container does not answer"; fi
	expect "unpause" berth unpause web
	expect "and then it answers" within 10 answers
}

test_restarts() {
	local d pid
	for d in $daemons; do
		pid=$(main_pid "$d")
		expect "systemctl restart berth-$d" systemctl restart "berth-$d.service"
		[ "$(main_pid "$d")" != "$pid" ] && ok "$d is another process now" || fail "$d is another process now" "pid $pid still"
		expect "all serve" within 30 serves
		still_there "restart of $d"
	done
	for d in $daemons; do
		pid=$(main_pid "$d")
		kill -9 "$pid"
		replaced() { [ "$(main_pid "$d")" != "$pid" ] && [ "$(main_pid "$d")" != 0 ] && systemctl -q is-active "berth-$d.service"; }
		expect "kill -9 of $d: systemd starts it again" within 30 replaced
		expect "all serve" within 30 serves
		still_there "kill -9 of $d"
	done
	same "exec after all that" "$(berth exec web id -u)" 0
}

test_stop() {
	expect "stop everything" systemctl stop $(units socket) $(units service)
	same "nothing is active" "$(systemctl is-active $(units service) $(units socket) | sort -u | grep -x active)" ""
	still_there "stop of everything"
	expect "start everything" systemctl start $(units socket)
	expect "all serve" within 60 serves
	same "the container is in the list" "$(berth ps --format '{{.Names}}')" web
	same "exec after the engine's absence" "$(berth exec web id -u)" 0
	expect "stop the container" berth stop -t 1 web
	expect "remove it" berth rm web
	same "its port is closed" "$(answers && echo open)" ""
	same "its control group is gone" "$(find /sys/fs/cgroup -type d -name "*$web*" | head -n 3)" ""
	same "no unit failed" "$(systemctl --failed --no-legend --plain | grep berth)" ""
}

loops() { grep -ls /var/lib/berth/imaged/le/ /sys/block/loop*/loop/backing_file; }
no_loops() { [ -z "$(loops)" ]; }

# Layers as EROFS images, on a kernel that mounts them on loop devices only. test_stop has left no container.
test_erofs() {
	local out
	expect "remove all images" berth image prune -a -f
	expect "remove all volumes" berth volume prune -a -f
	mkdir -p /etc/berth && printf '[imaged]\ndriver = "erofs"\n' >/etc/berth/berth.toml
	need "imaged starts with driver erofs" systemctl restart berth-imaged.service || return 1
	need "all serve" within 60 serves || return 1
	contains "berth info names the driver" "$(berth info)" erofs
	berth check --format '{{.Feature}}|{{.Have}} {{.Detail}}' | grep '^erofs'
	tar -C /tmp/fs --owner=0 --group=0 -cf /tmp/fs.tar .
	need "import an image" berth import -c 'CMD ["/bin/httpd","-f","-p","80","-h","/www"]' /tmp/fs.tar web:e || return 1
	need "run from it" within 60 berth run --rm web:e true || return 1
	same "its files" "$(berth run --rm web:e sh -c 'cat /www/index.html; stat -c %a:%u:%g /etc/passwd')" "hello from a container
644:0:0"
	same "one loop device for one layer" "$(loops | wc -l)" 1
	need "run a web server" berth run -d --name web -p 8080:80 web:e || return 1
	web=$(berth inspect -f '{{.State.Pid}}' web)
	expect "its published port answers" within 20 answers
	expect "write to it" berth exec web sh -c 'cp /www/index.html /www/more; echo more >>/www/more; rm /etc/passwd; mkdir /new'
	contains "what it changed" "$(berth diff web)" "D /etc/passwd"
	expect "commit it" berth commit web web:e2
	same "two layers are stacked" "$(berth run --rm web:e2 sh -c 'tail -n 1 /www/more; ls -d /new /etc/passwd 2>&1 | head -n 1')" "more
ls: /etc/passwd: No such file or directory"
	same "no layer is on two loop devices" "$(loops | wc -l)" 2
	kill -9 "$(pgrep -o berth-monitor)"
	still_there "kill -9 of the monitor"
	same "run after that" "$(within 20 berth run --rm web:e2 true; echo $?)" 0
	expect "remove the container" berth rm -f web
	expect "remove the images" berth rmi web:e web:e2
	expect "no loop device stays" within 20 no_loops
	loops
	rm /etc/berth/berth.toml
	expect "back to the default driver" systemctl restart berth-imaged.service
	expect "all serve" within 30 serves
}

test_check() {
	local found feature
	found() { sed -n "s/^$1|//p" <<<"$found"; }
	found=$(berth check --format '{{.Feature}}|{{.Have}} {{.Detail}}')
	same "berth check: this host will do" $? 0
	same "it sees the layout of control groups" "$(found cgroups)" "yes $cgroup"
	for feature in memory cpu cpuset pids devices freezer io; do
		contains "cgroup $feature" "$(found "cgroup $feature")" "yes $cgroup"
	done
	same "AppArmor" "$(found AppArmor | cut -d' ' -f1)" yes
	same "nothing is left unknown to root" "$(grep '|unknown' <<<"$found")" ""
	[ $failures = 0 ] || echo "$found"
}

test_packages() {
	local package out
	export BERTH_INIT=/job/berth-init
	for package in $(cd packages && find . -name test -printf '%h\n' | sort); do
		if out=$(cd "packages/$package" && ./test -test.v -test.timeout 10m -test.skip '^Example' 2>&1); then # examples build what they show
			ok "$package: $(grep -c '^--- PASS' <<<"$out") tests passed, $(grep -c '^--- SKIP' <<<"$out") skipped"
		else
			fail "$package" "$(grep -c '^--- FAIL' <<<"$out") tests failed"
			grep -vE '^(=== |--- PASS|--- SKIP)' <<<"$out" | grep -vE '^ +--- (PASS|SKIP)' | head -n 80
		fi
		grep -E '_test\.go:[0-9]+: SKIP' <<<"$out" | sort -u
	done
}

echo "      kernel $(uname -r), $(systemctl --version | head -n 1), cgroup $cgroup, up $(cut -d. -f1 /proc/uptime) s"
for part in $parts; do
	case $part in
	engine)
		for t in install activation identities run registry limits restarts stop erofs check; do
			echo "--    $t"
			test_$t || { fail "$t: what follows depends on it"; break; }
		done
		[ $failures = 0 ] || journalctl --no-pager -o cat -n 80 $(printf -- '-u %s ' $(units service)) | sed 's/^/      journal: /'
		;;
	packages) echo "--    packages"; test_packages ;;
	esac
done
[ $failures = 0 ] || { echo "$failures failed"; exit 1; }
