package netd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"berth/internal/fault"
	"berth/internal/faultpoint"
	"berth/libcontainer/netlink"
	apiv1 "berth/proto/berth/api/v1"
	networkv1 "berth/proto/berth/network/v1"
)

func TestRunsWithoutPrivileges(t *testing.T) {
	r := newRig(t)
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", r.netd.Process.Pid))
	r.must(err)
	const netAdminAndBind = "0000000000001400"
	for _, set := range []string{"CapPrm", "CapEff", "CapBnd"} {
		if !strings.Contains(string(status), set+":\t"+netAdminAndBind) {
			t.Errorf("%s is not NET_ADMIN and NET_BIND_SERVICE only:\n%s", set, status)
		}
	}
	if strings.Contains(string(status), "Uid:\t0") {
		t.Errorf("netd runs as root:\n%s", status)
	}
}

func TestContainersReachEachOtherAndOut(t *testing.T) {
	r := newRig(t)
	a, b := r.attach("a", nil), r.attach("b", nil)
	r.serveTCP(a.ns, 80, "a")
	r.serveUDP(a.ns, 53, "a")
	if from := r.reach(b.ns, "tcp4", a.ip.String()+":80", "a"); !strings.HasPrefix(from, b.ip.String()+":") {
		t.Errorf("b reached a as %s, want %s", from, b.ip)
	}
	r.reach(b.ns, "udp4", a.ip.String()+":53", "a")
	r.reach(nil, "tcp4", a.ip.String()+":80", "a")

	r.serveTCP(r.outside, 9000, "outside")
	if from := r.reach(a.ns, "tcp4", outsideIP.String()+":9000", "outside"); !strings.HasPrefix(from, hostIP.String()+":") {
		t.Errorf("a reached the outside as %s, want the host's address %s", from, hostIP)
	}
}

func TestPublishedPorts(t *testing.T) {
	r := newRig(t)
	web := r.attach("web", &apiv1.NetworkSpec{Ports: []*apiv1.PortMapping{
		tcp(8080, 80),
		{HostPort: 5353, ContainerPort: 53, Protocol: "udp"},
		{HostIp: "127.0.0.1", HostPort: 8081, ContainerPort: 80},
		{HostIp: hostIP.String(), HostPort: 8082, ContainerPort: 80},
		{ContainerPort: 80},
	}})
	other := r.attach("other", nil)
	r.serveTCP(web.ns, 80, "web")
	r.serveTCP(web.ns, 22, "secret")
	r.serveUDP(web.ns, 53, "dns")
	ephemeral := web.resp.Endpoints[0].Ports[4].HostPort
	if ephemeral == 0 {
		t.Fatal("port 0 was not filled in")
	}

	for _, at := range []string{"127.0.0.1:8080", hostIP.String() + ":8080", "127.0.0.1:8081", hostIP.String() + ":8082",
		fmt.Sprintf("127.0.0.1:%d", ephemeral), "10.88.0.1:8080", "127.0.0.5:8080"} {
		r.reach(nil, "tcp4", at, "web")
	}
	r.reach(nil, "udp4", "127.0.0.1:5353", "dns")
	r.reach(nil, "udp4", hostIP.String()+":5353", "dns")

	if from := r.reach(r.outside, "tcp4", hostIP.String()+":8080", "web"); !strings.HasPrefix(from, outsideIP.String()+":") {
		t.Errorf("the container sees %s, want the true client %s", from, outsideIP)
	}
	r.reach(r.outside, "tcp4", hostIP.String()+":8082", "web")
	r.reach(r.outside, "udp4", hostIP.String()+":5353", "dns")

	for _, c := range []*container{other, web} { // web reaches itself: a hairpin
		r.reach(c.ns, "tcp4", hostIP.String()+":8080", "web")
		r.reach(c.ns, "tcp4", "10.88.0.1:8080", "web")
		r.reach(c.ns, "udp4", hostIP.String()+":5353", "dns")
	}

	r.detach("web")
	r.refuse(nil, "tcp4", "127.0.0.1:8080")
	again := r.attach("again", &apiv1.NetworkSpec{Ports: []*apiv1.PortMapping{tcp(8080, 80)}})
	r.serveTCP(again.ns, 80, "again")
	r.reach(nil, "tcp4", "127.0.0.1:8080", "again")
	if again.ip == web.ip {
		t.Errorf("address %s was reused at once", web.ip)
	}
}

// A range of ports is many ports.
func TestManyPorts(t *testing.T) {
	r := newRig(t)
	spec := &apiv1.NetworkSpec{}
	const many = 2000
	for i := range uint32(many) {
		spec.Ports = append(spec.Ports, tcp(10000+i, 10000+i))
	}
	begin := time.Now()
	c := r.attach("many", spec)
	t.Logf("%d ports attached in %v", many, time.Since(begin))
	r.serveTCP(c.ns, 11999, "last")
	r.reach(r.outside, "tcp4", hostIP.String()+":11999", "last")
	r.killNetd()
	r.startNetd()
	begin = time.Now()
	r.detach("many")
	t.Logf("and detached in %v", time.Since(begin))
	r.refuse(nil, "tcp4", "127.0.0.1:11999")
}

// TestS37 and S40: nothing but what is published, to those it is published to.
func TestS37PortsOpenTooFar(t *testing.T) {
	r := newRig(t)
	web := r.attach("web", &apiv1.NetworkSpec{Ports: []*apiv1.PortMapping{{HostIp: "127.0.0.1", HostPort: 8081, ContainerPort: 80}, tcp(8080, 81)}})
	r.serveTCP(web.ns, 80, "web")
	r.serveTCP(web.ns, 81, "web81")
	local, err := net.Listen("tcp4", "127.0.0.1:9999")
	r.must(err)
	defer local.Close()

	check := func() {
		t.Helper()
		for _, at := range []string{
			hostIP.String() + ":8081", // published on loopback only
			web.ip.String() + ":80",   // routed to the bridge
			web.ip.String() + ":81",   // the container port of a published port
			web.ip.String() + ":8080", // the published number at the container's address
			hostIP.String() + ":80",   // not published
			"10.88.0.1:8081",          // the gateway is the host, too
		} {
			r.refuse(r.outside, "tcp4", at)
		}
		r.refuse(web.ns, "tcp4", "10.88.0.1:9999")
	}
	check()
	r.refuseLoopbackFrom(r.outside, 8081)
	r.refuseLoopbackFrom(web.ns, 9999)

	if out, err := exec.Command("nft", "flush", "ruleset").CombinedOutput(); err != nil {
		t.Fatal(err, string(out))
	}
	begin := time.Now()
	r.eventually("rules are repaired", func() bool {
		_, err := r.ask(r.outside, "tcp4", hostIP.String()+":8080", 50*time.Millisecond)
		return err == nil
	})
	if took := time.Since(begin); took > time.Second {
		t.Errorf("the repair took %v, want at most 1 s", took)
	}
	check()
}

// refuseLoopbackFrom routes 127.0.0.1 to the host and tries to connect to it.
func (r *rig) refuseLoopbackFrom(ns *os.File, port int) {
	r.Helper()
	_, err := in(r, ns, func() (bool, error) {
		// "ip" is the test's tool; netd itself runs no program.
		script := "ip addr del 127.0.0.1/8 dev lo; ip route del local 127.0.0.0/8 table local; " +
			"echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet; ip route add 127.0.0.0/8 dev eth0; ip neigh show"
		gateway := "via " + hostIP.String()
		if ns != r.outside {
			gateway = "via 10.88.0.1"
		}
		script = strings.Replace(script, "dev eth0", gateway+" dev eth0", 1)
		out, err := exec.Command("sh", "-c", script).CombinedOutput()
		if err != nil {
			r.Logf("%s", out)
		}
		return true, nil
	})
	r.must(err)
	r.refuse(ns, "tcp4", fmt.Sprintf("127.0.0.1:%d", port))
}

func TestS40TransitPassesUntouched(t *testing.T) {
	r := newRig(t)
	web := r.attach("web", &apiv1.NetworkSpec{Ports: []*apiv1.PortMapping{tcp(9000, 80)}})
	r.serveTCP(web.ns, 80, "web")
	r.serveTCP(r.outside, 9000, "outside")
	r.reach(web.ns, "tcp4", outsideIP.String()+":9000", "outside")
	r.reach(nil, "tcp4", outsideIP.String()+":9000", "outside")
}

func TestS36Spoofing(t *testing.T) {
	r := newRig(t)
	a, b := r.attach("a", nil), r.attach("b", nil)
	r.serveUDP(b.ns, 53, "b")
	r.reach(a.ns, "udp4", b.ip.String()+":53", "b")

	// a gives itself another address; nothing it sends from there arrives.
	got := make(chan string, 10)
	c, err := in(r, b.ns, func() (net.PacketConn, error) { return net.ListenPacket("udp4", ":54") })
	r.must(err)
	defer c.Close()
	go func() {
		buf := make([]byte, 10)
		for {
			_, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			got <- from.String()
		}
	}()
	_, err = in(r, a.ns, func() (bool, error) {
		conn, err := netlink.Dial()
		if err != nil {
			return false, err
		}
		defer conn.Close()
		eth0, err := conn.LinkByName("eth0")
		if err != nil {
			return false, err
		}
		var add netlink.Batch
		add.AddAddress(eth0.Index, netip.MustParsePrefix("10.88.0.200/32"))
		if err := conn.Do(&add); err != nil {
			return false, err
		}
		for _, from := range []string{"10.88.0.200", a.ip.String()} {
			d := net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(from)}}
			c, err := d.Dial("udp4", b.ip.String()+":54")
			if err != nil {
				return false, err
			}
			c.Write([]byte("x"))
			c.Close()
			time.Sleep(50 * time.Millisecond)
		}
		return true, nil
	})
	r.must(err)
	select {
	case from := <-got:
		if !strings.HasPrefix(from, a.ip.String()+":") {
			t.Errorf("a packet from %s arrived", from)
		}
	case <-time.After(soon):
		t.Error("nothing arrived, not even from the true address")
	}

	// With another MAC a is cut off.
	_, err = in(r, a.ns, func() (bool, error) {
		out, err := exec.Command("sh", "-c", "ip link set eth0 down; ip link set eth0 address 02:00:00:00:00:99; ip link set eth0 up").CombinedOutput()
		if err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
		return true, err
	})
	r.must(err)
	r.refuse(a.ns, "udp4", b.ip.String()+":53")
}

// A link-local address would let containers talk beside their network.
func TestS39NoIPv6(t *testing.T) {
	r := newRig(t)
	a := r.attach("a", nil)
	addresses, err := in(r, a.ns, func() ([]netlink.Address, error) {
		conn, err := netlink.Dial()
		if err != nil {
			return nil, err
		}
		defer conn.Close()
		return conn.Addresses()
	})
	r.must(err)
	for _, x := range addresses {
		if x.Prefix.Addr().Is6() && !x.Prefix.Addr().IsLoopback() {
			t.Errorf("the container has %s", x.Prefix)
		}
	}
}

func TestPortConflicts(t *testing.T) {
	r := newRig(t, "pool_size = 0")
	r.attach("a", &apiv1.NetworkSpec{Ports: []*apiv1.PortMapping{tcp(8080, 80)}})
	links := len(r.slotInterfaces())
	_, err := r.tryAttach("b", &apiv1.NetworkSpec{Ports: []*apiv1.PortMapping{tcp(8000, 80), tcp(8080, 80)}})
	if !errors.Is(err, fault.AlreadyExists) || err.Error() != "port 8080/tcp is already in use by container name-a (a)" {
		t.Errorf("a port twice: %v", err)
	}
	l, err := net.Listen("tcp4", "127.0.0.1:8888")
	r.must(err)
	defer l.Close()
	_, err = r.tryAttach("b", &apiv1.NetworkSpec{Ports: []*apiv1.PortMapping{tcp(8888, 80)}})
	if !errors.Is(err, fault.AlreadyExists) || !strings.Contains(err.Error(), "in use by a process of user root") {
		t.Errorf("a port a program listens on: %v", err)
	}
	// Nothing is left of the failures: the other port of the first one is free.
	r.attach("c", &apiv1.NetworkSpec{Ports: []*apiv1.PortMapping{tcp(8000, 80)}})
	r.eventually("no interfaces too many", func() bool { return len(r.slotInterfaces()) <= links+1 })
}

func TestRefusals(t *testing.T) {
	r := newRig(t)
	for name, c := range map[string]struct {
		spec *apiv1.NetworkSpec
		kind fault.Kind
	}{
		"unknown network":     {&apiv1.NetworkSpec{Mode: "nope"}, fault.NotFound},
		"container port 0":    {&apiv1.NetworkSpec{Ports: []*apiv1.PortMapping{tcp(80, 0)}}, fault.InvalidArgument},
		"sctp":                {&apiv1.NetworkSpec{Ports: []*apiv1.PortMapping{{ContainerPort: 1, Protocol: "sctp"}}}, fault.InvalidArgument},
		"address not here":    {&apiv1.NetworkSpec{Ports: []*apiv1.PortMapping{{HostIp: "203.0.113.1", HostPort: 1, ContainerPort: 1}}}, fault.InvalidArgument},
		"ip of another world": {&apiv1.NetworkSpec{Ip: "203.0.113.1"}, fault.InvalidArgument},
		"gateway's ip":        {&apiv1.NetworkSpec{Ip: "10.88.0.1"}, fault.AlreadyExists},
		"dns of two lines":    {&apiv1.NetworkSpec{Dns: []string{"1.1.1.1\nsearch evil"}}, fault.InvalidArgument},
		"search with a space": {&apiv1.NetworkSpec{DnsSearch: []string{"a b"}}, fault.InvalidArgument},
		"bad extra host":      {&apiv1.NetworkSpec{ExtraHosts: []string{"x:y"}}, fault.InvalidArgument},
	} {
		if _, err := r.tryAttach("x", c.spec); !errors.Is(err, c.kind) {
			t.Errorf("%s: %v, want %v", name, err, c.kind)
		}
	}
}

func TestModesAndNames(t *testing.T) {
	r := newRig(t, `dns = ["198.51.100.1"]`)
	for mode, want := range map[string]networkv1.Namespace_Kind{
		"host":        networkv1.Namespace_KIND_HOST,
		"none":        networkv1.Namespace_KIND_PRIVATE,
		"container:x": networkv1.Namespace_KIND_CONTAINER,
		"default":     networkv1.Namespace_KIND_HELD,
		"bridge":      networkv1.Namespace_KIND_HELD,
	} {
		c := r.attach("c", &apiv1.NetworkSpec{Mode: mode})
		if got := c.resp.Namespace.Kind; got != want {
			t.Errorf("mode %s: %v, want %v", mode, got, want)
		}
		if mode == "container:x" && c.resp.Namespace.Id != "x" {
			t.Errorf("mode %s: namespace of %q", mode, c.resp.Namespace.Id)
		}
	}
	c := r.attach("d", &apiv1.NetworkSpec{DnsSearch: []string{"example"}, ExtraHosts: []string{"db:10.0.0.9", "host.internal:host-gateway"}, Ip: "10.88.3.4", MacAddress: "02:00:00:00:00:07"})
	if got := c.resp.Dns; !slices.Equal(got.Nameservers, []string{"198.51.100.1"}) || !slices.Equal(got.Search, []string{"example"}) ||
		!slices.Equal(got.Hosts, []string{"10.0.0.9 db", "10.88.0.1 host.internal"}) {
		t.Errorf("dns %v", got)
	}
	if e := c.resp.Endpoints[0]; e.IpAddress != "10.88.3.4" || e.MacAddress != "02:00:00:00:00:07" || e.Gateway != "10.88.0.1" || e.PrefixLength != 16 {
		t.Errorf("endpoint %v", e)
	}
}

// Repeating an Attach gives the same; a Detach of nothing succeeds.
func TestRetries(t *testing.T) {
	r := newRig(t)
	spec := &apiv1.NetworkSpec{Ports: []*apiv1.PortMapping{tcp(8080, 80)}}
	a, again := r.attach("a", spec), r.attach("a", spec)
	if a.ip != again.ip || a.resp.Namespace.Id != again.resp.Namespace.Id {
		t.Errorf("attached twice: %v and %v", a.resp, again.resp)
	}
	r.detach("a")
	r.detach("a")
	r.detach("never")
}

func TestF42RestartRebuildsTheSame(t *testing.T) {
	r := newRig(t, "pool_size = 0")
	for i := range uint32(20) {
		r.attach(fmt.Sprint("c", i), &apiv1.NetworkSpec{Ports: []*apiv1.PortMapping{tcp(8000+i, 80), {HostIp: "127.0.0.1", HostPort: 8000 + i, ContainerPort: 53, Protocol: "udp"}}})
	}
	before := r.ruleset()
	r.killNetd()
	r.startNetd()
	if after := r.ruleset(); after != before {
		t.Errorf("the ruleset changed\nbefore:\n%s\nafter:\n%s", before, after)
	}
	list, err := r.endpoints.List(context.Background(), &networkv1.ListRequest{})
	r.must(err)
	if len(list.Endpoints) != 20 {
		t.Errorf("%d endpoints after the restart, want 20", len(list.Endpoints))
	}
	if _, err := net.Listen("tcp4", ":8000"); err == nil {
		t.Error("a published port is not reserved after the restart")
	}
	_, err = r.tryAttach("x", &apiv1.NetworkSpec{Ports: []*apiv1.PortMapping{tcp(8000, 80)}})
	if !errors.Is(err, fault.AlreadyExists) {
		t.Errorf("a published port was given away after the restart: %v", err)
	}
}

// A client that was sending before the port was published, or to the container
// that had it before, is answered by the one that has it now.
func TestUDPFlowsFollowThePort(t *testing.T) {
	r := newRig(t)
	c, err := in(r, r.outside, func() (net.Conn, error) { return net.Dial("udp4", hostIP.String()+":5353") })
	r.must(err)
	defer c.Close()
	c.Write([]byte("too early"))
	for _, id := range []string{"one", "two"} {
		dns := r.attach(id, &apiv1.NetworkSpec{Ports: []*apiv1.PortMapping{{HostPort: 5353, ContainerPort: 53, Protocol: "udp"}}})
		r.serveUDP(dns.ns, 53, id)
		r.eventually("the client is answered by "+id, func() bool {
			c.Write([]byte("?"))
			c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
			buf := make([]byte, 50)
			n, _ := c.Read(buf)
			return strings.HasPrefix(string(buf[:n]), id+" ")
		})
		r.detach(id)
	}
}

// TestF41 restarts netd again and again under load.
func TestF41RestartUnderLoad(t *testing.T) {
	r := newRig(t)
	const ports = 20
	for i := range uint32(ports) {
		c := r.attach(fmt.Sprint("c", i), &apiv1.NetworkSpec{Ports: []*apiv1.PortMapping{tcp(8000+i, 80)}})
		r.serveTCP(c.ns, 80, "web")
	}
	stop := make(chan struct{})
	end := sync.OnceFunc(func() { close(stop) })
	var asked, failed atomic.Int64
	var clients sync.WaitGroup
	for i, from := range []*os.File{nil, r.outside, nil, r.outside} {
		clients.Go(func() {
			for n := i; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				address := hostIP.String()
				if i == 0 {
					address = "127.0.0.1"
				}
				asked.Add(1)
				if _, err := r.ask(from, "tcp4", fmt.Sprintf("%s:%d", address, 8000+n%ports), soon); err != nil {
					failed.Add(1)
					t.Errorf("request %d: %v", n, err)
				}
			}
		})
	}
	defer clients.Wait()
	defer end()
	for range 5 {
		time.Sleep(100 * time.Millisecond)
		r.killNetd()
		time.Sleep(50 * time.Millisecond)
		r.startNetd()
	}
	end()
	clients.Wait()
	t.Logf("%d requests, %d failed", asked.Load(), failed.Load())
	if asked.Load() < 100 {
		t.Errorf("only %d requests: that is no load", asked.Load())
	}
}

// Everything is gone after the last container, but for what the pool keeps.
func TestNothingLeaks(t *testing.T) {
	r := newRig(t, "pool_size = 0")
	empty := r.ruleset()
	for round := range 3 {
		var attached sync.WaitGroup
		for i := range uint32(15) {
			attached.Go(func() {
				if _, err := r.tryAttach(fmt.Sprint("c", i), &apiv1.NetworkSpec{Ports: []*apiv1.PortMapping{tcp(8000+i, 80), {ContainerPort: 53, Protocol: "udp"}}}); err != nil {
					t.Error(err)
				}
			})
		}
		attached.Wait()
		if round == 1 { // with processes left inside, so to speak: the tests hold the namespaces
			r.killNetd()
			r.startNetd()
		}
		for i := range 15 {
			r.detach(fmt.Sprint("c", i))
		}
		if got := r.ruleset(); got != empty {
			t.Errorf("rules left behind:\n%s", got)
		}
		r.eventually("interfaces are gone", func() bool { return len(r.slotInterfaces()) == 0 })
		r.eventually("namespaces are dropped", func() bool { return len(r.execd.List()) == 0 })
	}
	sockets, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", r.netd.Process.Pid))
	r.must(err)
	if len(sockets) > 40 {
		t.Errorf("netd has %d descriptors open", len(sockets))
	}
}

// Whatever step netd dies or fails at, nothing is lost and nothing stays.
func TestFaultPoints(t *testing.T) {
	r := newRig(t, "pool_size = 0")
	empty := r.ruleset()
	spec := &apiv1.NetworkSpec{Ports: []*apiv1.PortMapping{tcp(8080, 80)}}
	for _, p := range faultpoint.List() {
		if !strings.HasPrefix(p.Name, "netd.") {
			continue
		}
		for _, action := range []string{"error", "kill"} {
			r.killNetd()
			r.startNetd(p.Name + "=1*" + action)
			_, attachErr := r.tryAttach("a", spec)
			_, detachErr := r.endpoints.Detach(context.Background(), &networkv1.DetachRequest{ContainerId: "a"})
			if action == "kill" {
				select {
				case <-r.netdEnd:
				case <-time.After(5 * time.Second):
					t.Fatalf("%s=kill was not met", p.Name)
				}
				r.startNetd()
			} else if p.Name != "netd.address-freed" && attachErr == nil && detachErr == nil {
				t.Errorf("%s=error was not met", p.Name)
			}
			// The engine reconciles, and the user tries again.
			r.detach("a")
			a := r.attach("a", spec)
			r.serveTCP(a.ns, 80, p.Name)
			r.reach(nil, "tcp4", "127.0.0.1:8080", p.Name)
			r.detach("a")
			// What the attach that failed had made the reaper takes apart, soon.
			r.eventually(p.Name+"="+action+": rules, interfaces and namespaces are gone", func() bool {
				return r.ruleset() == empty && len(r.slotInterfaces()) == 0 && len(r.execd.List()) == 0
			})
		}
	}
}

func TestExecdRestarts(t *testing.T) {
	r := newRig(t, "pool_size = 2")
	a := r.attach("a", nil)
	r.serveTCP(a.ns, 80, "a")
	unused := r.attach("unused", &apiv1.NetworkSpec{Ports: []*apiv1.PortMapping{tcp(8080, 80)}})
	unused.ns.Close()
	r.stopExecd()
	r.eventually("the pool has noticed", func() bool { return len(r.slotInterfaces()) == 1 })
	if _, err := r.tryAttach("b", nil); !errors.Is(err, fault.Unavailable) {
		t.Errorf("attach without execd: %v, want Unavailable", err)
	}
	r.startExecd()
	held, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", a.ns.Fd()))
	r.must(err)
	r.must(r.execd.Adopt(a.resp.Namespace.Id, held))
	b := r.attach("b", nil)
	r.reach(b.ns, "tcp4", a.ip.String()+":80", "a")
	// Its namespace is gone; it gets another.
	anew := r.attach("unused", &apiv1.NetworkSpec{Ports: []*apiv1.PortMapping{tcp(8080, 80)}})
	r.serveTCP(anew.ns, 80, "anew")
	r.reach(nil, "tcp4", "127.0.0.1:8080", "anew")
}

// F-40: what an operator deleted is made again.
func TestF40Repair(t *testing.T) {
	r := newRig(t)
	a := r.attach("a", &apiv1.NetworkSpec{Ports: []*apiv1.PortMapping{tcp(8080, 80)}})
	r.serveTCP(a.ns, 80, "a")
	inspect, err := r.networks.Inspect(context.Background(), &apiv1.NetworkServiceInspectRequest{Network: "bridge"})
	r.must(err)
	for _, name := range []string{inspect.Network.BridgeName, r.hostInterface("a")} {
		l, err := r.host.LinkByName(name)
		r.must(err)
		var gone netlink.Batch
		gone.DeleteLink(l.Index)
		r.must(r.host.Do(&gone))
		r.eventually(name+" is back in service", func() bool {
			_, err := r.ask(nil, "tcp4", "127.0.0.1:8080", 50*time.Millisecond)
			return err == nil
		})
		r.reach(a.ns, "tcp4", "10.88.0.1:8080", "a")
		b := r.attach("b", nil) // from the pool, or made
		r.reach(b.ns, "tcp4", a.ip.String()+":80", "a")
		r.detach("b")

		// The same while netd is away.
		r.killNetd()
		l, err = r.host.LinkByName(name)
		r.must(err)
		var again netlink.Batch
		again.DeleteLink(l.Index)
		r.must(r.host.Do(&again))
		r.startNetd()
		r.reach(nil, "tcp4", "127.0.0.1:8080", "a")
		r.reach(a.ns, "tcp4", "10.88.0.1:8080", "a")
	}
}

func (r *rig) hostInterface(id string) string {
	r.Helper()
	list, err := r.endpoints.List(context.Background(), &networkv1.ListRequest{})
	r.must(err)
	for _, e := range list.Endpoints {
		if e.ContainerId == id {
			return e.HostInterface
		}
	}
	r.Fatalf("no endpoint of %s", id)
	return ""
}

func TestUserNetworks(t *testing.T) {
	r := newRig(t)
	ctx := context.Background()
	create := func(q *apiv1.NetworkServiceCreateRequest) error {
		_, err := r.networks.Create(ctx, q)
		return err
	}
	r.must(create(&apiv1.NetworkServiceCreateRequest{Name: "front"}))
	r.must(create(&apiv1.NetworkServiceCreateRequest{Name: "back", Subnet: "10.89.77.0/24", Internal: true}))
	if err := create(&apiv1.NetworkServiceCreateRequest{Name: "front"}); !errors.Is(err, fault.AlreadyExists) {
		t.Errorf("a name twice: %v", err)
	}
	if err := create(&apiv1.NetworkServiceCreateRequest{Name: "x", Subnet: "10.89.77.128/25"}); !errors.Is(err, fault.AlreadyExists) {
		t.Errorf("a subnet twice: %v", err)
	}
	front := r.attach("f", &apiv1.NetworkSpec{Mode: "front", Ports: []*apiv1.PortMapping{tcp(8080, 80)}})
	back := r.attach("b", &apiv1.NetworkSpec{Mode: "back", Ports: []*apiv1.PortMapping{tcp(8081, 80)}})
	back2, plain := r.attach("b2", &apiv1.NetworkSpec{Mode: "back"}), r.attach("p", nil)
	for _, c := range []*container{front, back, plain} {
		r.serveTCP(c.ns, 80, c.id)
	}
	r.serveTCP(r.outside, 9000, "outside")
	r.reach(back2.ns, "tcp4", back.ip.String()+":80", "b")
	r.refuse(plain.ns, "tcp4", front.ip.String()+":80")
	r.refuse(front.ns, "tcp4", back.ip.String()+":80")
	r.refuse(back.ns, "tcp4", front.ip.String()+":80")
	r.reach(front.ns, "tcp4", outsideIP.String()+":9000", "outside")
	r.refuse(back.ns, "tcp4", outsideIP.String()+":9000")
	r.reach(r.outside, "tcp4", hostIP.String()+":8080", "f")
	r.reach(plain.ns, "tcp4", hostIP.String()+":8080", "f")
	r.refuse(back.ns, "tcp4", hostIP.String()+":8080")   // out of an internal network by a published port
	r.refuse(r.outside, "tcp4", hostIP.String()+":8081") // and into one
	r.reach(nil, "tcp4", "127.0.0.1:8081", "b")          // but the host itself may
	r.reach(back2.ns, "tcp4", "10.89.77.1:8081", "b")    // and its neighbours

	remove := func(name string) error {
		_, err := r.networks.Remove(ctx, &apiv1.NetworkServiceRemoveRequest{Network: name})
		return err
	}
	if err := remove("front"); !errors.Is(err, fault.FailedPrecondition) {
		t.Errorf("removing a network in use: %v", err)
	}
	if err := remove("bridge"); !errors.Is(err, fault.FailedPrecondition) {
		t.Errorf("removing the default network: %v", err)
	}
	r.detach("f")
	r.must(remove("front"))
	time.Sleep(200 * time.Millisecond)
	if log := r.netdLog.String(); strings.Contains(log, "deleted by somebody") {
		t.Error("netd took a network's removal for damage")
	}
	r.killNetd()
	r.startNetd()
	list, err := r.networks.List(ctx, &apiv1.NetworkServiceListRequest{})
	r.must(err)
	var names []string
	for _, n := range list.Networks {
		names = append(names, n.Name)
	}
	if !slices.Equal(names, []string{"back", "bridge", "host", "none"}) {
		t.Errorf("networks after a restart: %v", names)
	}
	r.reach(back2.ns, "tcp4", back.ip.String()+":80", "b")
}

func TestForeignDropIsReported(t *testing.T) {
	r := newRig(t)
	if w := r.attach("a", nil).resp.Warnings; len(w) > 0 {
		t.Errorf("warnings on a host where all is well: %q", w)
	}
	if out, err := exec.Command("nft", "add table ip strict; add chain ip strict guard { type filter hook forward priority 0; policy drop; }").CombinedOutput(); err != nil {
		t.Fatal(err, string(out))
	}
	warned := func() bool {
		a := r.attach("a", nil)
		return slices.ContainsFunc(a.resp.Warnings, func(w string) bool { return strings.Contains(w, "strict/guard") })
	}
	r.eventually("a warning tells of the foreign policy", warned)
	if out, err := exec.Command("nft", "delete table ip strict").CombinedOutput(); err != nil {
		t.Fatal(err, string(out))
	}
	r.eventually("the warning is gone", func() bool { return !warned() })
}

// The first packet after Attach arrives without a retransmission.
func TestReadyWhenAnswered(t *testing.T) {
	r := newRig(t, "pool_size = 0")
	a := r.attach("a", nil)
	r.serveTCP(a.ns, 80, "a")
	b := r.attach("b", nil)
	begin := time.Now()
	r.reach(b.ns, "tcp4", a.ip.String()+":80", "a")
	if took := time.Since(begin); took > 150*time.Millisecond {
		t.Errorf("the first connection took %v", took)
	} else {
		t.Logf("the first connection took %v", took)
	}
}
