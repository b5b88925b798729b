#!/bin/bash
# The main job from end to end, told step by step: four daemons, a real registry, ten containers.
# Everything runs in a network namespace of its own: nothing of this host's network is touched, nothing leaves it.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ "$(id -u)" != 0 ]; then
	echo "make demo: starting an engine needs root: sudo make demo" >&2
	exit 1
fi
if [ -z "${BERTH_DEMO_INSIDE:-}" ]; then
	exec unshare --net --mount env BERTH_DEMO_INSIDE=1 "$0" "$@"
fi

ip link set lo up
PATH=$PWD/bin:$PATH
work=$(mktemp -d /tmp/berth-demo.XXXXXX)
chmod 755 "$work"
export BERTH_ROOT=$work/root BERTH_RUN=$work/run
unset BERTH_HOST
registry=127.0.0.1:5000
image=$registry/demo/web
registry_pid=
began=$(date +%s%N)

if [ -t 1 ]; then bold=$'\e[1m' dim=$'\e[2m' off=$'\e[0m'; else bold= dim= off=; fi
step() { # TITLE WHAT-HAPPENS
	printf '\n%s%s%s\n' "$bold" "$1" "$off"
	printf '%s%s%s\n' "$dim" "$2" "$off"
}
run() { # prints the command and runs it
	printf '%s$ %s%s\n' "$bold" "$*" "$off"
	"$@"
}
finish() {
	code=$?
	trap - EXIT
	ids=$(berth ps -aq 2>/dev/null || true)
	[ -z "$ids" ] || berth rm -f $ids >/dev/null 2>&1 || true
	berth down >/dev/null 2>&1 || true
	[ -z "$registry_pid" ] || kill "$registry_pid" 2>/dev/null || true
	if [ $code != 0 ]; then
		echo "make demo: failed; the daemons' logs:" >&2
		tail -n 5 "$work"/root/log/*.log >&2 2>/dev/null || true
	fi
	rm -rf --one-file-system "$work"
	exit $code
}
trap finish EXIT

step "1. Start the engine" \
	"berth up starts imaged, netd, execd and apid as separate processes; each drops the privileges it does not need."
run berth up --detach
run berth version

step "2. Start a real registry" \
	"Debian's docker-registry on loopback; over plain HTTP, which imaged allows for loopback only."
cat >"$work/registry.yml" <<Y
version: 0.1
log: {level: error}
storage: {filesystem: {rootdirectory: $work/registry}}
http: {addr: $registry}
Y
docker-registry serve "$work/registry.yml" >"$work/registry.log" 2>&1 &
registry_pid=$!
for _ in $(seq 100); do
	curl -fs "http://$registry/v2/" >/dev/null && break
	sleep 0.05
done

step "3. Make an image" \
	"A root file system of busybox and one page becomes an image of one layer: apid opens a job, imaged unpacks, hashes and records."
mkdir -p "$work/fs"/{bin,etc,www,tmp}
cp /bin/busybox "$work/fs/bin/"
for applet in sh httpd wget cat echo ls ps hostname id sleep ip true; do ln -s busybox "$work/fs/bin/$applet"; done
echo "<h1>Hello from a container</h1>" >"$work/fs/www/index.html"
printf 'root:x:0:0:root:/:/bin/sh\nwww:x:33:33:www:/www:/bin/sh\n' >"$work/fs/etc/passwd"
printf 'root:x:0:\nwww:x:33:\n' >"$work/fs/etc/group"
tar -C "$work/fs" --owner=0 --group=0 -cf "$work/fs.tar" .
run berth import -c 'CMD ["/bin/httpd","-f","-v","-p","80","-h","/www"]' -c 'EXPOSE 80' "$work/fs.tar" $image:v1

step "4. Push it, delete it here, pull it back" \
	"imaged speaks to the registry; every byte is verified by its digest before it becomes visible."
run berth push $image:v1
run berth rmi $image:v1
run berth pull $image:v1
run berth images

step "5. Run a web server from it" \
	"apid runs a job: imaged prepares the root file system while netd makes the network; execd's monitor clones, limits and execs."
run berth run -d --name web --memory 64m --cpus 0.5 --pids-limit 50 -p 8080:80 $image:v1
run berth ps
echo "${bold}\$ curl http://127.0.0.1:8080/${off}"
curl -fsS --retry 20 --retry-delay 0 --retry-connrefused http://127.0.0.1:8080/

step "6. Look inside" \
	"execd joins the container's namespaces for exec; logs were kept by the monitor; stats come from the cgroup."
run berth exec web ps
run berth exec web ip addr show eth0
run berth logs web
run berth stats --no-stream web
run berth port web

step "7. What the engine did" \
	"Each piece of work was a job of apid, with the time every daemon took."
run berth jobs
run berth jobs show "$(berth jobs -q --filter kind=run | head -n 1)"

step "8. Nine more from the same image" \
	"One read-only image, ten containers, each with processes, files, host name and address of its own."
for i in $(seq 2 10); do
	berth run -d --name "web$i" -p $((8079 + i)):80 $image:v1 >/dev/null
done
run berth ps --format 'table {{.Names}}\t{{.Status}}\t{{.Ports}}'
for i in $(seq 1 10); do
	curl -fsS --retry 20 --retry-delay 0 --retry-connrefused -o /dev/null http://127.0.0.1:$((8079 + i))/ || exit 1
done
echo "all ten answered"

step "9. Stop and remove all" \
	"Stop signal, then the network and the writable layer go; the image stays until it is removed."
run berth stop -t 1 $(berth ps -q)
run berth rm $(berth ps -aq)
run berth rmi $image:v1
run berth down

printf '\n%sDone in %d ms.%s\n' "$bold" $((($(date +%s%N) - began) / 1000000)) "$off"
