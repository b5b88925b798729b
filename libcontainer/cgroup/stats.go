package cgroup

import (
	"errors"
	"math"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Stats is what a group uses. What the host does not account for is zero.
type Stats struct {
	CPU    CPUStats
	Memory MemoryStats
	Pids   PidsStats
	IO     IOStats
}

// CPUStats are totals since the group was made.
type CPUStats struct {
	Usage, User, System time.Duration
	Periods             uint64 // of the quota
	Throttled           uint64 // periods in which the quota ran out
	ThrottledTime       time.Duration
}

// MemoryStats are bytes.
type MemoryStats struct {
	Usage      uint64
	Peak       uint64 // highest Usage; v2: since Linux 5.19
	Limit      uint64 // 0: none
	Cache      uint64 // page cache within Usage
	Anon       uint64 // anonymous memory within Usage
	Swap       uint64 // swapped out, not within Usage
	WorkingSet uint64 // Usage without the page cache that was not used lately: what cannot be had back easily
}

// PidsStats counts processes and threads.
type PidsStats struct {
	Current uint64
	Limit   uint64 // 0: none
}

// IOStats are totals since the group was made, over all devices.
type IOStats struct {
	ReadBytes, WriteBytes uint64
	ReadOps, WriteOps     uint64
}

// Stats reads the counters. ErrNotFound: the group is gone.
func (g *Group) Stats() (Stats, error) {
	var s Stats
	r := reader{group: g}
	r.cpu(&s.CPU)
	r.memory(&s.Memory)
	r.pids(&s.Pids)
	r.io(&s.IO)
	return s, r.err
}

// reader reads the files of a group and keeps the first error that is more than a file this kernel lacks.
type reader struct {
	group *Group
	err   error
}

func (r *reader) text(t *tree, file string) string {
	if r.err != nil {
		return ""
	}
	b, err := t.read(r.group.name + "/" + file)
	switch {
	case err == nil:
		return string(b)
	case !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.EOPNOTSUPP):
		r.err = err
	case !t.exists(r.group.name):
		r.err = &wrapped{ErrNotFound, "read cgroup", err}
	}
	return ""
}

func (r *reader) number(t *tree, file string) uint64 { return number(r.text(t, file)) }

func (r *reader) tree(controller string) *tree {
	t, err := r.group.parent.find(controller, "")
	if err != nil {
		return nil
	}
	return t
}

func (r *reader) cpu(s *CPUStats) {
	if t := r.group.parent.unified(); t != nil && r.tree("cpuacct") == nil {
		// Usage is there with or without the controller, throttling only with it. Microseconds.
		f := fields(r.text(t, "cpu.stat"))
		s.Usage, s.User, s.System = micro(f["usage_usec"]), micro(f["user_usec"]), micro(f["system_usec"])
		s.Periods, s.Throttled, s.ThrottledTime = f["nr_periods"], f["nr_throttled"], micro(f["throttled_usec"])
		return
	}
	if t := r.tree("cpuacct"); t != nil {
		s.Usage = time.Duration(r.number(t, "cpuacct.usage")) // ns
		f := fields(r.text(t, "cpuacct.stat"))                // ticks; USER_HZ is 100 on all machines we run on
		s.User, s.System = time.Duration(f["user"])*10*time.Millisecond, time.Duration(f["system"])*10*time.Millisecond
	}
	if t := r.tree("cpu"); t != nil {
		f := fields(r.text(t, "cpu.stat"))
		s.Periods, s.Throttled, s.ThrottledTime = f["nr_periods"], f["nr_throttled"], time.Duration(f["throttled_time"])
	}
}

func (r *reader) memory(s *MemoryStats) {
	t := r.tree("memory")
	if t == nil {
		return
	}
	var inactive uint64
	if t.V2 {
		f := fields(r.text(t, "memory.stat"))
		s.Usage, s.Peak, s.Limit = r.number(t, "memory.current"), r.number(t, "memory.peak"), r.number(t, "memory.max")
		s.Cache, s.Anon, inactive = f["file"], f["anon"], f["inactive_file"]
		s.Swap = r.number(t, "memory.swap.current")
	} else {
		f := fields(r.text(t, "memory.stat"))
		s.Usage, s.Peak, s.Limit = r.number(t, "memory.usage_in_bytes"), r.number(t, "memory.max_usage_in_bytes"), r.number(t, "memory.limit_in_bytes")
		s.Cache, s.Anon, s.Swap, inactive = f["total_cache"], f["total_rss"], f["total_swap"], f["total_inactive_file"]
	}
	if s.Limit >= math.MaxInt64/4096*4096 {
		s.Limit = 0 // v1 says "none" by the largest number of pages
	}
	s.WorkingSet = s.Usage - min(inactive, s.Usage)
}

func (r *reader) pids(s *PidsStats) {
	if t := r.tree("pids"); t != nil {
		s.Current, s.Limit = r.number(t, "pids.current"), r.number(t, "pids.max")
	}
}

func (r *reader) io(s *IOStats) {
	t := r.tree("io")
	if t == nil {
		return
	}
	if t.V2 {
		// "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0"
		for word := range strings.FieldsSeq(r.text(t, "io.stat")) {
			key, value, _ := strings.Cut(word, "=")
			switch key {
			case "rbytes":
				s.ReadBytes += number(value)
			case "wbytes":
				s.WriteBytes += number(value)
			case "rios":
				s.ReadOps += number(value)
			case "wios":
				s.WriteOps += number(value)
			}
		}
		return
	}
	s.ReadBytes, s.WriteBytes = r.blkio(t, "io_service_bytes")
	s.ReadOps, s.WriteOps = r.blkio(t, "io_serviced")
}

// blkio sums "8:0 Read 123" and "8:0 Write 456" of one v1 counter. The throttling layer counts all requests
// of all schedulers; only kernels before 4.x lack the _recursive variant.
func (r *reader) blkio(t *tree, counter string) (read, write uint64) {
	text := r.text(t, "blkio.throttle."+counter+"_recursive")
	if text == "" {
		text = r.text(t, "blkio.throttle."+counter)
	}
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) != 3 {
			continue
		}
		switch f[1] {
		case "Read":
			read += number(f[2])
		case "Write":
			write += number(f[2])
		}
	}
	return read, write
}

// fields reads lines of a name and a number.
func fields(text string) map[string]uint64 {
	m := make(map[string]uint64, 64)
	for line := range strings.Lines(text) {
		if key, value, ok := strings.Cut(line, " "); ok {
			m[key] = number(value)
		}
	}
	return m
}

// number reads a decimal number; "max", and whatever else is none, is 0.
func number(s string) uint64 {
	n, _ := strconv.ParseUint(strings.TrimSpace(s), 10, 64)
	return n
}

func micro(n uint64) time.Duration { return time.Duration(n) * time.Microsecond }
