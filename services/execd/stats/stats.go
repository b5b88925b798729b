// Package stats samples what containers use.
package stats

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"berth/libcontainer/cgroup"
)

// Sample is what one container uses at one moment.
type Sample struct {
	At    time.Time
	Group cgroup.Stats
	// CPUPercent of one processor since the sample before; 0 for the first.
	CPUPercent float64
	// MemoryLimit is the host's memory when the container has none.
	MemoryLimit      uint64
	RxBytes, TxBytes uint64
	OOMKills         uint64
}

// Sampler keeps cgroups open from one sample to the next. It is for one
// goroutine.
type Sampler struct {
	known map[string]*known
}

type known struct {
	group *cgroup.Group
	at    time.Time
	usage time.Duration
}

// New makes a sampler.
func New() *Sampler { return &Sampler{known: make(map[string]*known)} }

// Close gives the cgroups up.
func (s *Sampler) Close() {
	for _, k := range s.known {
		k.group.Close()
	}
	clear(s.known)
}

// Sample reads the counters of a container, whose cgroup open opens when it is
// met first; pid is one of its processes.
func (s *Sampler) Sample(name string, pid int, open func() (*cgroup.Group, error)) (*Sample, error) {
	k := s.known[name]
	if k == nil {
		g, err := open()
		if err != nil {
			return nil, err
		}
		k = &known{group: g}
		s.known[name] = k
	}
	st, err := k.group.Stats()
	if err != nil {
		k.group.Close()
		delete(s.known, name)
		return nil, err
	}
	out := &Sample{At: time.Now(), Group: st, MemoryLimit: st.Memory.Limit}
	if host := hostMemory(); out.MemoryLimit == 0 || out.MemoryLimit > host {
		out.MemoryLimit = host
	}
	if d := out.At.Sub(k.at); !k.at.IsZero() && d > 0 {
		out.CPUPercent = 100 * float64(st.CPU.Usage-k.usage) / float64(d)
	}
	k.at, k.usage = out.At, st.CPU.Usage
	if oom, err := k.group.OOM(); err == nil {
		out.OOMKills = oom.Kills
	}
	out.RxBytes, out.TxBytes = network(pid)
	return out, nil
}

// hostMemory does not change.
var hostMemory = sync.OnceValue(func() uint64 {
	var si unix.Sysinfo_t
	if unix.Sysinfo(&si) != nil {
		return 0
	}
	return uint64(si.Totalram) * uint64(si.Unit)
})

// network sums what the interfaces in the process's network namespace have
// moved, without lo. Containers that share the host's show the host's.
func network(pid int) (rx, tx uint64) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/net/dev", pid))
	if err != nil {
		return 0, 0
	}
	defer f.Close()
	return parseNetDev(f)
}

// parseNetDev reads proc_pid_net(5), net/dev: after the name come eight received
// and eight transmitted counters, bytes first.
func parseNetDev(r io.Reader) (rx, tx uint64) {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		name, rest, ok := strings.Cut(lines.Text(), ":")
		fields := strings.Fields(rest)
		if !ok || strings.TrimSpace(name) == "lo" || len(fields) < 9 {
			continue
		}
		in, err1 := strconv.ParseUint(fields[0], 10, 64)
		out, err2 := strconv.ParseUint(fields[8], 10, 64)
		if err1 == nil && err2 == nil {
			rx += in
			tx += out
		}
	}
	return rx, tx
}
