package netlink

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// host opens a socket in a network namespace made for the test; the thread that
// is in there dies with the test's goroutine.
func host(t *testing.T) *Conn {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: making a network namespace needs root")
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	c, err := Dial()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func do(t *testing.T, c *Conn, fill func(*Batch)) {
	t.Helper()
	var b Batch
	fill(&b)
	if err := c.Do(&b); err != nil {
		t.Fatal(err)
	}
}

// A batch larger than the socket's buffer holds answers for is sent in parts.
func TestLargeBatch(t *testing.T) {
	c := host(t)
	do(t, c, func(b *Batch) { b.SetUp(1) })
	do(t, c, func(b *Batch) {
		for i := range 1000 {
			b.AddAddress(1, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 32))
		}
	})
	addresses, err := c.Addresses()
	if err != nil {
		t.Fatal(err)
	}
	if len(addresses) < 1000 {
		t.Errorf("%d addresses, want 1000 and those of lo", len(addresses))
	}
}

// One request that fails does not hide the others, and is named.
func TestErrorsOfABatch(t *testing.T) {
	c := host(t)
	var b Batch
	b.SetUp(4711)
	b.SetUp(1)
	b.AddBridge("a-name-that-is-too-long", 0, nil)
	err := c.Do(&b)
	var op *OpError
	if !errors.As(err, &op) || op.Op != "set link 4711 up" || !errors.Is(err, unix.ENODEV) {
		t.Errorf("got %v, want ENODEV of link 4711 first", err)
	}
	if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ERANGE) {
		t.Errorf("the second failure is not in %v", err)
	}
	lo, err := c.LinkByName("lo")
	if err != nil || !lo.Up {
		t.Errorf("lo is %+v, %v; want it up", lo, err)
	}
}

func TestBridgeRoutesNeighbours(t *testing.T) {
	c := host(t)
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	do(t, c, func(b *Batch) { b.AddBridge("br0", 1280, mac) })
	br, err := c.LinkByName("br0")
	if err != nil {
		t.Fatal(err)
	}
	if br.Kind != "bridge" || br.MTU != 1280 || !bytes.Equal(br.MAC, mac) || br.Up {
		t.Errorf("bridge %+v", br)
	}
	subnet := netip.MustParsePrefix("192.0.2.1/24")
	gateway := netip.MustParseAddr("192.0.2.254")
	do(t, c, func(b *Batch) {
		b.AddAddress(br.Index, subnet)
		b.SetUpBare("br0")
		b.AddRoute(netip.MustParsePrefix("198.51.100.0/24"), gateway, br.Index)
		b.AddRoute(netip.MustParsePrefix("0.0.0.0/0"), gateway, br.Index)
		b.AddNeighbour(br.Index, gateway, net.HardwareAddr{2, 0, 0, 0, 0, 2})
	})
	routes, err := c.Routes()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []Route{
		{netip.MustParsePrefix("198.51.100.0/24"), gateway, br.Index},
		{netip.MustParsePrefix("0.0.0.0/0"), gateway, br.Index},
		{subnet.Masked(), netip.Addr{}, br.Index},
	} {
		if !slices.Contains(routes, want) {
			t.Errorf("no route %+v in %+v", want, routes)
		}
	}
	do(t, c, func(b *Batch) { b.DeleteAddress(br.Index, subnet) })
	addresses, err := c.Addresses()
	if err != nil {
		t.Fatal(err)
	}
	if slices.ContainsFunc(addresses, func(a Address) bool { return a.Link == br.Index }) {
		t.Errorf("the bridge still has an address: %v", addresses)
	}
}

func TestWatchDeleted(t *testing.T) {
	c := host(t)
	ctx, cancel := context.WithCancel(context.Background())
	gone := make(chan Deletion, 10)
	var err error
	// The socket must be opened in the namespace of this thread; reading goes
	// on elsewhere.
	done := make(chan struct{})
	ready := make(chan struct{})
	ns, openErr := os.Open("/proc/thread-self/ns/net")
	if openErr != nil {
		t.Fatal(openErr)
	}
	defer ns.Close()
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			close(ready)
			return
		}
		close(ready)
		err = WatchDeleted(ctx, func(d Deletion) { gone <- d })
	}()
	<-ready
	time.Sleep(20 * time.Millisecond)
	do(t, c, func(b *Batch) { b.AddBridge("br0", 0, nil) })
	br, lookErr := c.LinkByName("br0")
	if lookErr != nil {
		t.Fatal(lookErr)
	}
	do(t, c, func(b *Batch) {
		b.AddVeth(Veth{Name: "v0", Master: br.Index, PeerName: "v1", PeerNetNS: int(ns.Fd())})
	})
	port, lookErr := c.LinkByName("v0")
	if lookErr != nil {
		t.Fatal(lookErr)
	}
	expect := func(want ...Deletion) {
		t.Helper()
		for range want {
			select {
			case d := <-gone:
				if !slices.Contains(want, d) {
					t.Errorf("news of %+v, want one of %+v", d, want)
				}
			case <-time.After(5 * time.Second):
				t.Errorf("nothing was noticed, want %+v", want)
			}
		}
	}
	do(t, c, func(b *Batch) { b.SetMaster(port.Index, 0) })
	expect(Deletion{Name: "v0", FromPort: true})
	do(t, c, func(b *Batch) { b.DeleteLink(port.Index) })
	expect(Deletion{Name: "v0"}, Deletion{Name: "v1"})
	do(t, c, func(b *Batch) { b.DeleteLink(br.Index) })
	expect(Deletion{Name: "br0"})
	cancel()
	<-done
	if err != nil {
		t.Error(err)
	}
}

// What the kernel sends is used as slice bounds.
func FuzzParse(f *testing.F) {
	var e encoder
	e.ifinfomsg(7, 1, 0)
	e.attrString(unix.IFLA_IFNAME, "eth0")
	info := e.open(unix.IFLA_LINKINFO)
	e.attrString(unix.IFLA_INFO_KIND, "veth")
	e.shut(info)
	f.Add(e.buf)
	f.Add([]byte{4, 0, 1, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		parseLink(b)
		parseAddress(b)
		parseRoute(b)
		message{body: b}.verdict()
		message{body: b, flags: unix.NLM_F_ACK_TLVS}.verdict()
		message{body: b, flags: unix.NLM_F_ACK_TLVS | unix.NLM_F_CAPPED}.verdict()
	})
}
