package portmap

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"berth/internal/fault"
)

var (
	all      = netip.IPv4Unspecified()
	loopback = netip.MustParseAddr("127.0.0.1")
)

// free picks a port nobody uses.
func free(t *testing.T) uint16 {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return uint16(l.Addr().(*net.TCPAddr).Port)
}

func TestReserveExcludes(t *testing.T) {
	ctx := context.Background()
	table, other := NewTable(), NewTable()
	n := free(t)
	for _, protocol := range []Protocol{TCP, UDP} {
		p := Port{all, n, protocol}
		if _, err := table.Reserve(ctx, "container web", []Port{p}); err != nil {
			t.Fatal(err)
		}
		if _, err := table.Reserve(ctx, "container db", []Port{{loopback, n, protocol}}); !errors.Is(err, fault.AlreadyExists) {
			t.Errorf("%s twice: %v, want AlreadyExists", p, err)
		} else if want := fmt.Sprintf("port 127.0.0.1:%d/%s is already in use by container web", n, protocol); err.Error() != want {
			t.Errorf("got %q, want %q", err, want)
		}
		if _, err := other.Reserve(ctx, "other engine", []Port{p}); !errors.Is(err, fault.AlreadyExists) {
			t.Errorf("another engine reserved %s too: %v", p, err)
		}
	}
	if l, err := net.Listen("tcp4", fmt.Sprintf(":%d", n)); err == nil {
		l.Close()
		t.Error("a program listens on a reserved TCP port")
	}
	if c, err := net.ListenPacket("udp4", fmt.Sprintf(":%d", n)); err == nil {
		c.Close()
		t.Error("a program listens on a reserved UDP port")
	}
	if c, err := net.DialTimeout("tcp4", fmt.Sprintf("127.0.0.1:%d", n), time.Second); err == nil {
		c.Close()
		t.Error("the reservation accepts connections")
	}
	table.Release("container web", []Port{{all, n, TCP}, {all, n, UDP}})
	if table.Len() != 0 {
		t.Errorf("%d ports held after release", table.Len())
	}
	if _, err := other.Reserve(ctx, "other engine", []Port{{all, n, TCP}}); err != nil {
		t.Errorf("after release: %v", err)
	}
}

func TestConflictNamesTheProgram(t *testing.T) {
	l, err := net.Listen("tcp", ":0") // an IPv6 socket that takes IPv4 too
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	n := uint16(l.Addr().(*net.TCPAddr).Port)
	_, err = NewTable().Reserve(context.Background(), "x", []Port{{all, n, TCP}})
	if !errors.Is(err, fault.AlreadyExists) || !strings.Contains(err.Error(), fmt.Sprintf("(pid %d)", os.Getpid())) {
		t.Errorf("%v, want AlreadyExists and our pid", err)
	}
}

// A port that was served a moment ago can be published at once.
func TestTimeWaitIsNoConflict(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n := uint16(l.Addr().(*net.TCPAddr).Port)
	client, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	server.Close() // the side that closes first keeps the TIME_WAIT
	client.Read(make([]byte, 1))
	client.Close()
	l.Close()
	time.Sleep(20 * time.Millisecond)
	table := NewTable()
	if _, err := table.Reserve(context.Background(), "x", []Port{{all, n, TCP}}); err != nil {
		t.Error(err)
	}
	table.Release("x", []Port{{all, n, TCP}})
}

func TestLeavingIsWaitedFor(t *testing.T) {
	table := NewTable()
	p := []Port{{all, free(t), TCP}}
	if _, err := table.Reserve(context.Background(), "old", p); err != nil {
		t.Fatal(err)
	}
	table.Leave("old", p)
	done := make(chan error, 1)
	go func() {
		_, err := table.Reserve(context.Background(), "new", p)
		done <- err
	}()
	select {
	case err := <-done:
		t.Fatalf("did not wait: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	table.Release("old", p)
	if err := <-done; err != nil {
		t.Error(err)
	}
	table.Release("new", p)
}

func TestAnyAndAllOrNothing(t *testing.T) {
	ctx := context.Background()
	table := NewTable()
	got, err := table.Reserve(ctx, "a", []Port{{all, 0, TCP}, {loopback, 0, UDP}})
	if err != nil {
		t.Fatal(err)
	}
	if got[0].Number < table.low || got[0].Number > table.high || got[1].Number == 0 {
		t.Errorf("got %v, want ports of %d-%d", got, table.low, table.high)
	}
	if _, err := table.Reserve(ctx, "b", []Port{{all, free(t), TCP}, got[0]}); err == nil {
		t.Error("reserved a held port")
	}
	if table.Len() != 2 {
		t.Errorf("%d held after a half failed reservation, want 2", table.Len())
	}
	if _, err := table.Reserve(ctx, "c", []Port{{netip.MustParseAddr("192.0.2.1"), 80, TCP}}); !errors.Is(err, fault.InvalidArgument) {
		t.Errorf("an address that is not the host's: %v", err)
	}
}
