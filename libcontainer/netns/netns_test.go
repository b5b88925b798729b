package netns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
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

// TestNewBatch: all or none, each a namespace of its own with the parameters of
// every namespace, however often the procfs they are set through is renewed.
func TestNewBatch(t *testing.T) {
	server, client, stop := start(t)
	defer stop()
	ctx := context.Background()
	inodes := map[uint64]bool{}
	for round := range 3 {
		var ids []string
		for i := range renewAfter/2 + 1 {
			ids = append(ids, fmt.Sprintf("r%d-%d", round, i))
		}
		list, err := client.NewBatch(ctx, ids)
		if err != nil {
			t.Fatal(err)
		}
		for i, ns := range list {
			if ns.ID != ids[i] {
				t.Errorf("namespace %d is %s, want %s", i, ns.ID, ids[i])
			}
			inodes[inode(t, ns.File)] = true
			for _, s := range Defaults {
				if got := parameter(t, ns.File, s.Name); got != s.Value {
					t.Errorf("%s: %s is %q, want %q", ns.ID, s.Name, got, s.Value)
				}
			}
			ns.Close()
		}
	}
	const want = 3 * (renewAfter/2 + 1)
	if len(inodes) != want || len(server.List()) != want {
		t.Errorf("%d different namespaces, %d held, want %d", len(inodes), len(server.List()), want)
	}
	if _, err := client.NewBatch(ctx, []string{"new", "r0-0"}); err == nil {
		t.Error("a batch with an id that exists was made")
	}
	if _, err := client.NewBatch(ctx, []string{"twice", "twice"}); err == nil {
		t.Error("a batch with an id twice was made")
	}
	if _, err := client.NewBatch(ctx, make([]string, MaxNew+1)); err == nil {
		t.Error("a batch too large was made")
	}
	if n := len(server.List()); n != want {
		t.Errorf("%d held after batches that were refused, want %d", n, want)
	}
	if err := client.Drop(ctx, server.List()...); err != nil {
		t.Fatal(err)
	}
}

// parameter reads a sysctl of a namespace, whose values are words.
func parameter(t *testing.T, ns *os.File, name string) string {
	t.Helper()
	var text []byte
	err := aside(func() (err error) {
		if err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err == nil {
			text, err = os.ReadFile("/proc/sys/" + strings.ReplaceAll(name, ".", "/"))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(strings.Fields(string(text)), " ")
}

// Where the kernel makes no procfs for us alone, /proc does.
func TestParametersThroughSharedProc(t *testing.T) {
	needRoot(t)
	err := aside(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		fd, err := unix.Open("/proc", unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		tree := parameterTree{fd: fd}
		for _, s := range append(slices.Clone(Defaults), Sysctl{"net.no.such", "1"}) {
			if err := tree.set(s); err != nil {
				return err
			}
		}
		if err := tree.set(Sysctl{"kernel.hostname", "x"}); err == nil {
			t.Error("a parameter of the host was set")
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// BenchmarkNew makes and drops namespaces, so many by one request, while so many
// others exist. cpu-µs is of this process, which is server and client, for each
// namespace; the kernel takes them apart on its own time.
func BenchmarkNew(b *testing.B) {
	for _, others := range []int{0, 1000} {
		for _, size := range []int{1, 8} {
			b.Run(fmt.Sprintf("others=%d,batch=%d", others, size), func(b *testing.B) { benchmarkNew(b, others, size) })
		}
	}
}

func benchmarkNew(b *testing.B, others, size int) {
	_, client, stop := start(b)
	defer stop()
	ctx := context.Background()
	makeBatch := func(prefix string, n int) []string {
		ids := make([]string, n)
		for i := range ids {
			ids[i] = fmt.Sprint(prefix, i)
		}
		list, err := client.NewBatch(ctx, ids)
		if err != nil {
			b.Fatal(err)
		}
		for _, ns := range list {
			ns.Close()
		}
		return ids
	}
	for i := 0; i < others; i += 50 {
		makeBatch(fmt.Sprintf("other%d-", i), 50)
	}
	begin := cpuTime()
	for b.Loop() {
		if err := client.Drop(ctx, makeBatch("n", size)...); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64((cpuTime()-begin).Microseconds())/float64(b.N*size), "cpu-µs/namespace")
	ids, err := client.List(ctx)
	if err != nil {
		b.Fatal(err)
	}
	if err := client.Drop(ctx, ids...); err != nil {
		b.Fatal(err)
	}
}

func cpuTime() time.Duration {
	var u unix.Rusage
	unix.Getrusage(unix.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
