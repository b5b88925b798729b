//go:build e2e

package e2e

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"berth/test/harness"
)

func lines(s string) []string { return strings.Split(strings.TrimSpace(s), "\n") }

func want(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s = %q, want %q", what, got, want)
	}
}

func TestExitCodes(t *testing.T) {
	e := harness.Shared(t)
	img := e.Busybox(t)
	for _, tc := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"true"}, 0, ""},
		{[]string{"false"}, 1, ""},
		{[]string{"sh", "-c", "exit 42"}, 42, ""},
		{[]string{"sh", "-c", "sh -c 'kill -9 $$'; exit $?"}, 137, ""},
		{[]string{"sh", "-c", "kill -TERM $$; sleep 1; exit 3"}, 3, ""}, // process 1 ignores what it does not handle
		{[]string{"/no/such/command"}, 127, "/no/such/command"},
		{[]string{"nosuch"}, 127, "nosuch"},
		{[]string{"/etc/notexec"}, 126, "/etc/notexec"},
		{[]string{"/etc"}, 126, "/etc"},
	} {
		r := e.Try(append([]string{"run", "--rm", img}, tc.args...)...)
		if r.Code != tc.code || !strings.Contains(r.Err, tc.says) {
			t.Errorf("run %v: exit %d, %q; want %d and %q", tc.args, r.Code, r.Err, tc.code, tc.says)
		}
	}
	for script, code := range map[string]int{"exit 42": 42, "kill -TERM $$; sleep 1; exit 3": 143} { // with --init it is no process 1
		if r := e.Try("run", "--rm", "--init", img, "sh", "-c", script); r.Code != code {
			t.Errorf("run --init, %q: exit %d, want %d; %s", script, r.Code, code, r.Err)
		}
	}
	e.Fails(t, 127, []string{"/no/such"}, "run", "--rm", "--init", img, "/no/such")
	e.Fails(t, 125, []string{"no/such"}, "run", "--rm", "--pull", "never", "no/such:image", "true")
	e.Fails(t, 125, []string{"user", "nobodyhere"}, "run", "--rm", "-u", "nobodyhere", img, "true")
	e.Fails(t, 125, []string{"memory", "6"}, "run", "--rm", "-m", "1m", img, "true")
	e.Fails(t, 125, []string{"Nope"}, "run", "--rm", "--cap-add", "Nope", img, "true")
	want(t, "containers left", e.Berth(t, "ps", "-aq"), "")
}

func TestStreams(t *testing.T) {
	e := harness.Shared(t)
	img := e.Busybox(t)
	r := e.Try("run", "--rm", img, "sh", "-c", "echo out; echo err >&2")
	want(t, "stdout", r.Out, "out\n")
	want(t, "stderr", r.Err, "err\n")
	r = e.TryStdin("line one\nline two\n", "run", "--rm", "-i", img, "cat")
	want(t, "cat", r.Out, "line one\nline two\n")
	// 32 MiB through pipe, monitor, two daemons and back, byte for byte.
	big := strings.Repeat("0123456789abcdef", 2<<20)
	r = e.TryStdin(big, "run", "--rm", "-i", "--log-driver", "none", img, "cat")
	if r.Out != big {
		t.Errorf("32 MiB through cat: %d bytes came back, %s", len(r.Out), r.Err)
	}
	if out := e.Berth(t, "run", "--rm", img, "sh", "-c", "tty; ls -l /proc/self/fd | wc -l"); !strings.HasPrefix(out, "not a tty") {
		t.Errorf("without -t: %q", out)
	}
}

func TestTerminal(t *testing.T) {
	e := harness.Shared(t)
	img := e.Busybox(t)
	// script(1) gives the client a terminal of its own.
	cmd := exec.Command("script", "-qefc", "stty rows 40 cols 123; "+strings.Join(e.Command("run", "--rm", "-it", img, "sh", "-c", "tty; stty size; id -u").Args, " "), "/dev/null")
	cmd.Env = e.Command().Env
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if s := string(out); !strings.Contains(s, "/dev/pts/0") && !strings.Contains(s, "/dev/console") || !strings.Contains(s, "40 123") {
		t.Errorf("terminal: %q", s)
	}
	e.Fails(t, 125, []string{"not a terminal"}, "run", "--rm", "-it", img, "true")
}

func TestEnvironment(t *testing.T) {
	e := harness.Shared(t)
	img := e.Busybox(t)
	host := t.TempDir()
	if err := os.WriteFile(filepath.Join(host, "file"), []byte("from the host"), 0o644); err != nil {
		t.Fatal(err)
	}
	in := func(flags []string, script string) string {
		t.Helper()
		return e.Berth(t, append(append([]string{"run", "--rm"}, flags...), img, "sh", "-c", script)...)
	}
	want(t, "env", in([]string{"-e", "A=b c"}, "echo $A"), "b c")
	want(t, "workdir", in([]string{"-w", "/made/here"}, "pwd"), "/made/here")
	want(t, "hostname", in([]string{"-h", "box"}, "hostname; cat /etc/hostname; grep -c box /etc/hosts"), "box\nbox\n1")
	want(t, "user by name", in([]string{"-u", "www"}, "id -u; id -g; id -G; echo $HOME"), "33\n33\n33 44\n/www")
	want(t, "user by number", in([]string{"-u", "1234:5"}, "id -u; id -g"), "1234\n5")
	want(t, "bind", in([]string{"-v", host + ":/h:ro"}, "cat /h/file; touch /h/x 2>/dev/null || echo ro"), "from the hostro")
	want(t, "volume", in([]string{"-v", "vol1:/v"}, "echo kept > /v/f; cat /v/f"), "kept")
	want(t, "volume again", in([]string{"-v", "vol1:/v"}, "cat /v/f"), "kept")
	e.Berth(t, "volume", "rm", "vol1")
	want(t, "tmpfs", in([]string{"--tmpfs", "/t:size=1m"}, "df -k /t | tail -1 | awk '{print $2}'"), "1024")
	want(t, "read-only", in([]string{"--read-only"}, "touch /x 2>/dev/null || echo ro"), "ro")
	want(t, "entrypoint", e.Berth(t, "run", "--rm", "--entrypoint", "/bin/echo", img, "hi"), "hi")
	want(t, "label", func() string {
		e.Berth(t, "create", "--name", "lab", "-l", "k=v", img)
		defer e.Berth(t, "rm", "lab")
		return e.Berth(t, "inspect", "-f", "{{.Config.Labels.k}}", "lab")
	}(), "v")
	// Nothing of the daemons' environment is inside.
	for _, l := range lines(in(nil, "env")) {
		if k, _, _ := strings.Cut(l, "="); !strings.Contains(" PATH HOME HOSTNAME PWD SHLVL ", " "+k+" ") {
			t.Errorf("unexpected variable inside: %s", l)
		}
	}
}

func TestLifecycle(t *testing.T) {
	e := harness.Shared(t)
	img := e.Busybox(t)
	id := e.Berth(t, "run", "-d", "--name", "life", img, "sh", "-c", "trap 'exit 5' TERM; echo begun; while :; do sleep 0.05; done")
	if len(id) != 64 {
		t.Errorf("run -d printed %q, want a full id", id)
	}
	e.Fails(t, 125, []string{"life"}, "run", "-d", "--name", "life", img, "true")
	harness.Eventually(t, 5*time.Second, func() bool { return strings.Contains(e.Try("logs", "life").Out, "begun") }, "log line")
	want(t, "state", e.Berth(t, "inspect", "-f", "{{.State.Status}} {{.State.Running}}", "life"), "running true")
	want(t, "exec", e.Berth(t, "exec", "-e", "X=y", "-w", "/tmp", "-u", "www", "life", "sh", "-c", "echo $X $PWD $(id -u)"), "y /tmp 33")
	if r := e.Try("exec", "life", "sh", "-c", "exit 9"); r.Code != 9 {
		t.Errorf("exec exit 9 gave %d: %s", r.Code, r.Err)
	}
	if r := e.Try("exec", "life", "/none"); r.Code != 127 {
		t.Errorf("exec of a missing command gave %d: %s", r.Code, r.Err)
	}
	e.Berth(t, "rename", "life", "life2")
	e.Fails(t, 1, []string{"life"}, "inspect", "life")
	e.Fails(t, 1, []string{"running"}, "rm", "life2")
	e.Berth(t, "stop", "life2")
	want(t, "wait", e.Berth(t, "wait", "life2"), "5")
	want(t, "ps", e.Berth(t, "ps", "-q"), "")
	if out := e.Berth(t, "ps", "-a", "--format", "{{.Names}} {{.State}} {{.Status}}"); !strings.HasPrefix(out, "life2 exited Exited (5)") {
		t.Errorf("ps -a: %q", out)
	}
	e.Berth(t, "start", "life2")
	e.Berth(t, "restart", "-t", "1", "life2")
	want(t, "restarted", e.Berth(t, "inspect", "-f", "{{.State.Status}}", id[:12]), "running")
	e.Berth(t, "kill", "-s", "KILL", "life2")
	want(t, "killed", e.Berth(t, "wait", "life2"), "137")
	e.Berth(t, "rm", "life2")
	e.Fails(t, 1, []string{"life2"}, "start", "life2")
}

func TestStopTimeout(t *testing.T) {
	e := harness.Shared(t)
	img := e.Busybox(t)
	e.Berth(t, "run", "-d", "--name", "deaf", img, "sh", "-c", "trap '' TERM; while :; do sleep 0.05; done")
	began := time.Now()
	e.Berth(t, "stop", "-t", "1", "deaf")
	if d := time.Since(began); d < 900*time.Millisecond || d > 2500*time.Millisecond {
		t.Errorf("stop -t 1 of a process that ignores SIGTERM took %s", d)
	}
	want(t, "exit code", e.Berth(t, "wait", "deaf"), "137")
	e.Berth(t, "rm", "deaf")
}

func TestAutoRemoveFreesTheName(t *testing.T) {
	e := harness.Shared(t)
	img := e.Busybox(t)
	for i := range 5 {
		if r := e.Try("run", "--rm", "--name", "again", "-p", "18099:80", img, "true"); r.Code != 0 {
			t.Fatalf("round %d: %s", i, r.Err)
		}
	}
	want(t, "left", e.Berth(t, "ps", "-aq"), "")
}

func TestLogs(t *testing.T) {
	e := harness.Shared(t)
	img := e.Busybox(t)
	e.Berth(t, "run", "-d", "--name", "talk", img, "sh", "-c", "seq 1 100; echo bad >&2; sleep 1; printf tail; sleep 1; echo; echo end")
	follow := e.Command("logs", "-f", "talk")
	out, err := follow.Output() // ends with the container
	if err != nil {
		t.Fatal(err)
	}
	if l := lines(string(out)); len(l) != 102 || l[100] != "tail" || l[101] != "end" {
		t.Errorf("logs -f gave %d lines, the last %q", len(l), l[len(l)-1])
	}
	want(t, "tail", e.Berth(t, "logs", "--tail", "2", "talk"), "tail\nend")
	r := e.Try("logs", "talk")
	want(t, "stderr", r.Err, "bad\n")
	if l := lines(e.Berth(t, "logs", "-t", "--tail", "1", "talk")); !strings.HasSuffix(l[0], "Z end") {
		t.Errorf("logs -t: %q", l[0])
	}
	want(t, "since", e.Try("logs", "--since", "0s", "talk").Out, "")
	e.Berth(t, "rm", "-f", "talk")
}

func fetch(url string) (string, error) {
	c := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	r, err := c.Get(url)
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	return string(b), err
}

func serve(t *testing.T, e *harness.Engine, name string, port int, flags ...string) {
	t.Helper()
	args := append([]string{"run", "-d", "--name", name, "-p", fmt.Sprintf("%d:80", port)}, flags...)
	e.Berth(t, append(args, e.Busybox(t), "httpd", "-f", "-p", "80", "-h", "/www")...)
	harness.Eventually(t, 5*time.Second, func() bool {
		s, err := fetch(fmt.Sprintf("http://127.0.0.1:%d/", port))
		return err == nil && s == "hello from berth\n"
	}, "%s answers on port %d", name, port)
}

// TestTenContainers is the picture: one image, ten containers at once, isolated from one another.
func TestTenContainers(t *testing.T) {
	e := harness.Shared(t)
	e.Busybox(t)
	var wg sync.WaitGroup
	for i := range 10 {
		wg.Go(func() { serve(t, e, fmt.Sprintf("ten%d", i), 18100+i, "--memory", "32m") })
	}
	wg.Wait()
	addresses, hostnames := map[string]bool{}, map[string]bool{}
	for i := range 10 {
		name := fmt.Sprintf("ten%d", i)
		e.Berth(t, "exec", name, "sh", "-c", "echo "+name+" > /mine; echo "+name+" > /www/index.html")
		addresses[e.Berth(t, "inspect", "-f", "{{.NetworkSettings.IPAddress}}", name)] = true
		hostnames[e.Berth(t, "exec", name, "hostname")] = true
	}
	if len(addresses) != 10 || len(hostnames) != 10 {
		t.Errorf("%d addresses and %d host names for ten containers", len(addresses), len(hostnames))
	}
	for i := range 10 {
		name := fmt.Sprintf("ten%d", i)
		want(t, "file of its own", e.Berth(t, "exec", name, "cat", "/mine"), name)
		if s, err := fetch(fmt.Sprintf("http://127.0.0.1:%d/", 18100+i)); err != nil || s != name+"\n" {
			t.Errorf("port of %s: %q, %v", name, s, err)
		}
		if n := len(lines(e.Berth(t, "exec", name, "ps", "-o", "pid"))); n > 4 {
			t.Errorf("%s sees %d processes", name, n)
		}
	}
	args := []string{"rm", "-f"}
	for i := range 10 {
		args = append(args, fmt.Sprintf("ten%d", i))
	}
	e.Berth(t, args...)
	if _, err := fetch("http://127.0.0.1:18100/"); err == nil {
		t.Error("a published port answers after rm")
	}
}

func TestLimits(t *testing.T) {
	e := harness.Shared(t)
	img := e.Busybox(t)
	// dd needs its block size in memory, four times what is allowed.
	r := e.Try("run", "--name", "hog", "-m", "16m", "--memory-swap", "16m", img, "dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1")
	if r.Code != 137 {
		t.Errorf("beyond --memory: exit %d, %s", r.Code, r.Err)
	}
	want(t, "OOMKilled", e.Berth(t, "inspect", "-f", "{{.State.OOMKilled}}", "hog"), "true")
	e.Berth(t, "rm", "hog")
	if r := e.Try("run", "--rm", "--pids-limit", "5", img, "sh", "-c", "for i in 1 2 3 4 5 6 7 8 9; do sleep 2 & done; wait"); r.Code == 0 || !strings.Contains(r.Err, "fork") {
		t.Errorf("beyond --pids-limit: exit %d, %q", r.Code, r.Err)
	}
	want(t, "cpuset", e.Berth(t, "run", "--rm", "--cpuset-cpus", "0", img, "grep", "Cpus_allowed_list", "/proc/self/status"), "Cpus_allowed_list:\t0")
	want(t, "ulimit", e.Berth(t, "run", "--rm", "--ulimit", "nofile=111:222", img, "sh", "-c", "ulimit -n; ulimit -Hn"), "111\n222")
	e.Berth(t, "run", "-d", "--name", "spin", "--cpus", "0.2", img, "sh", "-c", "while :; do :; done")
	time.Sleep(1500 * time.Millisecond)
	var cpu float64
	fmt.Sscanf(e.Berth(t, "stats", "--no-stream", "--format", "{{.CPUPerc}}", "spin"), "%f", &cpu)
	if cpu < 5 || cpu > 40 {
		t.Errorf("a spinning container with --cpus 0.2 uses %.1f %%", cpu)
	}
	e.Berth(t, "rm", "-f", "spin")
}

func TestHostNamespaces(t *testing.T) {
	e := harness.Shared(t)
	img := e.Busybox(t)
	for kind, flag := range map[string]string{"ipc": "--ipc", "uts": "--uts", "pid": "--pid", "net": "--network"} {
		host, err := os.Readlink("/proc/self/ns/" + kind)
		if err != nil {
			t.Fatal(err)
		}
		if got := e.Berth(t, "run", "--rm", flag, "host", img, "readlink", "/proc/self/ns/"+kind); got != host {
			t.Errorf("%s host: %s, want %s", flag, got, host)
		}
		if got := e.Berth(t, "run", "--rm", img, "readlink", "/proc/self/ns/"+kind); got == host {
			t.Errorf("without %s the container is in the host's %s namespace", flag, kind)
		}
	}
}

func TestNetworkModes(t *testing.T) {
	e := harness.Shared(t)
	img := e.Busybox(t)
	want(t, "none", e.Berth(t, "run", "--rm", "--network", "none", img, "sh", "-c", "ip -o link | wc -l"), "1")
	for _, more := range []string{"--userns=host", "--userns=private"} {
		got := e.Berth(t, "run", "--rm", "--network", "none", more, img, "sh", "-c", "ip -o -4 addr show up; httpd -p 127.0.0.1:80 -h /etc && wget -qO- http://127.0.0.1/passwd")
		if !strings.Contains(got, "127.0.0.1/8") || !strings.Contains(got, "root:") {
			t.Errorf("none, %s: loopback is down:\n%s", more, got)
		}
	}
	want(t, "sysctl of the user's", e.Berth(t, "run", "--rm", "--network", "none", "--sysctl", "net.ipv4.ip_unprivileged_port_start=7", img,
		"cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start"), "7")
	e.Fails(t, 125, []string{"nosuchnet"}, "run", "--rm", "--network", "nosuchnet", img, "true")
	serve(t, e, "pub", 18080)
	e.Fails(t, 125, []string{"18080"}, "run", "-d", "-p", "18080:80", img, "httpd", "-f")
	want(t, "port", e.Berth(t, "port", "pub", "80"), "0.0.0.0:18080")
	ip := e.Berth(t, "inspect", "-f", "{{.NetworkSettings.IPAddress}}", "pub")
	want(t, "neighbour", e.Berth(t, "run", "--rm", img, "wget", "-qO-", "http://"+ip+"/"), "hello from berth")
	e.Berth(t, "rm", "-f", "pub")
	want(t, "containers left", e.Berth(t, "ps", "-aq"), "")
}
