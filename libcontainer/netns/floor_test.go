package netns

import (
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/libcontainer/netlink"
)

// BenchmarkFloor is what the kernel itself takes for a container's network: the
// system calls, by one thread, without daemons, sockets between them, or rules.
// cpu-µs/STAGE is the thread's CPU time; taking it all apart again, which the
// kernel does on its own threads, is not in it.
func BenchmarkFloor(b *testing.B) {
	needRoot(b)
	for _, others := range []int{0, 500, 900} {
		b.Run(fmt.Sprintf("ports=%d", others), func(b *testing.B) {
			err := aside(func() error { return benchmarkFloor(b, others) })
			if err != nil {
				b.Error(err)
			}
		})
	}
}

func benchmarkFloor(b *testing.B, others int) error {
	home, err := createHere(nil)
	defer home.close()
	if err != nil {
		return err
	}
	host := netlink.NewConn(home.socket)
	var bridge netlink.Batch
	bridge.AddBridge("br0", 1500, net.HardwareAddr{2, 0, 10, 0, 0, 1})
	if err := host.Do(&bridge); err != nil {
		return err
	}
	br, err := host.LinkByName("br0")
	if err != nil {
		return err
	}
	f := floor{host: host, home: int(home.ns.Fd()), bridge: br.Index, spent: map[string]time.Duration{}}
	for range others {
		m, err := f.container()
		defer m.close()
		if err != nil {
			return err
		}
	}
	clear(f.spent)
	for b.Loop() {
		m, err := f.container()
		m.close()
		if err != nil {
			return err
		}
	}
	var all time.Duration
	for stage, spent := range f.spent {
		b.ReportMetric(spent.Seconds()*1e6/float64(b.N), "cpu-µs/"+stage)
		all += spent
	}
	b.ReportMetric(all.Seconds()*1e6/float64(b.N), "cpu-µs/all")
	return nil
}

type floor struct {
	host   *netlink.Conn
	home   int
	bridge int
	made   int
	spent  map[string]time.Duration
}

// container makes one network, on the calling thread.
func (f *floor) container() (m made, err error) {
	f.made++
	port, ip := fmt.Sprint("v", f.made), netip.AddrFrom4([4]byte{10, 0, byte(f.made >> 8), byte(f.made)})
	m.socket = -1
	var inside *netlink.Conn
	var link netlink.Link
	step := func(stage string, work func() error) {
		if err != nil {
			return
		}
		begin := threadCPU()
		err = work()
		f.spent[stage] += threadCPU() - begin
	}
	do := func(c *netlink.Conn, fill func(*netlink.Batch)) func() error {
		return func() error {
			var batch netlink.Batch
			fill(&batch)
			return c.Do(&batch)
		}
	}
	step("namespace", func() (err error) {
		if err = unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		if m.socket, err = netlink.Socket(); err == nil {
			inside = netlink.NewConn(m.socket)
			m.ns, err = namespaceOf(m.socket)
		}
		return err
	})
	step("parameters", func() error {
		tree, err := kernelParameters.borrow()
		for _, s := range Defaults {
			if err == nil {
				err = tree.set(s)
			}
		}
		return err
	})
	step("lo", func() error { return do(inside, func(b *netlink.Batch) { b.SetUp(loIndex) })() })
	step("pair", func() error {
		return do(f.host, func(b *netlink.Batch) {
			b.AddVeth(netlink.Veth{Name: port, Master: f.bridge, PeerName: "eth0", PeerNetNS: int(m.ns.Fd())})
		})()
	})
	step("inside", func() (err error) {
		if link, err = inside.LinkByName("eth0"); err != nil {
			return err
		}
		return do(inside, func(b *netlink.Batch) {
			b.AddAddress(link.Index, netip.PrefixFrom(ip, 8))
			b.SetUp(link.Index)
			b.AddRoute(netip.MustParsePrefix("0.0.0.0/0"), netip.MustParseAddr("10.255.0.1"), link.Index)
		})()
	})
	step("up", func() error {
		if err := unix.Setns(f.home, unix.CLONE_NEWNET); err != nil {
			return err
		}
		tree := parameterTree{fd: kernelParameters.fd}
		if err := tree.set(Sysctl{"net.ipv6.conf." + port + ".disable_ipv6", "1"}); err != nil {
			return err
		}
		return do(f.host, func(b *netlink.Batch) { b.SetPortUp(port) })()
	})
	runtime.KeepAlive(inside)
	return m, err
}

func threadCPU() time.Duration {
	var t unix.Timespec
	unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t)
	return time.Duration(t.Nano())
}
