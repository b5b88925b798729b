package cgroup

import (
	"math"
	"math/bits"
	"strconv"
	"strings"

	"berth/libcontainer/cgroup/devices"
)

// Unlimited asks for no limit, where zero asks for nothing: the field is left as it is.
const Unlimited = -1

// Resources are the limits of a group. The zero value of each field leaves things as they are; for a new group
// that is "no limit", except Devices.
type Resources struct {
	Memory    Memory
	CPU       CPU
	Pids      int64 // processes and threads; Unlimited for no limit
	IO        IO
	HugePages []HugePages

	// Devices is the device policy. Nil gives a new group devices.Default(), and leaves an old one alone.
	Devices *devices.Policy
}

// Memory limits are in bytes.
type Memory struct {
	Limit       int64 // hard; above it the OOM killer acts inside the group
	Reservation int64 // soft; what the group is squeezed to last (v2) or first (v1) when the host runs short

	// Swap is memory and swap together, as with docker's --memory-swap: equal to Limit for no swap at all,
	// Unlimited for as much as the host has. Zero with a Limit means twice the Limit, if the kernel counts
	// swap.
	Swap int64

	Swappiness *uint64 // 0 to 100; v1 only

	// OOMKillDisable makes the group wait at its limit, until someone makes room, instead of being killed; v1 only.
	OOMKillDisable bool
}

// CPU is how much processor time a group gets, and on which processors.
type CPU struct {
	Shares uint64 // relative weight, 2 to 262144; 1024 is the default

	// Quota is microseconds of processor time per Period, over all processors. Period is 1000 to 1000000, and
	// 100000 when zero.
	Quota  int64
	Period uint64

	Cpus string // "0-3,8"
	Mems string // memory nodes, in the same form
}

// CPUs returns the Quota that stands for a number of processors, as with docker's --cpus 1.5, at the default
// Period.
func CPUs(n float64) int64 { return int64(math.Round(n * defaultPeriod)) }

const defaultPeriod = 100_000 // microseconds; kernel/sched/core.c

// IO is how much block I/O a group gets.
type IO struct {
	Weight    uint16 // relative, 10 to 1000; needs the BFQ scheduler or, on v2, io.cost
	Throttles []Throttle
}

// Throttle limits one block device; zero leaves a rate alone, Unlimited lifts it.
type Throttle struct {
	Major, Minor        uint32
	ReadBPS, WriteBPS   int64 // bytes a second
	ReadIOPS, WriteIOPS int64 // operations a second
}

// HugePages limits huge pages of one size.
type HugePages struct {
	Size  string // "2MB", "1GB": the name the kernel has in hugetlb.<size>.max
	Limit int64  // bytes
}

// Bounds of the kernel, and one of experience.
const (
	minMemory = 6 << 20 // less does not carry a process through exec with any certainty
	minShares = 2       // MIN_SHARES, kernel/sched/sched.h
	maxShares = 1 << 18 // MAX_SHARES
	minQuota  = 1_000   // microseconds, min_cfs_quota_period; kernel/sched/core.c
	maxPeriod = 1_000_000
	minWeight = 10 // CFQ_WEIGHT_LEGACY_MIN, and docker's
	maxWeight = 1000
)

// Check finds values that no host would accept. Create and Set call it first.
func (r *Resources) Check() error {
	for _, check := range []func() error{r.checkMemory, r.checkCPU, r.checkIO} {
		if err := check(); err != nil {
			return err
		}
	}
	if r.Pids < Unlimited {
		return invalid("pids.limit", r.Pids, "must be positive, or -1 for no limit")
	}
	for _, h := range r.HugePages {
		if h.Size == "" || strings.Trim(h.Size, "0123456789KMGB") != "" {
			return &FieldError{"hugetlb.size", strconv.Quote(h.Size), "must be a size such as 2MB or 1GB"}
		}
		if h.Limit < Unlimited {
			return invalid("hugetlb.limit", h.Limit, "must not be negative, or -1 for no limit")
		}
	}
	if r.Devices != nil {
		if err := r.Devices.Check(); err != nil {
			return &FieldError{"devices", "rule", err.Error()}
		}
	}
	return nil
}

func (r *Resources) checkMemory() error {
	m := &r.Memory
	switch {
	case m.Limit < Unlimited || m.Limit > 0 && m.Limit < minMemory:
		return invalid("memory.limit", m.Limit, "must be at least 6 MiB ("+strconv.Itoa(minMemory)+"), or -1 for no limit")
	case m.Reservation < Unlimited:
		return invalid("memory.reservation", m.Reservation, "must not be negative, or -1 for none")
	case m.Limit > 0 && m.Reservation > m.Limit:
		return invalid("memory.reservation", m.Reservation, "must not be above memory.limit")
	case m.Swap < Unlimited:
		return invalid("memory.swap", m.Swap, "must be positive, or -1 for no limit")
	case m.Swap > 0 && m.Limit <= 0:
		return invalid("memory.swap", m.Swap, "counts memory and swap together, and so needs memory.limit as well")
	case m.Swap > 0 && m.Swap < m.Limit:
		return invalid("memory.swap", m.Swap, "counts memory and swap together, and so must not be below memory.limit")
	case m.Swappiness != nil && *m.Swappiness > 100:
		return &FieldError{"memory.swappiness", strconv.FormatUint(*m.Swappiness, 10), "must be 0 to 100"}
	}
	return nil
}

func (r *Resources) checkCPU() error {
	c := &r.CPU
	switch {
	case c.Shares != 0 && (c.Shares < minShares || c.Shares > maxShares):
		return &FieldError{"cpu.shares", strconv.FormatUint(c.Shares, 10), "must be 2 to 262144"}
	case c.Quota < Unlimited || c.Quota > 0 && c.Quota < minQuota:
		return invalid("cpu.quota", c.Quota, "must be at least 1000 µs (1 % of a processor at the default period), or -1 for no limit")
	case c.Period != 0 && (c.Period < minQuota || c.Period > maxPeriod):
		return &FieldError{"cpu.period", strconv.FormatUint(c.Period, 10), "must be 1000 to 1000000 µs"}
	case !isList(c.Cpus):
		return &FieldError{"cpuset.cpus", strconv.Quote(c.Cpus), "must be a list such as 0-3,8"}
	case !isList(c.Mems):
		return &FieldError{"cpuset.mems", strconv.Quote(c.Mems), "must be a list such as 0-1"}
	}
	return nil
}

func (r *Resources) checkIO() error {
	if w := r.IO.Weight; w != 0 && (w < minWeight || w > maxWeight) {
		return invalid("io.weight", int64(w), "must be 10 to 1000")
	}
	for _, t := range r.IO.Throttles {
		for _, rate := range t.rates() {
			if *rate.value < Unlimited {
				return invalid("io."+rate.v2, *rate.value, "must be positive, or -1 for no limit")
			}
		}
	}
	return nil
}

func invalid(field string, value int64, reason string) error {
	return &FieldError{field, strconv.FormatInt(value, 10), reason}
}

// swap is Memory.Swap with docker's defaults filled in; zero when nothing is to be set.
func (m *Memory) swap() (value int64, asked bool) {
	switch {
	case m.Swap != 0:
		return m.Swap, true
	case m.Limit == Unlimited:
		return Unlimited, false
	case m.Limit > math.MaxInt64/2:
		return Unlimited, false
	}
	return 2 * m.Limit, false
}

func (c *CPU) period() uint64 {
	if c.Period == 0 {
		return defaultPeriod
	}
	return c.Period
}

// rate is one of the four numbers of a Throttle, and its names.
type rate struct {
	v1, v2 string
	value  *int64
}

func (t *Throttle) rates() []rate {
	return []rate{
		{"blkio.throttle.read_bps_device", "rbps", &t.ReadBPS},
		{"blkio.throttle.write_bps_device", "wbps", &t.WriteBPS},
		{"blkio.throttle.read_iops_device", "riops", &t.ReadIOPS},
		{"blkio.throttle.write_iops_device", "wiops", &t.WriteIOPS},
	}
}

func (t *Throttle) device() string {
	return strconv.FormatUint(uint64(t.Major), 10) + ":" + strconv.FormatUint(uint64(t.Minor), 10)
}

// weight turns shares (2 to 262144, default 1024) into a v2 weight (1 to 10000, default 100). A straight line
// through the two ends would make 39 of the default; this curve goes through all three points:
// 10 ^ ((l² + 125 l) / 612 - 7/34), where l is the binary logarithm of the shares.
func weight(shares uint64) uint64 {
	switch {
	case shares <= minShares:
		return 1
	case shares >= maxShares:
		return 10_000
	case shares == 1024:
		return 100
	}
	l := math.Log2(float64(shares))
	return uint64(math.Ceil(math.Pow(10, (l*l+125*l)/612-7.0/34)))
}

// ioWeight turns a blkio weight (10 to 1000) into that of io.cost (1 to 10000).
func ioWeight(w uint16) uint64 { return 1 + uint64(w-minWeight)*9999/(maxWeight-minWeight) }

// isList reports whether s is in the list format of cpuset(7), or empty.
func isList(s string) bool {
	_, ok := parseList(s)
	return ok
}

// set is a bit set of processors or memory nodes.
type set []uint64

// parseList reads "0-3,8".
func parseList(s string) (set, bool) {
	var out set
	if s = strings.TrimSpace(s); s == "" {
		return nil, true
	}
	for part := range strings.SplitSeq(s, ",") {
		first, last, isRange := strings.Cut(part, "-")
		if !isRange {
			last = first
		}
		lo, err1 := strconv.ParseUint(first, 10, 16)
		hi, err2 := strconv.ParseUint(last, 10, 16)
		if err1 != nil || err2 != nil || hi < lo {
			return nil, false
		}
		for n := lo; n <= hi; n++ {
			for uint64(len(out)) <= n/64 {
				out = append(out, 0)
			}
			out[n/64] |= 1 << (n % 64)
		}
	}
	return out, true
}

// within reports whether all of a is in b.
func (a set) within(b set) bool {
	for i, word := range a {
		var other uint64
		if i < len(b) {
			other = b[i]
		}
		if bits.OnesCount64(word&^other) > 0 {
			return false
		}
	}
	return true
}
