package execd

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"berth/internal/fault"
	apiv1 "berth/proto/berth/api/v1"
	execv1 "berth/proto/berth/exec/v1"
)

func (e *engine) stop(id string, timeout *durationpb.Duration) (*execv1.StopResponse, time.Duration, error) {
	begin := time.Now()
	r, err := e.launch.Stop(context.Background(), &execv1.StopRequest{Container: id, Timeout: timeout})
	return r, time.Since(begin), err
}

// F-34: stop timeouts and statuses.
func TestF34Stop(t *testing.T) {
	e := start(t)
	const deaf = "trap '' TERM; echo ready; while :; do sleep 0.1; done"
	const polite = "trap 'exit 0' TERM; echo ready; while :; do sleep 0.05; done"
	for _, c := range []struct {
		script   string
		timeout  *durationpb.Duration
		code     int32
		min, max time.Duration
	}{
		{deaf, durationpb.New(0), 137, 0, 500 * time.Millisecond},
		{deaf, durationpb.New(time.Second), 137, time.Second, 1500 * time.Millisecond},
		{polite, nil, 0, 0, 500 * time.Millisecond},
		{polite, durationpb.New(-1), 0, 0, 500 * time.Millisecond},
		{"sleep 1000", durationpb.New(time.Second), 137, time.Second, 1500 * time.Millisecond}, // pid 1 ignores what it does not handle
	} {
		t.Run(c.script+"/"+c.timeout.String(), func(t *testing.T) {
			id := e.up1(script(c.script))
			if strings.Contains(c.script, "ready") {
				eventually(t, "the trap is set", func() bool { return e.logs(&apiv1.LogsRequest{Container: id}) == "ready\n" })
			}
			r, took, err := e.stop(id, c.timeout)
			if err != nil {
				t.Fatal(err)
			}
			if r.Exit.GetCode() != c.code || took < c.min || took > c.max {
				t.Errorf("%v after %v, want %d between %v and %v", r.Exit, took, c.code, c.min, c.max)
			}
			if r, _, err := e.stop(id, nil); err != nil || !r.WasStopped {
				t.Errorf("again: %v, %v", r, err)
			}
		})
	}
}

func TestKillAndWait(t *testing.T) {
	e := start(t)
	id := e.up1(script("trap 'exit 44' USR1; echo ready; while :; do sleep 0.05; done"))
	eventually(t, "the trap is set", func() bool { return e.logs(&apiv1.LogsRequest{Container: id}) == "ready\n" })
	if _, err := e.api.Kill(t.Context(), &apiv1.KillRequest{Container: id, Signal: "USR1"}); err != nil {
		t.Fatal(err)
	}
	if x := e.wait(id); x.GetCode() != 44 {
		t.Errorf("ended with %v", x)
	}
	if _, err := e.api.Kill(t.Context(), &apiv1.KillRequest{Container: id}); !errors.Is(err, fault.FailedPrecondition) {
		t.Errorf("kill what has ended: %v", err)
	}
	if _, err := e.api.Kill(t.Context(), &apiv1.KillRequest{Container: id, Signal: "NOSUCH"}); !errors.Is(err, fault.InvalidArgument) {
		t.Errorf("unknown signal: %v", err)
	}
}

// F-36: pause with everything else has a defined result and hangs nothing.
func TestF36Paused(t *testing.T) {
	e := start(t)
	id := e.up1(script("sleep 1000"))
	pause := func() error {
		_, err := e.api.Pause(context.Background(), &apiv1.PauseRequest{Container: id})
		return err
	}
	if err := pause(); err != nil {
		t.Fatal(err)
	}
	if err := pause(); !errors.Is(err, fault.FailedPrecondition) {
		t.Errorf("pause twice: %v", err)
	}
	if _, err := e.exec(id, &apiv1.ExecRequest_Open{Args: []string{"true"}}, nil); !errors.Is(err, fault.FailedPrecondition) {
		t.Errorf("exec in a paused container: %v", err)
	}
	if _, err := e.launch.Remove(t.Context(), &execv1.RemoveRequest{Container: id}); !errors.Is(err, fault.FailedPrecondition) {
		t.Errorf("remove a paused container: %v", err)
	}
	if r, took, err := e.stop(id, durationpb.New(500*time.Millisecond)); err != nil || r.Exit.GetCode() != 137 || took > 2*time.Second {
		t.Errorf("stop: %v, %v after %v", r, err, took)
	}
	if err := e.startID(id); err != nil {
		t.Fatal(err)
	}
	if err := pause(); err != nil {
		t.Fatal(err)
	}
	if _, err := e.launch.Remove(t.Context(), &execv1.RemoveRequest{Container: id, Force: true}); err != nil {
		t.Errorf("remove by force: %v", err)
	}
}

// F-24: many clients do things to one container at once; nothing hangs and it
// can be removed in the end.
func TestF24Race(t *testing.T) {
	e := start(t)
	id := e.create(script("sleep 0.05"))
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	end := time.Now().Add(2 * time.Second)
	var wg sync.WaitGroup
	for n := range 16 {
		wg.Go(func() {
			for time.Now().Before(end) {
				var err error
				switch n % 6 {
				case 0:
					_, err = e.launch.Start(ctx, &execv1.StartRequest{Id: id, Rootfs: e.rootfs(), Network: private()})
				case 1:
					_, err = e.launch.Stop(ctx, &execv1.StopRequest{Container: id, Timeout: durationpb.New(0)})
				case 2:
					_, err = e.api.Kill(ctx, &apiv1.KillRequest{Container: id})
				case 3:
					_, err = e.api.Pause(ctx, &apiv1.PauseRequest{Container: id})
					e.api.Unpause(ctx, &apiv1.UnpauseRequest{Container: id})
				case 4:
					_, err = e.api.Rename(ctx, &apiv1.RenameRequest{Container: id, Name: fmt.Sprintf("n%d-%d", n, time.Now().UnixNano())})
				case 5:
					_, err = e.api.Inspect(ctx, &apiv1.InspectRequest{Container: id})
				}
				if err != nil && !errors.Is(err, fault.FailedPrecondition) && !errors.Is(err, fault.AlreadyExists) {
					t.Errorf("unexpected: %v", err)
				}
			}
		})
	}
	wg.Wait()
	if _, err := e.launch.Remove(ctx, &execv1.RemoveRequest{Container: id, Force: true}); err != nil {
		t.Error(err)
	}
}

func TestRestartPolicy(t *testing.T) {
	e := start(t)
	s := script("echo run; exit 3")
	s.Restart = &apiv1.RestartPolicy{Name: "on-failure", MaxRetries: 2}
	id := e.up1(s)
	eventually(t, "three runs", func() bool {
		return strings.Count(e.logs(&apiv1.LogsRequest{Container: id}), "run\n") == 3 &&
			e.inspect(id).State == apiv1.ContainerState_CONTAINER_STATE_EXITED
	})
	if n := e.inspect(id).RestartCount; n != 2 {
		t.Errorf("restart count %d", n)
	}
	s = script("echo run; sleep 0.05")
	s.Restart = &apiv1.RestartPolicy{Name: "always"}
	id = e.up1(s)
	eventually(t, "two runs", func() bool { return strings.Count(e.logs(&apiv1.LogsRequest{Container: id}), "run\n") >= 2 })
	e.kill()
	e.up()
	before := strings.Count(e.logs(&apiv1.LogsRequest{Container: id}), "run\n")
	eventually(t, "runs after a restart of execd", func() bool {
		return strings.Count(e.logs(&apiv1.LogsRequest{Container: id}), "run\n") > before+1
	})
	if _, _, err := e.stop(id, durationpb.New(0)); err != nil {
		t.Fatal(err)
	}
	time.Sleep(300 * time.Millisecond)
	if st := e.inspect(id).State; st != apiv1.ContainerState_CONTAINER_STATE_EXITED {
		t.Errorf("stopped container is %v", st)
	}
}
