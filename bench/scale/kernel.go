package main

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/google/nftables"

	"berth/internal/journal"
	"berth/libcontainer/cgroup"
	"berth/libcontainer/netlink"
	"berth/libcontainer/netns"
)

// kernelProbes are the serial sections of the kernel that a start goes through, and those whose cost might be, so that a
// reader sees that it was looked at. work is a directory on the disk to measure.
func kernelProbes(work string) []*probe {
	return []*probe{
		vethProbe(), unvethProbe(), addressProbe(), teardownProbe(few), teardownProbe(reaped), netnsProbe(), nftProbe(),
		cgroupProbe(), attachProbe(), mountProbe(), mntnsProbe(), overlayProbe(work),
		spawnProbe(), rcuProbe(), journalProbe(work),
	}
}

// few is how many namespaces are taken apart together when there is little to do.
const few = 8

// slots is how many slots the network daemon makes together (services/netd/slot).
const slots = 8

// net is a bridge with ports whose other ends are in namespaces of their own.
type bridgeNet struct {
	host   *netlink.Conn
	name   string
	index  int
	group  uint32 // marks those of its ports that are deleted together
	serial int
	spaces []*os.File // of the ports that stay
	names  []string   // of these ports
}

// bridges counts them: no two have the same name, nor do their ports.
var bridges atomic.Int32

func newBridge() (*bridgeNet, error) {
	name := fmt.Sprintf("sc%d", bridges.Add(1))
	host, err := netlink.Dial()
	if err != nil {
		return nil, err
	}
	var b netlink.Batch
	b.AddBridge(name, 1500, net.HardwareAddr{2, 0, 10, 0, 0, 1})
	b.SetUpBare(name)
	if err := host.Do(&b); err != nil {
		return nil, err
	}
	l, err := host.LinkByName(name)
	return &bridgeNet{host: host, name: name, index: l.Index, group: uint32(l.Index) | 1<<31}, err
}

// add makes ports, the far end of each in a namespace, and brings them up: what the network daemon does for a slot, but
// for the namespace itself and the addresses in it.
func (b *bridgeNet) add(spaces []*os.File) (names []string, err error) {
	var pairs, up netlink.Batch
	for _, ns := range spaces {
		b.serial++
		name := fmt.Sprintf("%sp%d", b.name, b.serial)
		pairs.AddVeth(netlink.Veth{Name: name, Master: b.index, PeerName: "eth0", PeerMAC: net.HardwareAddr{2, 1, 0, 0, byte(b.serial >> 8), byte(b.serial)}, PeerNetNS: int(ns.Fd())})
		up.SetPortUp(name)
		names = append(names, name)
	}
	if err := b.host.Do(&pairs); err != nil {
		return names, err
	}
	for _, name := range names { // as the network daemon does: else the kernel walks all ports' multicast routes
		_ = os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/disable_ipv6", []byte("1"), 0)
	}
	return names, b.host.Do(&up)
}

func (b *bridgeNet) remove(names []string) error {
	var batch netlink.Batch
	for _, name := range names {
		l, err := b.host.LinkByName(name)
		if err != nil {
			return err
		}
		batch.SetGroup(l.Index, b.group)
	}
	batch.DeleteGroup(b.group)
	return b.host.Do(&batch)
}

// grow fills the bridge up to n ports that stay.
func (b *bridgeNet) grow(n int) error {
	for len(b.spaces) < n {
		var batch []*os.File
		for range min(slots, n-len(b.spaces)) {
			ns, err := netns.New(nil)
			if err != nil {
				return err
			}
			b.spaces, batch = append(b.spaces, ns), append(batch, ns)
		}
		names, err := b.add(batch)
		if err != nil {
			return err
		}
		b.names = append(b.names, names...)
	}
	return nil
}

func (b *bridgeNet) end() {
	if b == nil {
		return
	}
	closeAll(b.spaces)
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline) && slices.ContainsFunc(b.names, b.has); {
		time.Sleep(20 * time.Millisecond) // what takes them apart would disturb the next probe
	}
	var batch netlink.Batch
	batch.DeleteLink(b.index)
	_ = b.host.Do(&batch)
	_ = b.host.Close()
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}

// spacesFor makes namespaces that a worker uses again and again.
func spacesFor(n int) (list []*os.File, err error) {
	for range n {
		ns, err := netns.New(nil)
		if err != nil {
			closeAll(list)
			return nil, err
		}
		list = append(list, ns)
	}
	return list, nil
}

// portProbe has a crowd in one bridge; each thread works in that bridge, or, with two, in one of two such bridges.
func portProbe(p *probe, op func(number int, b *bridgeNet, spaces []*os.File) func() error) *probe {
	var bridge *bridgeNet
	p.most = 900 // of 1,023 ports: the probe needs some too
	p.crowd = func(n int) (err error) {
		if bridge == nil {
			if bridge, err = newBridge(); err != nil {
				return err
			}
		}
		return bridge.grow(n)
	}
	p.worker = func(number int) (func() error, func(), error) {
		b, mine := bridge, false
		if number > 0 { // RTNL is one for all bridges
			var err error
			if b, err = newBridge(); err != nil {
				return nil, nil, err
			}
			mine = true
		}
		spaces, err := spacesFor(slots)
		done := func() {
			closeAll(spaces)
			if mine {
				b.end()
			}
		}
		return op(number, b, spaces), done, err
	}
	p.close = func() { bridge.end() }
	return p
}

// lastPorts are what each worker's last op left.
type lastPorts [2][]string

func vethProbe() *probe {
	var left lastPorts
	var bridges [2]*bridgeNet
	p := &probe{name: "veth", title: "pair of interfaces made, put into a bridge with N ports and brought up; eight together", lock: "RTNL", each: slots}
	p = portProbe(p, func(number int, b *bridgeNet, spaces []*os.File) func() error {
		bridges[number], left[number] = b, nil
		return func() (err error) {
			left[number], err = b.add(spaces)
			return err
		}
	})
	p.before = func(number int) error {
		if left[number] == nil {
			return nil
		}
		return bridges[number].remove(left[number])
	}
	return p
}

func unvethProbe() *probe {
	var left lastPorts
	var bridges [2]*bridgeNet
	var inside [2][]*os.File
	p := &probe{name: "unveth", title: "pair of interfaces deleted from a bridge with N ports; eight together", lock: "RTNL", each: slots}
	p = portProbe(p, func(number int, b *bridgeNet, spaces []*os.File) func() error {
		bridges[number], inside[number] = b, spaces
		return func() error { return b.remove(left[number]) }
	})
	p.before = func(number int) (err error) {
		left[number], err = bridges[number].add(inside[number])
		return err
	}
	return p
}

func addressProbe() *probe {
	p := &probe{name: "address", title: "address, route and state inside a namespace", lock: "RTNL"}
	p.worker = func(number int) (func() error, func(), error) {
		if err := syscall.Unshare(syscall.CLONE_NEWNET); err != nil {
			return nil, nil, err
		}
		c, err := netlink.Dial()
		if err != nil {
			return nil, nil, err
		}
		var b netlink.Batch
		b.AddBridge("eth0", 1500, net.HardwareAddr{2, 0, 10, 0, 0, 1})
		if err := c.Do(&b); err != nil {
			return nil, nil, err
		}
		l, err := c.LinkByName("eth0")
		prefix := netip.MustParsePrefix("10.9.0.2/16")
		return func() error {
			var add, del netlink.Batch
			add.AddAddress(l.Index, prefix)
			add.SetUp(l.Index)
			add.AddRoute(netip.MustParsePrefix("0.0.0.0/0"), netip.MustParseAddr("10.9.0.1"), l.Index)
			if err := c.Do(&add); err != nil {
				return err
			}
			del.DeleteAddress(l.Index, prefix)
			return c.Do(&del)
		}, func() { _ = c.Close() }, err
	}
	return p
}

// teardownProbe waits until the kernel has taken namespaces with their interfaces apart. One thread of the kernel does it,
// for all that died meanwhile; much of it is waiting for grace periods, once for all of them. So the time is that of so
// many together.
func teardownProbe(together int) *probe {
	p := &probe{name: fmt.Sprintf("teardown%d", together), lock: "cleanup_net", wall: true, alone: true,
		title: fmt.Sprintf("%d namespaces with an interface each taken apart by the kernel, from a bridge with N ports", together)}
	var spaces []*os.File
	var names []string
	p = portProbe(p, func(_ int, b *bridgeNet, _ []*os.File) func() error {
		p.before = func(int) (err error) {
			if spaces, err = spacesFor(together); err == nil {
				names, err = b.add(spaces)
			}
			return err
		}
		return func() error {
			closeAll(spaces)
			for _, name := range names {
				for b.has(name) {
					time.Sleep(100 * time.Microsecond)
				}
			}
			return nil
		}
	})
	return p
}

// has asks the kernel: /sys shows the interfaces of the namespace that it was mounted in.
func (b *bridgeNet) has(name string) bool { _, err := b.host.LinkByName(name); return err == nil }

func netnsProbe() *probe {
	return &probe{name: "netns", title: "network namespace made", worker: func(int) (func() error, func(), error) {
		return func() error { return syscall.Unshare(syscall.CLONE_NEWNET) }, nil, nil
	}}
}

func nftProbe() *probe {
	p := &probe{name: "nft", title: "transaction that adds an element to a set of N, and one that takes it away", lock: "nftables commit"}
	var c *nftables.Conn
	var set *nftables.Set
	have := 0
	element := func(i int) []nftables.SetElement {
		return []nftables.SetElement{{Key: []byte{10, byte(i >> 16), byte(i >> 8), byte(i)}}}
	}
	p.crowd = func(n int) (err error) {
		if c == nil {
			if c, err = nftables.New(); err != nil {
				return err
			}
			table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "scale"})
			set = &nftables.Set{Table: table, Name: "s", KeyType: nftables.TypeIPAddr}
			if err := c.AddSet(set, nil); err != nil {
				return err
			}
		}
		for ; have < n; have++ {
			if err := c.SetAddElements(set, element(have)); err != nil {
				return err
			}
			if have%100 == 99 {
				if err := c.Flush(); err != nil {
					return err
				}
			}
		}
		return c.Flush()
	}
	p.worker = func(number int) (func() error, func(), error) {
		mine, err := nftables.New()
		if err != nil {
			return nil, nil, err
		}
		e := element(1<<20 + number)
		return func() error {
			if err := mine.SetAddElements(set, e); err != nil {
				return err
			}
			if err := mine.Flush(); err != nil {
				return err
			}
			if err := mine.SetDeleteElements(set, e); err != nil {
				return err
			}
			return mine.Flush()
		}, nil, nil
	}
	p.close = func() {
		if set != nil {
			c.DelTable(set.Table)
			_ = c.Flush()
		}
	}
	return p
}

// groups are control groups below one of the bench's.
type groups struct {
	parent *cgroup.Parent
	list   []*cgroup.Group
}

func (g *groups) grow(n int) error {
	if g.parent == nil {
		layout, err := cgroup.Detect()
		if err != nil {
			return err
		}
		if g.parent, err = cgroup.OpenParent(layout, "berth-scale-"+strconv.Itoa(os.Getpid())); err != nil {
			return err
		}
	}
	for len(g.list) < n {
		one, err := g.parent.Create(fmt.Sprintf("crowd-%d", len(g.list)), cgroup.Resources{})
		if err != nil {
			return err
		}
		g.list = append(g.list, one)
	}
	return nil
}

func (g *groups) end() {
	for _, one := range g.list {
		_ = one.Delete()
		_ = one.Close()
	}
	if g.parent != nil {
		_ = g.parent.Delete()
	}
	g.parent, g.list = nil, nil
}

func cgroupProbe() *probe {
	var g groups
	p := &probe{name: "cgroup", title: "control group made and removed, in all hierarchies", lock: "cgroup_mutex"}
	p.crowd, p.close = g.grow, g.end
	p.worker = func(number int) (func() error, func(), error) {
		serial := 0
		return func() error {
			serial++
			one, err := g.parent.Create(fmt.Sprintf("t%d-%d", number, serial), cgroup.Resources{Pids: 1000})
			if err != nil {
				return err
			}
			err = one.Delete()
			_ = one.Close()
			return err
		}, nil, nil
	}
	return p
}

// attachProbe moves a process into a control group: in and out, so it takes half of that.
func attachProbe() *probe {
	var g groups
	p := &probe{name: "attach", title: "process moved into a control group, in all hierarchies", lock: "cgroup_mutex", wall: true, each: 2}
	p.crowd, p.close = g.grow, g.end
	p.worker = func(number int) (func() error, func(), error) {
		var s sleepers
		if err := s.grow(1); err != nil {
			return nil, nil, err
		}
		var paths []string
		one, err := g.parent.Create(fmt.Sprintf("a%d", number), cgroup.Resources{})
		if err == nil {
			for _, dir := range one.Paths() {
				paths = append(paths, dir)
			}
		}
		pid := []byte(strconv.Itoa(s.procs[0].Pid))
		move := func(up string) error {
			for _, dir := range paths {
				if err := os.WriteFile(filepath.Join(dir, up, "cgroup.procs"), pid, 0); err != nil {
					return err
				}
			}
			return nil
		}
		done := func() {
			s.end()
			if one != nil {
				_ = one.Delete()
				_ = one.Close()
			}
		}
		return func() error {
			if err := move("."); err != nil {
				return err
			}
			return move("../..")
		}, done, err
	}
	return p
}

// inPrivate has the calling thread in a mount namespace of its own, with a tmpfs to work in.
func inPrivate() (dir string, err error) {
	if err := syscall.Unshare(syscall.CLONE_FS | syscall.CLONE_NEWNS); err != nil {
		return "", fmt.Errorf("unshare: %w", err)
	}
	if err := syscall.Mount("", "/", "", syscall.MS_PRIVATE|syscall.MS_REC, ""); err != nil {
		return "", err
	}
	return "/mnt", syscall.Mount("scale", "/mnt", "tmpfs", 0, "")
}

func namespaces(p *probe) *probe {
	s := sleepers{flags: syscall.CLONE_NEWNS}
	p.crowd, p.close = s.grow, s.end
	return p
}

func mountProbe() *probe {
	return namespaces(&probe{name: "mount", title: "bind mount made and taken away, beside N mount namespaces", lock: "namespace_sem",
		worker: func(int) (func() error, func(), error) {
			dir, err := inPrivate()
			if err == nil {
				err = os.MkdirAll(dir+"/a", 0o755)
			}
			return func() error {
				if err := syscall.Mount(dir, dir+"/a", "", syscall.MS_BIND, ""); err != nil {
					return err
				}
				return syscall.Unmount(dir+"/a", 2) // MNT_DETACH
			}, nil, err
		}})
}

func mntnsProbe() *probe {
	return namespaces(&probe{name: "mntns", title: "mount namespace copied from this one, and the one before let go, beside N others", lock: "namespace_sem",
		worker: func(int) (func() error, func(), error) {
			_, err := inPrivate()
			return func() error { return syscall.Unshare(syscall.CLONE_NEWNS) }, nil, err
		}})
}

// overlayProbe is beside no others: the kernel keeps overlays in no list that grows with the cost of one.
func overlayProbe(work string) *probe {
	return &probe{name: "overlay", title: "overlay mounted and unmounted (volatile)", worker: func(number int) (func() error, func(), error) {
		_, err := inPrivate()
		base := filepath.Join(work, fmt.Sprintf("overlay%d", number))
		for _, d := range []string{"l", "u", "w", "m"} {
			if err == nil {
				err = os.MkdirAll(filepath.Join(base, d), 0o755)
			}
		}
		options := fmt.Sprintf("lowerdir=%s/l,upperdir=%s/u,workdir=%s/w,volatile", base, base, base)
		return func() error {
			_ = os.RemoveAll(base + "/w/work/incompat") // what a volatile mount leaves behind
			if err := syscall.Mount("overlay", base+"/m", "overlay", 0, options); err != nil {
				return err
			}
			return syscall.Unmount(base+"/m", 0)
		}, func() { _ = os.RemoveAll(base) }, err
	}}
}

// descriptors is how many the monitor holds for a container: what the results say under "monitor_fds" is held against it.
const descriptors = 3

// spawnProbe is a fork of a process that holds as many descriptors as the monitor does. The kernel copies the table, and
// closes each when the child executes something.
func spawnProbe() *probe {
	var open []*os.File
	return &probe{name: "spawn", title: fmt.Sprintf("fork, exec and wait of true by a process that holds %d descriptors for each of N", descriptors), wall: true,
		crowd: func(n int) error {
			for len(open) < n*descriptors {
				f, err := os.Open(os.DevNull)
				if err != nil {
					return err
				}
				open = append(open, f)
			}
			return nil
		},
		close: func() { closeAll(open) },
		worker: func(int) (func() error, func(), error) {
			return func() error {
				p, err := os.StartProcess("/bin/true", []string{"true"}, &os.ProcAttr{})
				if err != nil {
					return err
				}
				_, err = p.Wait()
				return err
			}, nil, nil
		}}
}

// rcuProbe waits for a grace period, which is all that membarrier(2) with MEMBARRIER_CMD_GLOBAL does.
func rcuProbe() *probe {
	trap := map[string]uintptr{"amd64": 324, "arm64": 283, "riscv64": 283}[runtime.GOARCH]
	return &probe{name: "rcu", title: "grace period of RCU", wall: true, worker: func(int) (func() error, func(), error) {
		if trap == 0 {
			return nil, nil, fmt.Errorf("the number of membarrier(2) on %s is not known here", runtime.GOARCH)
		}
		return func() error {
			if _, _, errno := syscall.Syscall(trap, 1, 0, 0); errno != 0 {
				return os.NewSyscallError("membarrier", errno)
			}
			return nil
		}, nil, nil
	}}
}

// journalProbe is a record that waits for the disk; several that wait share a sync.
func journalProbe(work string) *probe {
	var j *journal.Journal
	p := &probe{name: "journal", title: "record of 1 KiB written to the disk", lock: "journal, shared by all who wait", wall: true}
	p.crowd = func(n int) (err error) {
		if j == nil {
			if j, err = journal.Open(filepath.Join(work, "journal"), journal.Options{}); err != nil {
				return err
			}
		}
		for i := j.Len(); i < n; i++ {
			if err := j.Put(fmt.Sprint("crowd", i), make([]byte, 1024), false); err != nil {
				return err
			}
		}
		return nil
	}
	p.worker = func(number int) (func() error, func(), error) {
		value := make([]byte, 1024)
		return func() error { return j.Put(fmt.Sprint("worker", number), value, true) }, nil, nil
	}
	p.close = func() {
		if j != nil {
			_ = j.Close()
		}
	}
	return p
}
