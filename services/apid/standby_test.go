package apid

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"berth/internal/config"
	"berth/internal/fault"
	apiv1 "berth/proto/berth/api/v1"
	"berth/services/apid/engine"
)

// spareIDs are the containers that imaged and netd have parts of and execd does
// not know, if both have the same. The locks are held.
func (w *world) spareIDs() map[string]bool {
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
		all, n := w.held()
		return fmt.Sprint(n, all), n > 0 && w.counts() == counts{}
	})
	time.Sleep(20 * time.Millisecond) // until apid has learned of them
}

// expectNothing waits until there are no spares either.
func (w *world) expectNothing() {
	w.t.Helper()
	w.eventually("nothing", func() (string, bool) {
		all, _ := w.held()
		return fmt.Sprintf("%+v", all), all == counts{}
	})
}

// ready are the spares there are.
func (w *world) ready() map[string]bool {
	w.execd.mu.Lock()
	defer w.execd.mu.Unlock()
	w.imaged.mu.Lock()
	defer w.imaged.mu.Unlock()
	w.netd.mu.Lock()
	defer w.netd.mu.Unlock()
	return w.spareIDs()
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
		return fmt.Sprint(steps), steps["standby"] && len(w.ready()) > 0
	})
}

func TestStandbyIsUsedByTheNextRun(t *testing.T) {
	w := newWorld(t)
	if _, steps := w.runUnnamed(nil); !steps["imaged prepare"] {
		t.Errorf("the first run has steps %v", steps)
	}
	w.spares()
	ready := w.ready()
	id, steps := w.runUnnamed(nil)
	if !ready[id] || !steps["standby"] || steps["imaged prepare"] || steps["netd attach"] {
		t.Errorf("run %s with steps %v, ready were %v", id, steps, ready)
	}
	// What is there for one container is never given to a second.
	w.eventually("another spare", func() (string, bool) { ids := w.ready(); return "", len(ids) == 1 && !ids[id] })
	w.stop()
	w.expectNothing()
}

// Whatever is not quite the same gets parts of its own.
func TestStandbyFitsOrIsNotUsed(t *testing.T) {
	w := newWorld(t)
	for name, change := range map[string]func(*apiv1.ContainerSpec){
		"stays":    func(s *apiv1.ContainerSpec) { s.AutoRemove = false },
		"hostname": func(s *apiv1.ContainerSpec) { s.Hostname = "x" },
		"port of no network": func(s *apiv1.ContainerSpec) {
			s.Network = &apiv1.NetworkSpec{Mode: "none", Ports: []*apiv1.PortMapping{{ContainerPort: 1}}}
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

// oneReady waits until there is one spare, and apid has had the time to learn of it.
func (w *world) oneReady() {
	w.t.Helper()
	w.eventually("a spare", func() (string, bool) { n := len(w.ready()); return fmt.Sprint(n), n == 1 })
	time.Sleep(20 * time.Millisecond)
}

// lasting is a run of a container that stays, with a port of the host unless that is 0.
func (w *world) lasting(name string, port uint32) (id string, steps map[string]bool, err error) {
	w.t.Helper()
	spec := &apiv1.ContainerSpec{Image: "web", Args: []string{"sleep"}, Name: name}
	if port != 0 {
		spec.Network = &apiv1.NetworkSpec{Ports: []*apiv1.PortMapping{{HostPort: port, ContainerPort: 80}}}
	}
	all, err := runOnce(testContext(w.t), w, &apiv1.RunRequest_Open{Spec: spec, Detach: true, Trace: true})
	steps = map[string]bool{}
	for _, m := range all {
		if c := m.GetCreated(); c != nil {
			id = c.Id
			if len(c.Warnings) != 1 || c.Warnings[0] != "from netd" {
				w.t.Errorf("%s: warnings %q", name, c.Warnings)
			}
		}
		for _, s := range m.GetStarted().GetTrace() {
			steps[s.Name] = true
		}
	}
	return id, steps, err
}

// TestStandbyServesRunsThatLast: what stands by for them is on the disk already, is mounted in another way than what goes
// with its exit, and gets its ports and is announced before the client is told.
func TestStandbyServesRunsThatLast(t *testing.T) {
	w := newWorld(t)
	_, steps, err := w.lasting("first", 8080)
	if err != nil || !steps["netd attach"] || !steps["imaged sync"] || !steps["confirm"] {
		t.Fatalf("%v, steps %v", err, steps)
	}
	w.oneReady()
	ready := w.ready()
	for id := range ready {
		w.imaged.mu.Lock()
		if how := w.imaged.prepared[id]; how.SyncLater || how.Ephemeral {
			t.Errorf("prepared by %v", how)
		}
		w.imaged.mu.Unlock()
	}
	id, steps, err := w.lasting("second", 8081)
	if err != nil || !ready[id] || !steps["standby"] || !steps["netd use"] {
		t.Fatalf("%v, run %s with steps %v, ready were %v", err, id, steps, ready)
	}
	for _, not := range []string{"imaged prepare", "netd attach", "imaged sync", "confirm"} {
		if steps[not] {
			t.Errorf("there is a step %q", not)
		}
	}
	w.netd.mu.Lock()
	if e := w.netd.endpoints[id]; e.GetStandby() || len(e.GetNetwork().GetPorts()) != 1 || e.Network.Ports[0].HostPort != 8081 {
		t.Errorf("its endpoint is %v", e)
	}
	w.netd.mu.Unlock()
	w.execd.mu.Lock()
	if c := w.execd.containers[id]; c.pending || len(c.network.GetEndpoints()) != 1 || c.network.Endpoints[0].Ports[0].HostPort != 8081 {
		t.Errorf("execd was told of %v, pending: %t", c.network, c.pending)
	}
	w.execd.mu.Unlock()
	w.oneReady()
	if _, steps := w.runUnnamed(nil); steps["standby"] {
		t.Error("a run with --rm was given what lasts")
	}
	// One without ports is announced as well.
	if id, steps, err = w.lasting("third", 0); err != nil || !steps["netd use"] {
		t.Errorf("%v, steps %v", err, steps)
	}
	if w.ready()[id] {
		t.Error("a container's endpoint stands by")
	}
	w.stop()
	w.eventually("three containers and nothing else", func() (string, bool) {
		all, _ := w.held()
		return fmt.Sprint(all), all == counts{3, 3, 3}
	})
}

// TestStandbyOutlivesAPortInUse: the run is refused, nothing has been made, and the next one has what stood by.
func TestStandbyOutlivesAPortInUse(t *testing.T) {
	w := newWorld(t)
	if _, _, err := w.lasting("first", 8080); err != nil {
		t.Fatal(err)
	}
	w.oneReady()
	ready := w.ready()
	if id, _, err := w.lasting("second", 8080); fault.ReasonOf(err) != "PORT_IN_USE" || id != "" {
		t.Errorf("run %q: %v", id, err)
	}
	if now := w.ready(); len(now) != 1 || !maps.Equal(now, ready) || w.counts() != (counts{1, 1, 1}) {
		t.Errorf("ready are %v, were %v; %+v", now, ready, w.counts())
	}
	if j := w.lastJob("run"); j.State != apiv1.JobState_JOB_STATE_FAILED {
		t.Errorf("job %v", j)
	}
	if id, _, err := w.lasting("second", 8081); err != nil || !ready[id] {
		t.Errorf("run %s: %v, ready were %v", id, err, ready)
	}
	// What was taken before all were to go is not put back.
	w.oneReady()
	w.netd.mu.Lock()
	refused := make(chan error, 1)
	go func() { _, _, err := w.lasting("third", 8081); refused <- err }()
	w.eventuallyTaken()
	if _, err := w.images().Tag(testContext(t), &apiv1.ImageServiceTagRequest{}); fault.KindOf(err) != fault.Unimplemented { // by the fake
		t.Error(err)
	}
	w.netd.mu.Unlock()
	if err := <-refused; fault.ReasonOf(err) != "PORT_IN_USE" {
		t.Errorf("third: %v", err)
	}
	w.eventually("no spare", func() (string, bool) { all, _ := w.held(); return fmt.Sprint(all), all == counts{2, 2, 2} })
}

// eventuallyTaken waits until a run has begun that has not ended.
func (w *world) eventuallyTaken() {
	w.t.Helper()
	w.eventually("a run with its spare", func() (string, bool) {
		j := w.lastJob("run")
		return fmt.Sprint(j), slices.ContainsFunc(j.Steps, func(s *apiv1.JobStep) bool { return s.Name == "netd use" && !s.Done })
	})
}

// TestStandbyGivesWayInAFullNetwork: a container gets the last address, though something of another kind stood by with it.
func TestStandbyGivesWayInAFullNetwork(t *testing.T) {
	w := newWorld(t)
	if _, _, err := w.lasting("first", 0); err != nil {
		t.Fatal(err)
	}
	w.oneReady()
	w.netd.mu.Lock()
	w.netd.room = 2
	w.netd.mu.Unlock()
	if _, steps := w.runUnnamed(nil); steps["standby"] {
		t.Error("a run with --rm was given what lasts")
	}
	if _, _, err := w.lasting("second", 0); err != nil {
		t.Error(err)
	}
	if _, _, err := w.lasting("third", 0); !errors.Is(err, fault.ResourceExhausted) {
		t.Errorf("in a full network: %v", err)
	}
	w.expect(counts{2, 2, 2})
}

// TestStandbyIsLostWithNetd: a run whose endpoint cannot be asked for fails, and leaves nothing.
func TestStandbyIsLostWithNetd(t *testing.T) {
	w := newWorld(t)
	if _, _, err := w.lasting("first", 0); err != nil {
		t.Fatal(err)
	}
	w.oneReady()
	w.netd.mu.Lock()
	for id := range w.netd.endpoints {
		if w.netd.endpoints[id].Standby {
			delete(w.netd.endpoints, id)
		}
	}
	w.netd.mu.Unlock()
	if _, _, err := w.lasting("second", 8080); fault.ReasonOf(err) != "ENDPOINT_GONE" {
		t.Errorf("its endpoint is gone: %v", err)
	}
	w.expect(counts{1, 1, 1})
	if _, steps, err := w.lasting("second", 8080); err != nil || steps["standby"] {
		t.Errorf("%v, steps %v", err, steps)
	}
	w.oneReady()
	w.netd.stop()
	if _, _, err := w.lasting("third", 8081); fault.KindOf(err) != fault.Unavailable {
		t.Errorf("netd is away: %v", err)
	}
	w.netd.start()
	w.eventually("two containers", func() (string, bool) { all, _ := w.held(); return fmt.Sprint(all), all == counts{2, 2, 2} })
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
	if n := len(w.ready()); n > config.Default().Apid.Standby {
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
		if got, _ := w.held(); got != (counts{}) {
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
	w.expectNothing()
}

// A spare is not garbage to the reconciler, but that of an apid that was killed is.
func TestStandbyIsReconciled(t *testing.T) {
	w := newWorld(t)
	w.runUnnamed(nil)
	w.spares()
	w.netd.stop()
	w.netd.start() // wakes the reconciler, and netd may have lost what it had
	w.expectNothing()
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
