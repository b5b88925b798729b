package apid

import (
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"berth/internal/config"
	apiv1 "berth/proto/berth/api/v1"
	"berth/services/apid/engine"
)

// spareIDs are the containers that imaged and netd have parts of and execd does
// not know, if both have the same.
func (w *world) spareIDs() map[string]bool {
	w.imaged.mu.Lock()
	defer w.imaged.mu.Unlock()
	w.netd.mu.Lock()
	defer w.netd.mu.Unlock()
	w.execd.mu.Lock()
	defer w.execd.mu.Unlock()
	ids := map[string]bool{}
	for id := range w.imaged.rootfs {
		if e := w.netd.endpoints[id]; w.execd.containers[id] == nil && e.GetStandby() {
			ids[id] = true
		}
	}
	return ids
}

// spares waits until there are some, and nothing else.
func (w *world) spares() {
	w.t.Helper()
	w.eventually("spares", func() (string, bool) {
		n, only := w.onlySpares()
		return fmt.Sprint(n, w.counts()), n > 0 && only
	})
}

// expectOnlySpares waits until nothing is left but spares, if there are any: they
// go by themselves.
func (w *world) expectOnlySpares() {
	w.t.Helper()
	w.eventually("nothing but spares", func() (string, bool) {
		n, only := w.onlySpares()
		return fmt.Sprint(n, w.counts()), only
	})
}

func (w *world) onlySpares() (n int, only bool) {
	n = len(w.spareIDs())
	return n, w.counts() == counts{rootfs: n, endpoints: n}
}

func (w *world) runUnnamed(change func(*apiv1.ContainerSpec)) (id string, steps map[string]bool) {
	w.t.Helper()
	spec := runSpec("false")
	spec.Name, spec.AutoRemove = "", true
	if change != nil {
		change(spec)
	}
	all, err := runOnce(testContext(w.t), w, &apiv1.RunRequest_Open{Spec: spec, Trace: true})
	if err != nil {
		w.t.Fatal(err)
	}
	steps = map[string]bool{}
	for _, m := range all {
		if c := m.GetCreated(); c != nil {
			id = c.Id
		}
		for _, s := range m.GetStarted().GetTrace() {
			steps[s.Name] = true
		}
	}
	if id == "" || !steps["execd run"] {
		w.t.Fatalf("run: %v", all)
	}
	return id, steps
}

// standing waits until a spare of the plain shape stands by, and no other.
func (w *world) standing() {
	w.t.Helper()
	w.eventually("a run from standby", func() (string, bool) {
		_, steps := w.runUnnamed(nil)
		// What runs of other shapes leave in the background may come later.
		time.Sleep(20 * time.Millisecond)
		return fmt.Sprint(steps), steps["standby"] && len(w.spareIDs()) > 0
	})
}

func TestStandbyIsUsedByTheNextRun(t *testing.T) {
	w := newWorld(t)
	if _, steps := w.runUnnamed(nil); !steps["imaged prepare"] {
		t.Errorf("the first run has steps %v", steps)
	}
	w.spares()
	ready := w.spareIDs()
	id, steps := w.runUnnamed(nil)
	if !ready[id] || !steps["standby"] || steps["imaged prepare"] || steps["netd attach"] {
		t.Errorf("run %s with steps %v, ready were %v", id, steps, ready)
	}
	// What is there for one container is never given to a second.
	w.eventually("another spare", func() (string, bool) { ids := w.spareIDs(); return "", len(ids) == 1 && !ids[id] })
	w.stop()
	w.expect(counts{})
}

// Whatever is not quite the same gets parts of its own.
func TestStandbyFitsOrIsNotUsed(t *testing.T) {
	w := newWorld(t)
	for name, change := range map[string]func(*apiv1.ContainerSpec){
		"stays":    func(s *apiv1.ContainerSpec) { s.AutoRemove = false },
		"named":    func(s *apiv1.ContainerSpec) { s.Name = "x" },
		"hostname": func(s *apiv1.ContainerSpec) { s.Hostname = "x" },
		"port": func(s *apiv1.ContainerSpec) {
			s.Network = &apiv1.NetworkSpec{Ports: []*apiv1.PortMapping{{ContainerPort: 1}}}
		},
		"another network": func(s *apiv1.ContainerSpec) { s.Network = &apiv1.NetworkSpec{Mode: "mine"} },
		"address":         func(s *apiv1.ContainerSpec) { s.Network = &apiv1.NetworkSpec{Ip: "10.88.0.9"} },
		"alias":           func(s *apiv1.ContainerSpec) { s.Network = &apiv1.NetworkSpec{Aliases: []string{"a"}} },
		"volume": func(s *apiv1.ContainerSpec) {
			s.Mounts = []*apiv1.MountSpec{{Type: apiv1.MountType_MOUNT_TYPE_VOLUME, Source: "v", Target: "/v"}}
		},
		"platform": func(s *apiv1.ContainerSpec) { s.Platform = "linux/arm64" },
		"pull":     func(s *apiv1.ContainerSpec) { s.Pull = apiv1.PullPolicy_PULL_POLICY_ALWAYS },
	} {
		w.standing()
		if _, steps := w.runUnnamed(change); steps["standby"] {
			t.Errorf("%s: steps %v", name, steps)
		}
	}
	// What imaged and netd have no part in makes no difference.
	w.eventually("a run with limits from standby", func() (string, bool) {
		_, steps := w.runUnnamed(func(s *apiv1.ContainerSpec) {
			s.Env, s.User, s.ReadOnly = []string{"A=1"}, "nobody", true
			s.Resources = &apiv1.Resources{MemoryBytes: 1 << 26}
		})
		time.Sleep(20 * time.Millisecond)
		return fmt.Sprint(steps), steps["standby"]
	})
}

// Several shapes stand by side by side, but not more than there may be.
func TestStandbyOfSeveralShapes(t *testing.T) {
	w := newWorld(t)
	for range 3 {
		for _, mode := range []string{"bridge", "none", "host"} {
			w.runUnnamed(func(s *apiv1.ContainerSpec) { s.Network = &apiv1.NetworkSpec{Mode: mode} })
		}
		time.Sleep(20 * time.Millisecond)
	}
	for _, mode := range []string{"bridge", "none", "host"} {
		w.eventually(mode+" from standby", func() (string, bool) {
			_, steps := w.runUnnamed(func(s *apiv1.ContainerSpec) { s.Network = &apiv1.NetworkSpec{Mode: mode} })
			time.Sleep(20 * time.Millisecond)
			return fmt.Sprint(steps), steps["standby"]
		})
	}
	if n := len(w.spareIDs()); n > config.Default().Apid.Standby {
		t.Errorf("%d spares", n)
	}
}

// Calls that change what a name means, or count, find nothing that stands by.
func TestStandbyGivesWay(t *testing.T) {
	w := newWorld(t)
	for name, call := range map[string]func() error{
		"rmi": func() error {
			_, err := w.images().Remove(testContext(t), &apiv1.ImageServiceRemoveRequest{Image: "other"})
			return err
		},
		"prune": func() error {
			_, err := w.images().Prune(testContext(t), &apiv1.ImageServicePruneRequest{})
			return err
		},
		"df": func() error {
			resp, err := apiv1.NewSystemServiceClient(w.conn).DiskUsage(testContext(t), &apiv1.SystemServiceDiskUsageRequest{})
			if err == nil && proto.Size(resp) == 0 {
				t.Error("df is empty")
			}
			return err
		},
	} {
		w.runUnnamed(nil)
		w.spares()
		if err := call(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if got := w.counts(); got != (counts{}) {
			t.Errorf("after %s there are %+v", name, got)
		}
	}
}

func TestStandbyEndsWithTheImagesVolumes(t *testing.T) {
	w := newWorld(t)
	w.imaged.mu.Lock()
	w.imaged.volumes = []string{"/data"}
	w.imaged.mu.Unlock()
	w.runUnnamed(nil)
	time.Sleep(50 * time.Millisecond)
	w.expect(counts{})
}

// A spare is not garbage to the reconciler, but that of an apid that was killed is.
func TestStandbyIsReconciled(t *testing.T) {
	w := newWorld(t)
	w.runUnnamed(nil)
	w.spares()
	w.netd.stop()
	w.netd.start() // wakes the reconciler, and netd may have lost what it had
	w.expect(counts{})
	w.runUnnamed(nil)
	w.spares()
}

// Every method is either calm or not, and no name is mistyped.
func TestCalmMethodsExist(t *testing.T) {
	n := 0
	for method := range table {
		if engine.Calm(method) {
			n++
		}
	}
	if n != engine.CalmMethods() {
		t.Errorf("%d of the calm methods are methods of the API, of %d", n, engine.CalmMethods())
	}
	for _, method := range []string{"/berth.api.v1.ImageService/Tag", "/berth.api.v1.ImageService/Remove", "/berth.api.v1.ImageService/Tomorrow"} {
		if engine.Calm(method) {
			t.Errorf("%s is calm", method)
		}
	}
}
