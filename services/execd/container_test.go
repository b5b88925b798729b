package execd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"berth/internal/fault"
	apiv1 "berth/proto/berth/api/v1"
	execv1 "berth/proto/berth/exec/v1"
	networkv1 "berth/proto/berth/network/v1"
)

// What is wrong with a request is said with the field, and nothing is left.
func TestRefusals(t *testing.T) {
	e := start(t)
	for name, c := range map[string]struct {
		edit   func(*apiv1.ContainerSpec)
		reason string
	}{
		"memory":    {func(s *apiv1.ContainerSpec) { s.Resources = &apiv1.Resources{MemoryBytes: 6<<20 - 1} }, "MEMORY"},
		"cpus":      {func(s *apiv1.ContainerSpec) { s.Resources = &apiv1.Resources{NanoCpus: 1} }, "CPUS"},
		"many cpus": {func(s *apiv1.ContainerSpec) { s.Resources = &apiv1.Resources{NanoCpus: 1 << 60} }, "CPUS"},
		"swap": {func(s *apiv1.ContainerSpec) {
			s.Resources = &apiv1.Resources{MemoryBytes: 8 << 20, MemorySwapBytes: 7 << 20}
		}, "MEMORY_SWAP"},
		"name":        {func(s *apiv1.ContainerSpec) { s.Name = "../x" }, "CONTAINER_NAME"},
		"capability":  {func(s *apiv1.ContainerSpec) { s.Security = &apiv1.Security{CapAdd: []string{"NONSENSE"}} }, "CAPABILITY"},
		"seccomp":     {func(s *apiv1.ContainerSpec) { s.Security = &apiv1.Security{SeccompProfile: "{"} }, "SECCOMP"},
		"ulimit":      {func(s *apiv1.ContainerSpec) { s.Ulimits = []*apiv1.Ulimit{{Name: "x"}} }, "ULIMIT"},
		"ulimit soft": {func(s *apiv1.ContainerSpec) { s.Ulimits = []*apiv1.Ulimit{{Name: "nofile", Soft: 9, Hard: 8}} }, "ULIMIT"},
		"mount proc":  {func(s *apiv1.ContainerSpec) { s.Mounts = []*apiv1.MountSpec{{Type: 1, Source: "/", Target: "/proc/x"}} }, "MOUNT_TARGET"},
		"mount dots": {func(s *apiv1.ContainerSpec) {
			s.Mounts = []*apiv1.MountSpec{{Type: 1, Source: "/", Target: "/x/../sys"}}
		}, "MOUNT_TARGET"},
		"mount root": {func(s *apiv1.ContainerSpec) { s.Mounts = []*apiv1.MountSpec{{Type: 3, Target: "/"}} }, "MOUNT_TARGET"},
		"mount twice": {func(s *apiv1.ContainerSpec) {
			s.Mounts = []*apiv1.MountSpec{{Type: 3, Target: "/a"}, {Type: 3, Target: "/a/"}}
		}, "MOUNT_TARGET"},
		"relative":    {func(s *apiv1.ContainerSpec) { s.Mounts = []*apiv1.MountSpec{{Type: 1, Source: "x", Target: "/a"}} }, "MOUNT_SOURCE"},
		"workdir":     {func(s *apiv1.ContainerSpec) { s.WorkingDir = "x" }, "WORKING_DIR"},
		"hostname":    {func(s *apiv1.ContainerSpec) { s.Hostname = strings.Repeat("x", 65) }, "HOSTNAME"},
		"stop signal": {func(s *apiv1.ContainerSpec) { s.StopSignal = "SIGNOPE" }, "SIGNAL"},
		"log driver":  {func(s *apiv1.ContainerSpec) { s.Log = &apiv1.LogSpec{Driver: "syslog"} }, "LOG_DRIVER"},
		"restart":     {func(s *apiv1.ContainerSpec) { s.Restart = &apiv1.RestartPolicy{Name: "sometimes"} }, "RESTART"},
		"restart rm":  {func(s *apiv1.ContainerSpec) { s.AutoRemove, s.Restart = true, &apiv1.RestartPolicy{Name: "always"} }, "RESTART"},
		"pid mode":    {func(s *apiv1.ContainerSpec) { s.PidMode = "others" }, "NAMESPACE_MODE"},
		"env":         {func(s *apiv1.ContainerSpec) { s.Env = []string{"=x"} }, "ENV"},
	} {
		s := script("true")
		c.edit(s)
		_, err := e.launch.Create(t.Context(), &execv1.CreateRequest{Id: newID(), Spec: s, Rootfs: e.rootfs()})
		var f *fault.Error
		if !errors.Is(err, fault.InvalidArgument) || !errors.As(err, &f) || f.Reason() != c.reason {
			t.Errorf("%s: got %v, want %s", name, err, c.reason)
		}
	}
	// These are found at the start; the container stays, not running.
	for name, c := range map[string]struct {
		edit func(*apiv1.ContainerSpec)
		kind fault.Kind
	}{
		"source missing": {func(s *apiv1.ContainerSpec) {
			s.Mounts = []*apiv1.MountSpec{{Type: 1, Source: "/nonexistent/x", Target: "/a"}}
		}, fault.InvalidArgument},
		"host sysctl":  {func(s *apiv1.ContainerSpec) { s.Sysctls = map[string]string{"kernel.core_pattern": "x"} }, fault.InvalidArgument},
		"dots sysctl":  {func(s *apiv1.ContainerSpec) { s.Sysctls = map[string]string{"net.../kernel/core_pattern": "x"} }, fault.InvalidArgument},
		"unknown user": {func(s *apiv1.ContainerSpec) { s.User = "nobodyknows" }, fault.InvalidArgument},
		"huge uid":     {func(s *apiv1.ContainerSpec) { s.User = "4294967296" }, fault.InvalidArgument},
	} {
		s := script("true")
		c.edit(s)
		id := e.create(s)
		if err := e.startID(id); !errors.Is(err, c.kind) {
			t.Errorf("%s: got %v, want %v", name, err, c.kind)
		}
	}
}

func TestNames(t *testing.T) {
	e := start(t)
	s := script("sleep 1000")
	s.Name = "web"
	id := e.up1(s)
	again := script("true")
	again.Name = "web"
	_, err := e.launch.Create(t.Context(), &execv1.CreateRequest{Id: newID(), Spec: again, Rootfs: e.rootfs()})
	var f *fault.Error
	if !errors.Is(err, fault.AlreadyExists) || !errors.As(err, &f) || f.Reason() != "NAME_IN_USE" {
		t.Errorf("second of a name: %v", err)
	}
	if _, err := e.api.Rename(t.Context(), &apiv1.RenameRequest{Container: "web", Name: "www"}); err != nil {
		t.Fatal(err)
	}
	e.kill()
	e.up()
	if i := e.inspect("www"); i.Id != id || i.Spec.Name != "web" && i.Name != "www" {
		t.Errorf("after rename and restart: %v", i)
	}
	again.Name = "web"
	other := e.create(again)
	if _, err := e.api.Rename(t.Context(), &apiv1.RenameRequest{Container: other, Name: "www"}); !errors.Is(err, fault.AlreadyExists) {
		t.Errorf("rename to a taken name: %v", err)
	}
}

// The default container, seen from inside.
func TestDefaultProfile(t *testing.T) {
	e := start(t)
	s := script(`hostname; cat /etc/hostname; grep -c localhost /etc/hosts; pwd; echo $HOME $PATH
grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status; ls -d /proc/[0-9]* | head -1
touch /sys/x 2>&1; cat /proc/kcore 2>&1 | wc -c; ls /proc/self/fd | wc -l; ulimit -n; ulimit -c
mknod /tmp/sda b 8 0 2>&1; mount -t tmpfs x /tmp 2>&1 | head -1; echo x > /proc/sys/kernel/hostname 2>/dev/null || echo sysctl refused`)
	r, err := e.run(s, nil)
	if err != nil {
		t.Fatal(err)
	}
	id := r.id[:12]
	for _, want := range []string{
		id + "\n" + id + "\n", "/root /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n",
		"CapInh:\t0000000000000000\n", "CapPrm:\t00000000800405fb\n", "CapEff:\t00000000800405fb\n", "CapBnd:\t00000000800405fb\n",
		"CapAmb:\t0000000000000000\n", "NoNewPrivs:\t0\n", "Seccomp:\t2\n", "/proc/1\n", "Read-only file system", "sysctl refused", "\n1024\n0\n",
	} {
		if !strings.Contains(r.out, want) {
			t.Errorf("lacks %q", want)
		}
	}
	if t.Failed() {
		t.Logf("%s%s", r.out, r.errOut)
	}
}

func TestImageConfigIsMerged(t *testing.T) {
	e := start(t)
	rootfs := e.rootfs()
	rootfs.Config = &apiv1.ImageConfig{
		Entrypoint: []string{"sh", "-c", `echo "$0 $*; $A $B $C; $(pwd); $(id -u)"`, "zero"}, Cmd: []string{"image"},
		Env: []string{"A=image", "B=image"}, WorkingDir: "/made/here", User: "alice",
	}
	for _, c := range []struct {
		spec *apiv1.ContainerSpec
		want string
	}{
		{&apiv1.ContainerSpec{Env: []string{"B=user", "C=user"}}, "zero image; image user user; /made/here; 1000\n"},
		{&apiv1.ContainerSpec{Args: []string{"x", "y"}, WorkingDir: "/tmp", User: "0"}, "zero x y; image image ; /tmp; 0\n"},
		{&apiv1.ContainerSpec{Entrypoint: []string{"echo"}}, "\n"},
		{&apiv1.ContainerSpec{Entrypoint: []string{""}, Args: []string{"echo", "cleared"}}, "cleared\n"},
		{&apiv1.ContainerSpec{Entrypoint: []string{"env"}, Env: []string{"A", "PATH=/bin"}}, "PATH=/bin\nHOSTNAME=ID\nB=image\nHOME=/home/alice\n"},
	} {
		stream, err := e.launch.Run(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		id := newID()
		stream.Send(&execv1.RunRequest{Message: &execv1.RunRequest_Open_{Open: &execv1.RunRequest_Open{
			Create: &execv1.CreateRequest{Id: id, Spec: c.spec, Rootfs: rootfs}, Network: private(), Attach: both}}})
		var r result
		for {
			m, err := stream.Recv()
			if err != nil {
				if err != io.EOF {
					t.Error(err)
				}
				break
			}
			if o := m.GetOutput(); o != nil {
				r.add(o)
			}
		}
		if want := strings.ReplaceAll(c.want, "ID", id[:12]); r.out != want {
			t.Errorf("%v: got %q%s, want %q", c.spec, r.out, r.errOut, want)
		}
	}
}

func TestMounts(t *testing.T) {
	e := start(t)
	host := t.TempDir()
	os.WriteFile(host+"/file", []byte("from the host\n"), 0o644)
	s := script("cat /data/file; touch /data/x 2>&1; touch /rw/new && echo made; grep ' /scratch ' /proc/mounts; touch /x 2>&1; cat /etc/resolv.conf; grep web /etc/hosts")
	s.ReadOnly = true
	s.Mounts = []*apiv1.MountSpec{
		{Type: apiv1.MountType_MOUNT_TYPE_BIND, Source: host, Target: "/data", ReadOnly: true},
		{Type: apiv1.MountType_MOUNT_TYPE_BIND, Source: host + "/made", Target: "/rw", CreateSource: true},
		{Type: apiv1.MountType_MOUNT_TYPE_TMPFS, Target: "/scratch", TmpfsSizeBytes: 1 << 20},
	}
	os.MkdirAll(e.root+"/data", 0o755)
	os.MkdirAll(e.root+"/rw", 0o755)
	id := e.create(s)
	net := private()
	net.Dns = &networkv1.DnsConfig{Nameservers: []string{"10.0.0.1"}, Search: []string{"example.org"}, Hosts: []string{"10.0.0.7 web"}}
	if _, err := e.launch.Start(t.Context(), &execv1.StartRequest{Id: id, Rootfs: e.rootfs(), Network: net}); err != nil {
		t.Fatal(err)
	}
	e.wait(id)
	out := e.logs(&apiv1.LogsRequest{Container: id})
	for _, want := range []string{"from the host\n", "/data/x: Read-only file system", "made\n", "size=1024k", "nosuid,nodev", "/x: Read-only file system",
		"nameserver 10.0.0.1\nsearch example.org\n", "10.0.0.7 web\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("lacks %q", want)
		}
	}
	if t.Failed() {
		t.Log(out)
	}
}

func TestOOMIsTold(t *testing.T) {
	e := start(t)
	s := script("dd if=/dev/zero of=/dev/null bs=64M count=1")
	s.Resources = &apiv1.Resources{MemoryBytes: 16 << 20, MemorySwapBytes: 16 << 20}
	r, err := e.run(s, nil)
	if err != nil {
		t.Fatal(err)
	}
	if !r.exit.GetOomKilled() {
		t.Errorf("ended with %v, %s", r.exit, r.errOut)
	}
}

func TestStatsAndTop(t *testing.T) {
	e := start(t)
	id := e.up1(script("sleep 1000 & while :; do :; done"))
	stream, err := e.api.Stats(t.Context(), &apiv1.StatsRequest{Containers: []string{id}})
	if err != nil {
		t.Fatal(err)
	}
	m, err := stream.Recv()
	if err != nil || len(m.Stats) != 1 {
		t.Fatalf("%v, %v", m, err)
	}
	if s := m.Stats[0]; s.CpuPercent < 5 || s.Pids != 2 || s.MemoryBytes == 0 || s.MemoryLimitBytes == 0 || s.PidsLimit == 0 {
		t.Errorf("stats: %v", s)
	}
	top, err := e.api.Top(t.Context(), &apiv1.TopRequest{Container: id})
	if err != nil || len(top.Processes) != 2 || len(top.Processes[0].Fields) != len(top.Titles) {
		t.Fatalf("top: %v, %v", top, err)
	}
	if cmd := top.Processes[1].Fields[7]; cmd != "sleep 1000" {
		t.Errorf("top says %q", cmd)
	}
}

func TestUpdate(t *testing.T) {
	e := start(t)
	id := e.up1(script("sleep 1000"))
	if _, err := e.api.Update(t.Context(), &apiv1.UpdateRequest{Container: id, Resources: &apiv1.Resources{PidsLimit: 20}}); err != nil {
		t.Fatal(err)
	}
	r, err := e.exec(id, &apiv1.ExecRequest_Open{Args: []string{"sh", "-c", "for i in $(seq 1 30); do sleep 3 & done; wait"}}, nil)
	if err != nil || !strings.Contains(r.errOut, "can't fork") {
		t.Errorf("at the limit: %q, %v", r.errOut, err)
	}
	if got := e.inspect(id).Spec.Resources.PidsLimit; got != 20 {
		t.Errorf("inspect says %d", got)
	}
}

func TestListFilters(t *testing.T) {
	e := start(t)
	a, b := script("sleep 1000"), script("exit 3")
	a.Name, a.Labels = "alpha", map[string]string{"tier": "web"}
	b.Name = "beta"
	e.up1(a)
	e.wait(e.up1(b))
	for _, c := range []struct {
		req  *apiv1.ListRequest
		want string
	}{
		{&apiv1.ListRequest{}, "alpha"},
		{&apiv1.ListRequest{All: true}, "beta alpha"},
		{&apiv1.ListRequest{Last: 1}, "beta"},
		{&apiv1.ListRequest{All: true, Filters: []string{"label=tier=web"}}, "alpha"},
		{&apiv1.ListRequest{Filters: []string{"status=exited"}}, "beta"},
		{&apiv1.ListRequest{Filters: []string{"exited=3"}}, "beta"},
		{&apiv1.ListRequest{All: true, Filters: []string{"name=^al"}}, "alpha"},
		{&apiv1.ListRequest{All: true, Filters: []string{"before=beta"}}, "alpha"},
		{&apiv1.ListRequest{All: true, Filters: []string{"ancestor=busybox", "name=be"}}, "beta"},
		{&apiv1.ListRequest{All: true, PageSize: 1}, "beta alpha"},
	} {
		var names []string
		for {
			r, err := e.api.List(t.Context(), c.req)
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range r.Containers {
				names = append(names, s.Name)
			}
			if c.req.PageToken = r.NextPageToken; c.req.PageToken == "" {
				break
			}
		}
		if got := strings.Join(names, " "); got != c.want {
			t.Errorf("%v: got %q, want %q", c.req, got, c.want)
		}
	}
	if _, err := e.api.List(t.Context(), &apiv1.ListRequest{Filters: []string{"colour=red"}}); !errors.Is(err, fault.InvalidArgument) {
		t.Errorf("unknown filter: %v", err)
	}
}

func TestLogsFollowAndTail(t *testing.T) {
	e := start(t)
	s := script("seq 1 2000; sleep 0.3; seq 2001 4000")
	s.Log = &apiv1.LogSpec{MaxSizeBytes: 64 << 10, MaxFiles: 100}
	id := e.up1(s)
	if got := e.logs(&apiv1.LogsRequest{Container: id, Follow: true}); got != numbers(4000) {
		t.Errorf("followed %d lines", strings.Count(got, "\n"))
	}
	tail := int64(3)
	if got := e.logs(&apiv1.LogsRequest{Container: id, Tail: &tail}); got != "3998\n3999\n4000\n" {
		t.Errorf("tail: %q", got)
	}
}

// F-27: much output without a newline takes no memory and comes back exactly.
func TestF27NoNewline(t *testing.T) {
	e := start(t)
	const size = 64 << 20
	s := script(fmt.Sprintf("head -c %d /dev/zero | tr '\\0' x", size))
	s.Log = &apiv1.LogSpec{MaxSizeBytes: 1 << 30}
	id := e.up1(s)
	e.wait(id)
	stream, err := e.api.Logs(t.Context(), &apiv1.LogsRequest{Container: id})
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for {
		m, err := stream.Recv()
		if err != nil {
			break
		}
		if !m.Partial || bytes.Trim(m.Line, "x") != nil && len(bytes.Trim(m.Line, "x")) > 0 {
			t.Fatalf("a chunk of %d bytes, partial %v", len(m.Line), m.Partial)
		}
		n += len(m.Line)
	}
	if n != size {
		t.Errorf("log has %d bytes, want %d", n, size)
	}
	if kb := peakKB(t, e.monitorPid()); kb > 64<<10 {
		t.Errorf("the monitor took %d KiB", kb)
	}
}

func peakKB(t *testing.T, pid int) (kb int) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "VmHWM:")
	fmt.Sscanf(rest, "%d", &kb)
	return kb
}

func TestIsolation(t *testing.T) {
	e := start(t)
	a := e.up1(script("echo secret > /dev/shm/x; sleep 1000"))
	r, err := e.run(script("ls /dev/shm; ps | wc -l; ls /proc | grep -c '^[0-9]'"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(r.out, "x\n") {
		t.Errorf("one container sees another's shared memory: %q", r.out)
	}
	s := script("cat /dev/shm/x; ps | grep -c 'sleep 1000'; hostname")
	s.PidMode = "container:" + a
	r, err = e.run(s, nil)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(r.out, "secret") || strings.HasPrefix(r.out, "0") {
		t.Errorf("shared pid namespace: %q", r.out)
	}
}

func TestEvents(t *testing.T) {
	e := start(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	stream, err := apiv1.NewEventServiceClient(e.conn).Watch(ctx, &apiv1.EventServiceWatchRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Header(); err != nil {
		t.Fatal(err)
	}
	s := script("exit 3")
	s.Name, s.AutoRemove = "x", true
	if _, err := e.run(s, nil); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"create", "start", "die", "destroy"} {
		m, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if m.Event.Action != want || m.Event.Attributes["name"] != "x" {
			t.Errorf("got %v, want %s", m.Event, want)
		}
		if want == "die" && m.Event.Attributes["exitCode"] != "3" {
			t.Errorf("die says %v", m.Event.Attributes)
		}
	}
}

// A memory bar: what the monitor takes per idle container.
func TestMemoryPerContainer(t *testing.T) {
	e := start(t)
	const n = 20
	e.up1(script("sleep 1000"))
	time.Sleep(5 * time.Second) // the monitor gives memory back
	before := pss(t, e.monitorPid())
	for range n {
		e.up1(script("sleep 1000"))
	}
	time.Sleep(5 * time.Second)
	after := pss(t, e.monitorPid())
	per := (after - before) / n
	t.Logf("monitor: %d KiB with 1 container, %d KiB with %d: %d KiB each", before, after, n+1, per)
	if per > 300 {
		t.Errorf("%d KiB per container, want at most 300", per)
	}
}

func pss(t *testing.T, pid int) (kb int) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		t.Skipf("SKIP: %v", err)
	}
	_, rest, _ := strings.Cut(string(b), "\nPss:")
	fmt.Sscanf(rest, "%d", &kb)
	return kb
}
