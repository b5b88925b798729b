package execd

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/protobuf/proto"

	apiv1 "berth/proto/berth/api/v1"
	execv1 "berth/proto/berth/exec/v1"
	imagev1 "berth/proto/berth/image/v1"
	networkv1 "berth/proto/berth/network/v1"
)

// overlaid is a new root file system over the usual one.
func (e *engine) overlaid() *imagev1.Rootfs {
	e.tb.Helper()
	dir, err := os.MkdirTemp(e.dir, "root")
	if err != nil {
		e.tb.Fatal(err)
	}
	for _, name := range []string{"upper", "work"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			e.tb.Fatal(err)
		}
	}
	r := e.rootfs()
	r.Recipe = &imagev1.MountRecipe{Type: "overlay", Lower: []string{e.root}, Upper: dir + "/upper", Work: dir + "/work"}
	return r
}

// usual is a container that is removed at its end.
func usual(text string) *apiv1.ContainerSpec {
	s := script(text)
	s.AutoRemove = true
	return s
}

// standBy has a container like that built.
func (e *engine) standBy(spec *apiv1.ContainerSpec, network *networkv1.AttachResponse) (*execv1.CreateRequest, bool) {
	e.tb.Helper()
	create := &execv1.CreateRequest{Id: newID(), Spec: proto.CloneOf(spec), Rootfs: e.overlaid(), CreatedBy: "uid=0"}
	var stands bool
	eventually(e.tb, "an init waits", func() bool {
		resp, err := e.launch.StandBy(e.tb.Context(), &execv1.StandByRequest{Create: create, Network: network})
		stands = resp.GetStands()
		return err == nil
	})
	return create, stands
}

// inits is how many containers of the engine wait for a command.
func (e *engine) inits() (n int) {
	all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, cmdline := range all {
		name, err := os.ReadFile(cmdline)
		if err != nil || !strings.HasPrefix(string(name), "berth-init\x00") {
			continue
		}
		mounts, err := os.ReadFile(filepath.Join(filepath.Dir(cmdline), "mountinfo"))
		if err == nil && strings.Contains(string(mounts), " /etc/hosts ") && strings.Contains(string(mounts), filepath.Base(filepath.Dir(e.dir))) {
			n++
		}
	}
	return n
}

// What a container sees, but for numbers that differ from one to the next.
const seen = `readlink /proc/self/ns/net | head -c 4; hostname; pwd; grep -v overlay /proc/mounts | busybox sort; cat /etc/hostname /etc/hosts
ls /proc/self/fd | wc -l; cat /proc/1/comm /proc/self/cgroup /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null; grep -E '^(Cap|NoNew|Seccomp|Groups|Uid)' /proc/self/status; id; echo x >/written && cat /written`

func TestStandBy(t *testing.T) {
	for name, c := range map[string]struct {
		network func(*engine) *networkv1.AttachResponse
		ahead   func(*apiv1.ContainerSpec) // how the one that was built ahead differs
		stands  bool                       // it is built
		used    bool                       // and good for the run
	}{
		"the same":          {stands: true, used: true},
		"a held network":    {network: (*engine).held, stands: true, used: true},
		"another command":   {ahead: func(s *apiv1.ContainerSpec) { s.Args, s.Env, s.User = []string{"false"}, []string{"A=b"}, "alice" }, stands: true, used: true},
		"more privileges":   {ahead: func(s *apiv1.ContainerSpec) { s.Security = &apiv1.Security{CapAdd: []string{"NET_RAW"}} }, stands: true, used: true},
		"another filter":    {ahead: func(s *apiv1.ContainerSpec) { s.Security = &apiv1.Security{CapAdd: []string{"SYS_ADMIN"}} }, stands: true},
		"no new privileges": {ahead: func(s *apiv1.ContainerSpec) { s.Security = &apiv1.Security{NoNewPrivileges: true} }, stands: true},
		"no filter":         {ahead: func(s *apiv1.ContainerSpec) { s.Security = &apiv1.Security{SeccompProfile: "unconfined"} }, stands: true},
		"another directory": {ahead: func(s *apiv1.ContainerSpec) { s.WorkingDir = "/tmp" }, stands: true},
		"a read-only root":  {ahead: func(s *apiv1.ContainerSpec) { s.ReadOnly = true }, stands: true},
		"privileged":        {ahead: func(s *apiv1.ContainerSpec) { s.Security = &apiv1.Security{Privileged: true} }, stands: true},
		"larger shm":        {ahead: func(s *apiv1.ContainerSpec) { s.ShmSizeBytes = 1 << 20 }, stands: true},
		"other limits":      {ahead: func(s *apiv1.ContainerSpec) { s.Resources = &apiv1.Resources{MemoryBytes: 64 << 20} }, stands: true, used: true},
		"another name":      {ahead: func(s *apiv1.ContainerSpec) { s.Hostname = "other" }, stands: true},
		"a terminal":        {ahead: func(s *apiv1.ContainerSpec) { s.Tty = true }},
		"something bound": {ahead: func(s *apiv1.ContainerSpec) {
			s.Mounts = []*apiv1.MountSpec{{Type: apiv1.MountType_MOUNT_TYPE_TMPFS, Target: "/x"}}
		}},
		"one that is to stay": {ahead: func(s *apiv1.ContainerSpec) { s.AutoRemove = false }},
	} {
		t.Run(name, func(t *testing.T) {
			e := start(t)
			network := private()
			if c.network != nil {
				network = c.network(e)
			}
			want, err := e.runMade(&execv1.CreateRequest{Id: newID(), Spec: usual(seen), Rootfs: e.overlaid(), CreatedBy: "uid=0"}, network, nil)
			if err != nil || want.exit.GetCode() != 0 {
				t.Fatalf("%v, %v, %s", err, want.exit, want.errOut)
			}
			like := usual(seen)
			if c.ahead != nil {
				c.ahead(like)
			}
			create, stands := e.standBy(like, network)
			if stands != c.stands {
				t.Errorf("built: %t, want %t", stands, c.stands)
			}
			create.Spec = usual(seen)
			got, err := e.runMade(create, network, nil)
			if err != nil {
				t.Fatal(err)
			}
			plain := func(r *result) string { return strings.ReplaceAll(r.out, r.id[:12], "ID") + r.errOut }
			if plain(want) != plain(got) || got.exit.GetCode() != 0 {
				t.Errorf("built when it was run:\n%s\nbuilt ahead:\n%s\n%v", plain(want), plain(got), got.exit)
			}
			if used := !slices.Contains(got.steps, "pivot root"); used != (c.stands && c.used) {
				t.Errorf("steps of the start: %q", got.steps)
			}
			e.audit()
			if n := e.inits(); n > 0 {
				t.Errorf("%d containers wait for a command", n)
			}
		})
	}
}

func TestStandDown(t *testing.T) {
	e := start(t)
	create, stands := e.standBy(usual("true"), private())
	if !stands || e.inits() != 1 {
		t.Fatalf("stands: %t, with %d containers", stands, e.inits())
	}
	for range 2 {
		if _, err := e.launch.StandDown(t.Context(), &execv1.StandDownRequest{Id: create.Id}); err != nil {
			t.Error(err)
		}
	}
	if n := e.inits(); n > 0 {
		t.Errorf("%d containers wait for a command", n)
	}
	e.audit()
	// The root file system is as good as new.
	if got, err := e.runMade(create, private(), nil); err != nil || got.exit.GetCode() != 0 {
		t.Errorf("%v, %v", err, got)
	}
	e.audit()
}

// F-02: what stands when a daemon is killed is lost, and nothing else.
func TestF02KilledWhileAContainerStands(t *testing.T) {
	for name, kill := range map[string]func(*engine){
		"the monitor": func(e *engine) {
			old := e.monitorPid()
			syscall.Kill(old, syscall.SIGKILL)
			eventually(e.tb, "a new monitor", func() bool { return e.monitorPid() != old && e.monitorPid() != 0 })
		},
		"execd": func(e *engine) {
			e.kill()
			e.up()
		},
	} {
		t.Run(name, func(t *testing.T) {
			e := start(t)
			create, _ := e.standBy(usual("echo out"), private())
			kill(e)
			if name == "execd" {
				create.Rootfs = e.overlaid() // apid gives up what it had when a backend comes back
			}
			got, err := e.runMade(create, private(), nil)
			if err != nil || got.out != "out\n" {
				t.Errorf("%v, %+v", err, got)
			}
			eventually(t, "its init has ended", func() bool { return e.inits() == 0 })
			e.audit()
		})
	}
}

func TestStandByRefuses(t *testing.T) {
	e := start(t)
	id := e.up1(script("sleep 100"))
	for text, req := range map[string]*execv1.StandByRequest{
		"64 hex digits":  {Create: &execv1.CreateRequest{Id: "../x", Spec: usual("true"), Rootfs: e.rootfs()}, Network: private()},
		"exists already": {Create: &execv1.CreateRequest{Id: id, Spec: usual("true"), Rootfs: e.rootfs()}, Network: private()},
		"recipe":         {Create: &execv1.CreateRequest{Id: newID(), Spec: usual("true"), Rootfs: &imagev1.Rootfs{Recipe: &imagev1.MountRecipe{Type: "?"}}}, Network: private()},
	} {
		if _, err := e.launch.StandBy(t.Context(), req); err == nil || !strings.Contains(fmt.Sprint(err), text) {
			t.Errorf("%s: got %v", text, err)
		}
	}
}

// TestStopWhileAContainerStands: execd's own end takes it along, while other containers go on.
func TestStopWhileAContainerStands(t *testing.T) {
	e := start(t)
	id := e.up1(script("sleep 100"))
	if _, stands := e.standBy(usual("true"), private()); !stands || e.inits() != 1 {
		t.Fatalf("stands: %t, with %d containers", stands, e.inits())
	}
	e.cmd.Process.Signal(syscall.SIGTERM)
	e.cmd.Wait()
	if n := e.inits(); n > 0 {
		t.Errorf("%d containers wait for a command", n)
	}
	if left, _ := filepath.Glob(e.dir + "/run/execd/c/*"); len(left) != 1 || filepath.Base(left[0]) != id {
		t.Errorf("run folders: %v, want that of %s", left, id)
	}
	e.up()
}
