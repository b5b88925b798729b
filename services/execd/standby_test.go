package execd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"berth/internal/fault"
	"berth/libcontainer/clock"
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
		"more privileges":   {ahead: func(s *apiv1.ContainerSpec) { s.Security = &apiv1.Security{CapAdd: []string{"NET_RAW"}} }, stands: true},
		"fewer privileges":  {ahead: func(s *apiv1.ContainerSpec) { s.Security = &apiv1.Security{CapDrop: []string{"KILL"}} }, stands: true},
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
		"one that is to stay": {ahead: func(s *apiv1.ContainerSpec) { s.AutoRemove = false }, stands: true},
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

// runDetached is `run -d` of a container whose other parts are on the disk: its record is, when the answer comes.
func (e *engine) runDetached(create *execv1.CreateRequest, network *networkv1.AttachResponse) (steps []string, err error) {
	e.tb.Helper()
	ctx, cancel := context.WithTimeout(e.tb.Context(), 20*time.Second)
	defer cancel()
	stream, err := e.launch.Run(ctx)
	if err != nil {
		return nil, err
	}
	open := &execv1.RunRequest_Open{Create: create, Network: network, Timeline: &execv1.Timeline{Wanted: true, Begun: clock.Now()}}
	if err := stream.Send(&execv1.RunRequest{Message: &execv1.RunRequest_Open_{Open: open}}); err != nil {
		return nil, err
	}
	for {
		m, err := stream.Recv()
		if err == io.EOF {
			return steps, nil
		}
		if err != nil {
			return nil, err
		}
		for _, s := range m.GetStarted().GetTrace() {
			steps = append(steps, s.Name)
		}
	}
}

// TestStandByOfOneThatStays: it is recorded and logs as any other, is started again by its policy and by hand, and both
// times is built anew.
func TestStandByOfOneThatStays(t *testing.T) {
	e := start(t)
	spec := script("echo out; exit 3")
	create, stands := e.standBy(spec, private())
	if !stands {
		t.Fatal("it was not built ahead")
	}
	create.Spec = proto.CloneOf(spec)
	create.Spec.Name, create.Spec.Restart = "stays", &apiv1.RestartPolicy{Name: "on-failure", MaxRetries: 1}
	steps, err := e.runDetached(create, private())
	if err != nil || slices.Contains(steps, "pivot root") || !slices.Contains(steps, "record on disk") {
		t.Fatalf("%v, steps %q", err, steps)
	}
	eventually(t, "its second end", func() bool {
		c := e.inspect("stays")
		return c.RestartCount == 1 && c.State == apiv1.ContainerState_CONTAINER_STATE_EXITED && c.Exit.Code == 3
	})
	if out := e.logs(&apiv1.LogsRequest{Container: create.Id, Stdout: true}); out != "out\nout\n" {
		t.Errorf("its log is %q", out)
	}
	if err := e.startID(create.Id); err != nil {
		t.Error(err)
	}
	if n := e.inits(); n > 0 {
		t.Errorf("%d containers wait for a command", n)
	}
}

// TestF01KilledInALaunchOfWhatStoodBy: a container that stays is there or not after execd's death, and nothing else is.
func TestF01KilledInALaunchOfWhatStoodBy(t *testing.T) {
	for _, point := range []string{"execd.container-recorded", "execd.launch-planned", "execd.started", "journal.appended", "journal.synced"} {
		t.Run(point, func(t *testing.T) {
			e := start(t)
			e.kill()
			e.faults = point + "=1*kill"
			e.up()
			spec := script("sleep 1000")
			create, _ := e.standBy(spec, private())
			if _, err := e.runDetached(create, private()); err == nil {
				t.Error("the point was not met")
			}
			e.cmd.Wait()
			e.faults = ""
			e.up()
			eventually(t, "its init has ended or is its command", func() bool { return e.inits() == 0 })
			if _, err := e.launch.Remove(t.Context(), &execv1.RemoveRequest{Container: create.Id, Force: true}); err != nil && !errors.Is(err, fault.NotFound) {
				t.Errorf("remove: %v", err)
			}
			e.audit()
		})
	}
}

// TestF08PowerCutAfterALaunchOfWhatStoodBy: of a container whose record was on the disk when it was being launched it is
// not known whether it ran, once the machine went down. With the machine up it is known that nobody was told of it.
func TestF08PowerCutAfterALaunchOfWhatStoodBy(t *testing.T) {
	for cut, code := range map[bool]int32{true: 255, false: 125} {
		e := start(t)
		e.kill()
		e.faults = "execd.started=1*kill"
		e.up()
		create, _ := e.standBy(script("sleep 1000"), private())
		if _, err := e.runDetached(create, private()); err == nil {
			t.Error("the point was not met")
		}
		e.cmd.Wait()
		if pid := e.monitorPid(); pid > 1 {
			syscall.Kill(pid, syscall.SIGKILL)
		}
		if cut {
			if err := os.RemoveAll(e.dir + "/run/execd"); err != nil {
				t.Fatal(err)
			}
		}
		e.faults = ""
		e.up()
		eventually(t, "its end", func() bool { return e.inspect(create.Id).State == apiv1.ContainerState_CONTAINER_STATE_EXITED })
		if x := e.inspect(create.Id).Exit; x.GetCode() != code {
			t.Errorf("the machine went down: %t; it ended with %v, want %d", cut, x, code)
		}
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
