package records

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	apiv1 "berth/proto/berth/api/v1"
	networkv1 "berth/proto/berth/network/v1"
	"berth/services/execd/container"
)

func full(id string, rm bool) *container.Info {
	at := time.Now().Round(0)
	return &container.Info{
		ID: id, Name: "name", State: container.Paused, Spec: &apiv1.ContainerSpec{Image: "x", AutoRemove: rm, Labels: map[string]string{"a": "b"}},
		ImageID: "sha256:1", Image: &apiv1.ImageConfig{Cmd: []string{"sh"}}, Volumes: []*apiv1.MountPoint{{Name: "v"}}, IDBase: 7,
		CreatedBy: "uid=1", CreatedAt: at, Pid: 42, StartedAt: at, Namespace: &networkv1.Namespace{Id: "n"},
		Endpoints: []*apiv1.EndpointInfo{{IpAddress: "10.0.0.1"}}, Hostname: "h", Command: []string{"c"}, Env: []string{"E=1"}, Cwd: "/w",
		Mounts: []*apiv1.MountPoint{{Target: "/t"}}, Cgroup: "g", Cgroups: []string{"/g"}, Trace: []*apiv1.TraceStep{{Name: "t"}},
		Warnings: []string{"w"}, Exit: &container.ExitStatus{Code: 3, OOM: true, Error: "e", At: at}, Runs: 9, RestartCount: 2, Stopped: true, Pending: true,
	}
}

func TestRoundTrip(t *testing.T) {
	state, run := t.TempDir(), t.TempDir()
	s, err := Open(state, run)
	if err != nil {
		t.Fatal(err)
	}
	for id, rm := range map[string]bool{"lasting": false, "fleeting": true, "deleted": false} {
		if err := s.Put(full(id, rm), true); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Delete(full("deleted", false)); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if s, err = Open(state, run); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	all, err := s.Load()
	if err != nil || len(all) != 2 {
		t.Fatalf("%d records, %v", len(all), err)
	}
	for _, got := range all {
		want := full(got.ID, got.ID == "fleeting")
		if !proto.Equal(got.Spec, want.Spec) || !proto.Equal(got.Image, want.Image) || !proto.Equal(got.Namespace, want.Namespace) ||
			!proto.Equal(got.Endpoints[0], want.Endpoints[0]) || !proto.Equal(got.Mounts[0], want.Mounts[0]) ||
			got.Volumes[0].Name != "v" || len(got.Trace) == 0 != got.AutoRemove() {
			t.Errorf("messages differ: %+v", got)
		}
		if got.Exit.Code != 3 || !got.Exit.OOM || got.Exit.Error != "e" || got.Runs != 9 || got.RestartCount != 2 || !got.Stopped ||
			got.State != want.State || got.Pid != 42 || got.Cgroup != "g" || got.Cgroups[0] != "/g" || got.IDBase != 7 || got.CreatedBy != "uid=1" ||
			got.Hostname != "h" || got.Command[0] != "c" || got.Env[0] != "E=1" || got.Cwd != "/w" || got.Warnings[0] != "w" || got.Name != "name" {
			t.Errorf("got %+v", got)
		}
	}
}

// What cannot be read is a dead container that can be removed, not a reason to
// keep from the others.
func TestDamagedRecordIsADeadContainer(t *testing.T) {
	state, run := t.TempDir(), t.TempDir()
	s, err := Open(state, run)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	s.Put(full("good", false), true)
	s.lasting.Put("newer", []byte(`{"v":99,"id":"newer"}`), true)
	s.lasting.Put("garbage", []byte(`{`), true)
	all, err := s.Load()
	if err == nil || len(all) != 3 {
		t.Fatalf("%d records, %v", len(all), err)
	}
	for _, i := range all {
		if dead := i.State == container.Dead; dead == (i.ID == "good") {
			t.Errorf("%s is %s", i.ID, i.State)
		}
	}
}

// A --rm container leaves no trace in the state folder.
func TestFleetingStaysInTheRunFolder(t *testing.T) {
	state, run := t.TempDir(), t.TempDir()
	s, err := Open(state, run)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	before := size(t, state)
	s.Put(full("fleeting", true), true)
	if after := size(t, state); after != before {
		t.Errorf("the state folder grew from %d to %d bytes", before, after)
	}
}

func size(t *testing.T, dir string) (n int64) {
	t.Helper()
	filepath.Walk(dir, func(_ string, st os.FileInfo, err error) error {
		if err == nil && st.Mode().IsRegular() {
			n += st.Size()
		}
		return nil
	})
	return n
}

// TestPending: a container that nobody was told of goes with the run folder, whether or not
// its record has reached the disk; with the folder there it stays, and once confirmed always.
func TestPending(t *testing.T) {
	state, run := t.TempDir(), t.TempDir()
	ids := func(runDir string) string {
		t.Helper()
		s, err := Open(state, runDir)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		all, err := s.Load()
		if err != nil {
			t.Fatal(err)
		}
		var found []string
		for _, i := range all {
			found = append(found, fmt.Sprintf("%s %v", i.ID, i.Pending))
		}
		slices.Sort(found)
		return strings.Join(found, ", ")
	}
	s, err := Open(state, run)
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range []*container.Info{{ID: "told", Spec: new(apiv1.ContainerSpec)}, {ID: "untold", Spec: new(apiv1.ContainerSpec), Pending: true},
		{ID: "confirmed", Spec: new(apiv1.ContainerSpec), Pending: true}} {
		if err := s.Put(i, true); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Put(&container.Info{ID: "confirmed", Spec: new(apiv1.ContainerSpec)}, true); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if got, want := ids(run), "confirmed false, told false, untold true"; got != want {
		t.Errorf("after a restart: %s, want %s", got, want)
	}
	if got, want := ids(t.TempDir()), "confirmed false, told false"; got != want {
		t.Errorf("after a power cut: %s, want %s", got, want)
	}
	if got, want := ids(run), "confirmed false, told false"; got != want {
		t.Errorf("later: %s, want %s", got, want)
	}
}

// TestCut: a container whose start the machine went down in, or after, is known as such, for its record may have missed
// that it ran.
func TestCut(t *testing.T) {
	state, run := t.TempDir(), t.TempDir()
	s, err := Open(state, run)
	if err != nil {
		t.Fatal(err)
	}
	for _, st := range []container.State{container.Created, container.Starting, container.Running} {
		i := &container.Info{ID: string(st), State: st, Spec: new(apiv1.ContainerSpec)}
		if err := s.Put(i, false); err != nil {
			t.Fatal(err)
		}
		if err := s.Sync(i); err != nil {
			t.Fatal(err)
		}
	}
	s.Close()
	for runDir, want := range map[string]string{run: "", t.TempDir(): string(container.Starting)} {
		if s, err = Open(state, runDir); err != nil {
			t.Fatal(err)
		}
		all, err := s.Load()
		if err != nil || len(all) != 3 {
			t.Fatalf("%d records, %v", len(all), err)
		}
		var cut string
		for _, i := range all {
			if i.Cut {
				cut += i.ID
			}
		}
		if cut != want {
			t.Errorf("with the run folder of before: %t; cut are %q, want %q", runDir == run, cut, want)
		}
		s.Close()
	}
}
