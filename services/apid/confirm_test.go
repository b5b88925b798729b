package apid

import (
	"errors"
	"testing"
	"time"

	"berth/internal/fault"
	apiv1 "berth/proto/berth/api/v1"
)

// TestRunConfirms: a container that lasts starts while its root file system is on the way
// to the disk. The client is told once that is there and the record was written after it.
func TestRunConfirms(t *testing.T) {
	for _, sync := range []error{nil, fault.ResourceExhausted.Errorf("DISK_FULL", "no space left on device")} {
		w := newWorld(t)
		w.imaged.syncing = make(chan error)
		type outcome struct {
			all []*apiv1.RunResponse
			err error
		}
		told := make(chan outcome, 1)
		go func() {
			all, err := runOnce(testContext(t), w, &apiv1.RunRequest_Open{Spec: runSpec("sleep"), Detach: true})
			told <- outcome{all, err}
		}()
		running := func() (pending, runs bool) {
			w.execd.mu.Lock()
			defer w.execd.mu.Unlock()
			c := w.execd.find("sleep-box")
			return c != nil && c.pending, c != nil && c.state == apiv1.ContainerState_CONTAINER_STATE_RUNNING
		}
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
			if _, runs := running(); runs {
				break
			}
			if time.Now().After(end) {
				t.Fatal("the container waits for the disk")
			}
		}
		select {
		case o := <-told:
			t.Fatalf("told before the root file system is on the disk: %v, %v", o.all, o.err)
		case <-time.After(50 * time.Millisecond):
		}
		if pending, _ := running(); !pending {
			t.Error("its record counts before the root file system is on the disk")
		}
		w.imaged.syncing <- sync
		o := <-told
		if sync != nil {
			if len(o.all) != 0 || !errors.Is(o.err, fault.ResourceExhausted) {
				t.Errorf("the disk is full: %v, %v", o.all, o.err)
			}
			w.expect(counts{})
			continue
		}
		if o.err != nil || len(o.all) != 2 || o.all[0].GetCreated() == nil || o.all[1].GetStarted() == nil {
			t.Errorf("%v, %v", o.all, o.err)
		}
		if pending, runs := running(); pending || !runs {
			t.Errorf("pending %v, runs %v", pending, runs)
		}
	}
}

// TestRunOnceIsNotConfirmed: what goes with its exit waits for no disk.
func TestRunOnceIsNotConfirmed(t *testing.T) {
	w := newWorld(t)
	w.imaged.syncing = make(chan error)
	spec := runSpec("sleep")
	spec.AutoRemove = true
	if _, err := runOnce(testContext(t), w, &apiv1.RunRequest_Open{Spec: spec, Detach: true}); err != nil {
		t.Fatal(err)
	}
}
