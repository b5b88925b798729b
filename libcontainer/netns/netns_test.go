package netns

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/libcontainer/netlink"
)

// needRoot skips, loudly, where namespaces cannot be made.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: making network namespaces needs root")
	}
}

func start(t testing.TB) (*Server, *Client, func()) {
	t.Helper()
	needRoot(t)
	server := NewServer(Defaults, func(uid uint32) bool { return uid == 0 })
	path := filepath.Join(t.TempDir(), "netns.sock")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	stop := func() {
		l.Close()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	}
	client := NewClient(path, nil)
	t.Cleanup(func() { client.Close() })
	return server, client, stop
}

func TestHandOver(t *testing.T) {
	server, client, stop := start(t)
	defer stop()
	ctx := context.Background()
	ns, err := client.New(ctx, "one")
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()

	links, err := ns.Conn.Links()
	if err != nil {
		t.Fatal(err)
	}
	if len(links) == 0 || links[0].Name != "lo" || !links[0].Up {
		t.Fatalf("links of a new namespace: %+v, want lo, up", links)
	}
	held, err := server.Get("one")
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	if a, b := inode(t, ns.File), inode(t, held); a != b {
		t.Errorf("client has namespace %d, server holds %d", a, b)
	}
	self, err := os.Open("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer self.Close()
	if inode(t, self) == inode(t, held) {
		t.Error("the new namespace is the process's own")
	}

	if _, err := client.New(ctx, "one"); err == nil {
		t.Error("a second namespace of the same id was made")
	}
	if _, err := client.Get(ctx, "none"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Get of an unknown id: %v, want ErrNotExist", err)
	}
	again, err := client.Get(ctx, "one")
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
	if ids, err := client.List(ctx); err != nil || !slices.Equal(ids, []string{"one"}) {
		t.Errorf("List = %v, %v", ids, err)
	}
	if err := client.Drop(ctx, "one", "never-was"); err != nil {
		t.Fatal(err)
	}
	if ids, err := client.List(ctx); err != nil || len(ids) != 0 {
		t.Errorf("List after Drop = %v, %v", ids, err)
	}
}

// A veth made from outside has its peer inside, configured through the socket
// that was handed over.
func TestVethIntoHandedNamespace(t *testing.T) {
	_, client, stop := start(t)
	defer stop()
	ctx := context.Background()
	host, err := client.New(ctx, "host")
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	box, err := client.New(ctx, "box")
	if err != nil {
		t.Fatal(err)
	}
	defer box.Close()

	mac := net.HardwareAddr{2, 0, 10, 0, 0, 1}
	var bridge netlink.Batch
	bridge.AddBridge("br0", 1400, mac)
	if err := host.Conn.Do(&bridge); err != nil {
		t.Fatal(err)
	}
	br, err := host.Conn.LinkByName("br0")
	if err != nil {
		t.Fatal(err)
	}
	var veth netlink.Batch
	veth.AddVeth(netlink.Veth{Name: "v0", Master: br.Index, MTU: 1400, PeerName: "eth0",
		PeerMAC: net.HardwareAddr{2, 0, 10, 0, 0, 2}, PeerNetNS: int(box.File.Fd())})
	veth.SetUpBare("v0")
	if err := host.Conn.Do(&veth); err != nil {
		t.Fatal(err)
	}
	near, err := host.Conn.LinkByName("v0")
	if err != nil {
		t.Fatal(err)
	}
	if near.Master != br.Index || !near.Up || near.Kind != "veth" || near.MTU != 1400 {
		t.Errorf("near end %+v, want an up port of %d", near, br.Index)
	}
	hostAddresses, err := host.Conn.Addresses()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range hostAddresses {
		if a.Link == near.Index {
			t.Errorf("the near end has the address %v", a.Prefix)
		}
	}
	eth0, err := box.Conn.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	address := netip.MustParsePrefix("10.0.0.2/24")
	var inside netlink.Batch
	inside.AddAddress(eth0.Index, address)
	inside.SetUp(eth0.Index)
	inside.AddRoute(netip.MustParsePrefix("0.0.0.0/0"), netip.MustParseAddr("10.0.0.1"), eth0.Index)
	if err := box.Conn.Do(&inside); err != nil {
		t.Fatal(err)
	}
	addresses, err := box.Conn.Addresses()
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(addresses, netlink.Address{Link: eth0.Index, Prefix: address}) {
		t.Errorf("addresses %v lack %v", addresses, address)
	}
	for _, a := range addresses {
		if a.Link == eth0.Index && a.Prefix.Addr().Is6() {
			t.Errorf("TestS39: eth0 has the IPv6 address %v", a.Prefix)
		}
	}
	routes, err := box.Conn.Routes()
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(routes, func(r netlink.Route) bool {
		return r.Dst.Bits() == 0 && r.Gateway == netip.MustParseAddr("10.0.0.1")
	}) {
		t.Errorf("no default route in %v", routes)
	}

	// A refusal names the step, the errno stays visible.
	var wrong netlink.Batch
	wrong.AddAddress(eth0.Index, address)
	err = box.Conn.Do(&wrong)
	if !errors.Is(err, unix.EEXIST) {
		t.Errorf("adding an address twice: %v, want EEXIST", err)
	}

	var gone netlink.Batch
	gone.SetGroup(near.Index, 4711)
	gone.DeleteGroup(4711)
	if err := host.Conn.Do(&gone); err != nil {
		t.Fatal(err)
	}
	if _, err := host.Conn.LinkByName("v0"); !errors.Is(err, unix.ENODEV) {
		t.Errorf("v0 after DeleteGroup: %v, want ENODEV", err)
	}
}

func TestServerRestart(t *testing.T) {
	needRoot(t)
	path := filepath.Join(t.TempDir(), "netns.sock")
	lost := make(chan struct{}, 1)
	client := NewClient(path, func() { lost <- struct{}{} })
	defer client.Close()
	ctx := context.Background()
	if _, err := client.List(ctx); !errors.Is(err, ErrUnavailable) {
		t.Fatalf("List without a server: %v, want ErrUnavailable", err)
	}
	for range 2 {
		server := NewServer(nil, func(uint32) bool { return true })
		l, err := Listen(path)
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- server.Serve(l) }()
		ns, err := client.New(ctx, "one")
		if err != nil {
			t.Fatal(err)
		}
		ns.Close()
		l.Close()
		<-done
		select {
		case <-lost:
		case <-time.After(5 * time.Second):
			t.Fatal("the client did not notice the server's end")
		}
	}
}

func TestStrangersAreRefused(t *testing.T) {
	needRoot(t)
	path := filepath.Join(t.TempDir(), "netns.sock")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	server := NewServer(nil, func(uint32) bool { return false })
	go func() { done <- server.Serve(l) }()
	client := NewClient(path, nil)
	if _, err := client.New(context.Background(), "one"); !errors.Is(err, ErrUnavailable) {
		t.Errorf("New as a stranger: %v, want ErrUnavailable", err)
	}
	if ids := server.List(); len(ids) != 0 {
		t.Errorf("the stranger made %v", ids)
	}
	l.Close()
	<-done
}

func inode(t testing.TB, f *os.File) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

func BenchmarkNew(b *testing.B) {
	_, client, stop := start(b)
	defer stop()
	ctx := context.Background()
	for b.Loop() {
		ns, err := client.New(ctx, "one")
		if err != nil {
			b.Fatal(err)
		}
		ns.Close()
		if err := client.Drop(ctx, "one"); err != nil {
			b.Fatal(err)
		}
	}
}
