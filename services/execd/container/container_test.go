package container

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"berth/internal/fault"
	apiv1 "berth/proto/berth/api/v1"
)

func id(n int) string { return fmt.Sprintf("%064x", n+0x1000) }

func add(t testing.TB, s *Store, n int, name string) *Container {
	t.Helper()
	name, err := s.Reserve(id(n), name)
	if err != nil {
		t.Fatal(err)
	}
	c := New(&Info{ID: id(n), Name: name, State: Created, Spec: &apiv1.ContainerSpec{}, CreatedAt: time.Unix(int64(n), 0)}, nil)
	s.Add(c)
	return c
}

func TestFind(t *testing.T) {
	s := NewStore()
	a := add(t, s, 0xabc, "web")
	add(t, s, 0xabd, "db")
	for _, ref := range []string{"web", id(0xabc)} {
		if got, err := s.Find(ref); err != nil || got != a {
			t.Errorf("find %q: %v, %v", ref, got, err)
		}
	}
	if _, err := s.Find("000"); !errors.Is(err, fault.FailedPrecondition) {
		t.Errorf("ambiguous prefix: %v", err)
	}
	for _, ref := range []string{"", "nobody", "abc"} {
		if _, err := s.Find(ref); !errors.Is(err, fault.NotFound) {
			t.Errorf("find %q: %v, want not found", ref, err)
		}
	}
}

func TestNames(t *testing.T) {
	s := NewStore()
	a := add(t, s, 1, "a")
	if _, err := s.Reserve(id(2), "a"); !errors.Is(err, fault.AlreadyExists) {
		t.Errorf("second of a name: %v", err)
	}
	for _, bad := range []string{"-x", ".", "a b", "a/b", "é", "a\n", strings.Repeat("x", 129), "../x"} {
		if _, err := s.Reserve(id(2), bad); !errors.Is(err, fault.InvalidArgument) {
			t.Errorf("name %q: %v, want invalid", bad, err)
		}
	}
	for _, bad := range []string{"", "abc", id(1)[:63], strings.ToUpper(fmt.Sprintf("%064x", 0xabc)), "../" + id(1)[3:]} {
		if _, err := s.Reserve(bad, ""); !errors.Is(err, fault.InvalidArgument) {
			t.Errorf("id %q: %v, want invalid", bad, err)
		}
	}
	s.Drop(a)
	if _, err := s.Reserve(id(2), "a"); err != nil {
		t.Errorf("name of a removed container: %v", err)
	}
}

func TestInventedNamesAreUnique(t *testing.T) {
	s := NewStore()
	for n := range 5000 {
		c := add(t, s, n, "")
		if err := CheckName(c.Info().Name); err != nil {
			t.Fatal(err)
		}
	}
	if len(s.names) != 5000 {
		t.Errorf("%d names for 5000 containers", len(s.names))
	}
}

// F-24: whatever many do to one container at once, its history is a legal one.
func TestF24EveryHistoryIsLegal(t *testing.T) {
	events := []Event{Start, Started, StartFailed, Exit, Again, GiveUp, Pause, Unpause, Break, Remove, Removed}
	for round := range 50 {
		var mu sync.Mutex
		history := []State{Created}
		c := New(&Info{ID: id(round), State: Created}, func(i *Info) error {
			mu.Lock()
			defer mu.Unlock()
			history = append(history, i.State)
			return nil
		})
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				for range 100 {
					c.Move(events[rand.IntN(len(events))], nil)
				}
			})
		}
		wg.Wait()
		for i := 1; i < len(history); i++ {
			if !reachable(history[i-1], history[i]) {
				t.Fatalf("%s followed %s", history[i], history[i-1])
			}
		}
	}
}

func reachable(from, to State) bool {
	for _, next := range transitions[from] {
		if next == to {
			return true
		}
	}
	return false
}

func TestEveryStateCanBeLeftTowardsGone(t *testing.T) {
	for from := range transitions {
		seen := map[State]bool{from: true}
		for todo := []State{from}; len(todo) > 0; todo = todo[1:] {
			for _, next := range transitions[todo[0]] {
				if !seen[next] {
					seen[next] = true
					todo = append(todo, next)
				}
			}
		}
		if !seen[Gone] {
			t.Errorf("a container that is %s can never be removed", from)
		}
	}
}

func TestFailedPersistChangesNothing(t *testing.T) {
	full := errors.New("disk full")
	c := New(&Info{ID: id(1), State: Created}, func(*Info) error { return full })
	if _, err := c.Move(Start, nil); !errors.Is(err, full) {
		t.Errorf("got %v", err)
	}
	if s := c.Info().State; s != Created {
		t.Errorf("state %s", s)
	}
	// What has happened has happened (F-12).
	c.info.Store(&Info{ID: id(1), State: Running})
	if i, err := c.Must(Exit, func(i *Info) { i.Runs++ }); !errors.Is(err, full) || i.State != Exited || c.Info().Runs != 1 {
		t.Errorf("exit on a full disk: %v, %v", i, err)
	}
	if i, err := c.Must(Exit, func(i *Info) { i.Runs++ }); i != nil || !errors.Is(err, fault.FailedPrecondition) {
		t.Errorf("illegal event: %v, %v", i, err)
	}
}

func TestWaitSeesTheChange(t *testing.T) {
	c := New(&Info{ID: id(1), State: Created}, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	done := c.Done(ctx, func(i *Info) bool { return i.State == Running })
	c.Move(Start, nil)
	select {
	case <-done:
		t.Fatal("done too early")
	case <-time.After(10 * time.Millisecond):
	}
	c.Move(Started, nil)
	select {
	case <-done:
	case <-ctx.Done():
		t.Fatal("change not seen")
	}
}
