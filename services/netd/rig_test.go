package netd

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"berth/internal/account"
	"berth/internal/daemon"
	"berth/internal/faultpoint"
	"berth/libcontainer/netlink"
	"berth/libcontainer/netns"
	apiv1 "berth/proto/berth/api/v1"
	networkv1 "berth/proto/berth/network/v1"
)

// The tests' process plays a host of its own: TestMain starts the test binary
// again in new network and mount namespaces, where the engine's users exist.
// netd is the same binary once more, started by its root and dropping to its own
// user as in real life. The tests play execd, the engine, the containers, and
// the world outside:
//
//	container ═ berth… ┌ the tests' namespace, "the host" ┐ up0 ═════ outside
//	10.88.0.x          │ 10.88.0.1              192.0.2.1 │           192.0.2.2
const (
	roleVariable = "BERTH_NETD_TEST_ROLE"
	roleHost     = "host"
	roleNetd     = "netd"
)

var (
	hostIP    = netip.MustParseAddr("192.0.2.1")
	outsideIP = netip.MustParseAddr("192.0.2.2")
)

func TestMain(m *testing.M) {
	switch os.Getenv(roleVariable) {
	case roleNetd:
		daemon.Main(Spec())
	case roleHost:
		if err := becomeHost(); err != nil {
			fmt.Fprintln(os.Stderr, "prepare the host:", err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	if os.Geteuid() != 0 {
		fmt.Println("SKIPPED: all tests of netd need root, for network namespaces")
		os.Exit(0)
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), roleVariable+"="+roleHost)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Run(); err != nil {
		os.Exit(1)
	}
}

// becomeHost gives the process's mount namespace the engine's accounts.
func becomeHost() error {
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return err
	}
	if _, err := account.User(account.Netd); err != nil {
		for file, lines := range map[string]string{
			"/etc/group":  "berth:x:64990:\nberth-engine:x:64991:\n",
			"/etc/passwd": "berth-netd:x:64992:64991::/nonexistent:/usr/sbin/nologin\n",
		} {
			if err := extend(file, lines); err != nil {
				return err
			}
		}
	}
	// As strict as distributions come.
	for _, where := range []string{"all", "default"} {
		if err := os.WriteFile("/proc/sys/net/ipv4/conf/"+where+"/rp_filter", []byte("1"), 0); err != nil {
			return err
		}
	}
	conn, err := netlink.Dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	var up netlink.Batch
	up.SetUp(1)
	return conn.Do(&up)
}

func extend(file, lines string) error {
	old, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp("", "berth")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // the mount keeps it
	defer f.Close()
	if _, err := f.Write(append(old, lines...)); err != nil {
		return err
	}
	if err := f.Chmod(0o644); err != nil {
		return err
	}
	return syscall.Mount(f.Name(), file, "", syscall.MS_BIND, "")
}

// rig is one engine and the world around it.
type rig struct {
	testing.TB
	root, run string
	config    string
	execd     *netns.Server
	stopExecd func()
	netd      *exec.Cmd
	netdEnd   chan error
	netdLog   *logBuffer
	conn      *grpc.ClientConn
	endpoints networkv1.EndpointServiceClient
	networks  apiv1.NetworkServiceClient
	host      *netlink.Conn
	outside   *os.File
	before    []string // interfaces
}

// newRig starts an engine with the given lines in netd's section of the
// configuration. It is taken down, and what it leaves behind counted, at the end.
func newRig(t testing.TB, config ...string) *rig {
	t.Helper()
	r := &rig{TB: t}
	dir, err := os.MkdirTemp("", "berth-netd")
	r.must(err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	r.must(os.Chmod(dir, 0o755))
	r.root, r.run = filepath.Join(dir, "root"), filepath.Join(dir, "run")
	r.config = filepath.Join(dir, "berth.toml")
	r.must(os.WriteFile(r.config, []byte("log_level = \"debug\"\n[netd]\n"+strings.Join(config, "\n")+"\n"), 0o644))
	r.must(os.MkdirAll(filepath.Join(r.run, "engine"), 0o755))

	r.host, err = netlink.Dial()
	r.must(err)
	t.Cleanup(func() { r.host.Close() })
	r.makeOutside()
	r.before = r.interfaces()
	r.startExecd()
	r.startNetd()
	t.Cleanup(r.takeDown)
	return r
}

func (r *rig) must(err error) {
	r.Helper()
	if err != nil {
		r.Fatal(err)
	}
}

// makeOutside makes the namespace behind up0. Its inhabitant routes the
// containers' subnets and the host's loopback to the host, as an attacker next
// door would.
func (r *rig) makeOutside() {
	server := netns.NewServer(netns.Defaults, func(uint32) bool { return true })
	path := filepath.Join(filepath.Dir(r.run), "outside.sock")
	l, err := netns.Listen(path)
	r.must(err)
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	client := netns.NewClient(path, nil)
	ns, err := client.New(context.Background(), "outside")
	r.must(err)
	r.outside, err = server.Get("outside")
	r.must(err)

	var pair netlink.Batch
	pair.AddVeth(netlink.Veth{Name: "up0", PeerName: "eth0", PeerNetNS: int(ns.File.Fd())})
	r.must(r.host.Do(&pair))
	up0, err := r.host.LinkByName("up0")
	r.must(err)
	eth0, err := ns.Conn.LinkByName("eth0")
	r.must(err)
	var there, here netlink.Batch
	there.AddAddress(eth0.Index, netip.PrefixFrom(outsideIP, 24))
	there.SetUp(eth0.Index)
	there.AddRoute(netip.MustParsePrefix("10.88.0.0/15"), hostIP, eth0.Index)
	r.must(ns.Conn.Do(&there))
	here.AddAddress(up0.Index, netip.PrefixFrom(hostIP, 24))
	here.SetUp(up0.Index)
	here.AddRoute(netip.MustParsePrefix("0.0.0.0/0"), outsideIP, up0.Index)
	r.must(r.host.Do(&here))
	ns.Close()
	client.Close()
	l.Close()
	<-served
	server.Drop("outside")
	r.Cleanup(func() {
		var gone netlink.Batch
		gone.DeleteLink(up0.Index)
		r.host.Do(&gone)
		r.outside.Close()
	})
}

// startExecd serves namespaces, as execd does.
func (r *rig) startExecd() {
	r.Helper()
	netd, err := account.User(account.Netd)
	r.must(err)
	r.execd = netns.NewServer(netns.Defaults, func(uid uint32) bool { return uid == uint32(netd.UID) })
	path := filepath.Join(r.run, daemon.NetnsSocket)
	l, err := netns.Listen(path)
	r.must(err)
	gid, err := account.Group(account.Engine)
	r.must(err)
	r.must(os.Chown(path, 0, gid))
	r.must(os.Chmod(path, 0o660))
	served := make(chan error, 1)
	server := r.execd
	go func() { served <- server.Serve(l) }()
	r.stopExecd = sync.OnceFunc(func() {
		l.Close()
		<-served
		for _, id := range server.List() {
			server.Drop(id)
		}
	})
}

// startNetd starts netd, with fault points armed, and waits until it serves.
func (r *rig) startNetd(faults ...string) {
	r.Helper()
	r.launchNetd(faults...)
	r.eventually("netd serves", func() bool {
		_, err := r.endpoints.List(context.Background(), &networkv1.ListRequest{})
		return err == nil
	})
}

// launchNetd starts netd and does not wait.
func (r *rig) launchNetd(faults ...string) {
	r.Helper()
	r.netd = exec.Command("/proc/self/exe", "--root", r.root, "--run", r.run, "--config", r.config)
	r.netd.Env = append(os.Environ(), roleVariable+"="+roleNetd, faultpoint.Env+"="+strings.Join(faults, ";"))
	r.netd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	r.netdLog = &logBuffer{}
	r.netd.Stderr = r.netdLog
	// Pdeathsig comes when the thread dies that started the process: this one
	// stays until netd has ended.
	started, ended, cmd := make(chan error), make(chan error, 1), r.netd
	r.netdEnd = ended
	go func() {
		runtime.LockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			ended <- cmd.Wait()
		}
	}()
	r.must(<-started)
	if r.conn == nil {
		var err error
		r.conn, err = daemon.Dial(filepath.Join(r.run, daemon.NetdSocket))
		r.must(err)
		r.endpoints = networkv1.NewEndpointServiceClient(r.conn)
		r.networks = apiv1.NewNetworkServiceClient(r.conn)
	}
}

// logBuffer is a bytes.Buffer that may be read while it is written.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// killNetd is SIGKILL.
func (r *rig) killNetd() {
	r.Helper()
	r.must(r.netd.Process.Kill())
	<-r.netdEnd
}

func (r *rig) takeDown() {
	if r.Failed() {
		defer func() { r.Log("netd's log:\n" + r.netdLog.String()) }()
	}
	list, err := r.endpoints.List(context.Background(), &networkv1.ListRequest{})
	if err != nil {
		r.Error(err)
	}
	for _, e := range list.GetEndpoints() {
		r.detach(e.ContainerId)
	}
	r.conn.Close()
	r.netd.Process.Signal(syscall.SIGTERM)
	if err := <-r.netdEnd; err != nil {
		r.Errorf("netd ended with %v", err)
	}
	r.stopExecd()
	if r.Failed() {
		return
	}
	// Namespaces that no process is in vanish now, and interfaces with them.
	r.eventually("interfaces are gone", func() bool { return len(r.slotInterfaces()) == 0 })
	for _, name := range r.interfaces() {
		if strings.HasPrefix(name, "berth") || strings.HasPrefix(name, "bb") {
			l, err := r.host.LinkByName(name)
			r.must(err)
			var gone netlink.Batch
			gone.DeleteLink(l.Index)
			r.must(r.host.Do(&gone))
		}
	}
	if got := r.interfaces(); fmt.Sprint(got) != fmt.Sprint(r.before) {
		r.Errorf("interfaces left behind: have %v, had %v", got, r.before)
	}
	if out, err := exec.Command("nft", "flush", "ruleset").CombinedOutput(); err != nil {
		r.Errorf("nft flush ruleset: %v: %s", err, out)
	}
}

func (r *rig) interfaces() []string {
	r.Helper()
	links, err := r.host.Links()
	r.must(err)
	var names []string
	for _, l := range links {
		names = append(names, l.Name)
	}
	return names
}

// slotInterfaces are the ends of veth pairs on the host.
func (r *rig) slotInterfaces() []string {
	var names []string
	for _, n := range r.interfaces() {
		if strings.HasPrefix(n, "bv") {
			names = append(names, n)
		}
	}
	return names
}

func (r *rig) eventually(what string, ok func() bool) {
	r.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if ok() {
			return
		}
	}
	r.Fatalf("not within 10 s: %s\nnetd's log:\n%s", what, r.netdLog)
}

// container is what the engine knows of an attached container.
type container struct {
	*rig
	id   string
	resp *networkv1.AttachResponse
	ip   netip.Addr
	ns   *os.File
}

func (r *rig) attach(id string, spec *apiv1.NetworkSpec) *container {
	r.Helper()
	c, err := r.tryAttach(id, spec)
	r.must(err)
	return c
}

func (r *rig) tryAttach(id string, spec *apiv1.NetworkSpec) (*container, error) {
	resp, err := r.endpoints.Attach(context.Background(), &networkv1.AttachRequest{
		ContainerId: id, ContainerName: "name-" + id, Hostname: id, Network: spec, Ephemeral: true,
	})
	if err != nil {
		return nil, err
	}
	c := &container{rig: r, id: id, resp: resp}
	if len(resp.GetEndpoints()) == 0 {
		return c, nil
	}
	if c.ip, err = netip.ParseAddr(resp.Endpoints[0].IpAddress); err != nil {
		return nil, err
	}
	if c.ns, err = r.execd.Get(resp.Namespace.Id); err != nil {
		return nil, err
	}
	r.Cleanup(func() { c.ns.Close() })
	return c, nil
}

func (r *rig) detach(id string) {
	r.Helper()
	_, err := r.endpoints.Detach(context.Background(), &networkv1.DetachRequest{ContainerId: id})
	r.must(err)
}

func tcp(host, container uint32) *apiv1.PortMapping {
	return &apiv1.PortMapping{HostPort: host, ContainerPort: container, Protocol: "tcp"}
}

// in runs fn on a thread in the namespace ns; the sockets it makes stay there.
func in[T any](r *rig, ns *os.File, fn func() (T, error)) (T, error) {
	type result struct {
		v   T
		err error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // the thread dies with the goroutine
		var res result
		if res.err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); res.err == nil {
			res.v, res.err = fn()
		}
		done <- res
	}()
	res := <-done
	return res.v, res.err
}

// serveTCP answers every connection on port of a namespace with greeting and
// the peer's address.
func (r *rig) serveTCP(ns *os.File, port int, greeting string) {
	r.Helper()
	l, err := in(r, ns, func() (net.Listener, error) { return net.Listen("tcp4", fmt.Sprintf(":%d", port)) })
	r.must(err)
	r.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprintf(c, "%s %s", greeting, c.RemoteAddr())
			c.Close()
		}
	}()
}

func (r *rig) serveUDP(ns *os.File, port int, greeting string) {
	r.Helper()
	c, err := in(r, ns, func() (net.PacketConn, error) { return net.ListenPacket("udp4", fmt.Sprintf(":%d", port)) })
	r.must(err)
	r.Cleanup(func() { c.Close() })
	go func() {
		buf := make([]byte, 100)
		for {
			_, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			c.WriteTo(fmt.Appendf(nil, "%s %s", greeting, from), from)
		}
	}()
}

// ask connects from a namespace (nil: the host) and returns what it is told.
func (r *rig) ask(ns *os.File, network, address string, patience time.Duration) (string, error) {
	dial := func() (net.Conn, error) { return net.DialTimeout(network, address, patience) }
	var c net.Conn
	var err error
	if ns == nil {
		c, err = dial()
	} else {
		c, err = in(r, ns, dial)
	}
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	if network == "udp4" {
		if _, err := c.Write([]byte("?")); err != nil {
			return "", err
		}
	}
	buf := make([]byte, 200)
	n, err := c.Read(buf)
	return string(buf[:n]), err
}

const (
	soon  = 3 * time.Second        // for what must work
	never = 300 * time.Millisecond // for what must not
)

// reach fails the test unless the answer begins with greeting.
func (r *rig) reach(from *os.File, network, address, greeting string) string {
	r.Helper()
	got, err := r.ask(from, network, address, soon)
	if err != nil || !strings.HasPrefix(got, greeting+" ") {
		r.Errorf("%s %s answers %q, %v; want %q", network, address, got, err, greeting)
	}
	return strings.TrimPrefix(got, greeting+" ")
}

// refuse fails the test if there is an answer.
func (r *rig) refuse(from *os.File, network, address string) {
	r.Helper()
	if got, err := r.ask(from, network, address, never); err == nil {
		r.Errorf("%s %s answers %q, want nothing", network, address, got)
	}
}

func (r *rig) ruleset() string {
	r.Helper()
	out, err := exec.Command("nft", "-s", "list", "ruleset").CombinedOutput()
	if err != nil {
		r.Fatalf("nft list ruleset: %v: %s", err, out)
	}
	return string(out)
}
