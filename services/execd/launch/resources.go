package launch

import (
	"os"
	"runtime"
	"strconv"
	"strings"

	"berth/internal/fault"
	"berth/libcontainer/cgroup"
	apiv1 "berth/proto/berth/api/v1"
)

// Bounds of limits, as Docker has them.
const (
	minMemory   = 6 << 20
	minNanoCPUs = 10_000_000 // a hundredth of a processor
	cpuPeriod   = 100_000    // microseconds
)

// Resources checks limits and translates them. Unset ones stay unset, except
// that pids has a default: pidsDefault, or min(16384, pid_max/8) when that is 0.
func Resources(r *apiv1.Resources, pidsDefault int64) (cgroup.Resources, error) {
	if r == nil {
		r = new(apiv1.Resources)
	}
	var out cgroup.Resources
	if err := memory(r, &out.Memory); err != nil {
		return out, err
	}
	if err := cpu(r, &out.CPU); err != nil {
		return out, err
	}
	switch {
	case r.PidsLimit > 0:
		out.Pids = r.PidsLimit
	case r.PidsLimit < 0:
		out.Pids = cgroup.Unlimited
	case pidsDefault != 0:
		out.Pids = pidsDefault
	default:
		out.Pids = defaultPids()
	}
	if w := r.BlkioWeight; w != 0 {
		if w < 10 || w > 1000 {
			return out, refuse("BLKIO_WEIGHT", "block I/O weight %d: want 10 to 1000", w)
		}
		out.IO.Weight = uint16(w)
	}
	if err := out.Check(); err != nil {
		return out, fault.InvalidArgument.Errorf("RESOURCES", "%w", err)
	}
	return out, nil
}

func refuse(reason, format string, args ...any) error {
	return fault.InvalidArgument.Errorf(reason, format, args...)
}

func memory(r *apiv1.Resources, m *cgroup.Memory) error {
	switch {
	case r.MemoryBytes < 0:
		return refuse("MEMORY", "memory limit %d is negative", r.MemoryBytes)
	case r.MemoryBytes > 0 && r.MemoryBytes < minMemory:
		return refuse("MEMORY", "memory limit %d bytes: the minimum is 6 MiB", r.MemoryBytes)
	case r.MemoryReservationBytes < 0 || (r.MemoryBytes > 0 && r.MemoryReservationBytes > r.MemoryBytes):
		return refuse("MEMORY_RESERVATION", "memory reservation %d bytes: want at most the memory limit, %d", r.MemoryReservationBytes, r.MemoryBytes)
	case r.MemorySwapBytes < -1:
		return refuse("MEMORY_SWAP", "memory and swap limit %d is negative", r.MemorySwapBytes)
	case r.MemorySwapBytes > 0 && r.MemoryBytes == 0:
		return refuse("MEMORY_SWAP", "a limit of memory and swap needs a memory limit")
	case r.MemorySwapBytes > 0 && r.MemorySwapBytes < r.MemoryBytes:
		return refuse("MEMORY_SWAP", "memory and swap limit %d bytes is below the memory limit, %d", r.MemorySwapBytes, r.MemoryBytes)
	}
	m.Limit, m.Reservation, m.Swap, m.OOMKillDisable = r.MemoryBytes, r.MemoryReservationBytes, r.MemorySwapBytes, r.OomKillDisable
	return nil
}

func cpu(r *apiv1.Resources, c *cgroup.CPU) error {
	if n := r.NanoCpus; n != 0 {
		most := int64(runtime.NumCPU()) * 1e9
		if n < minNanoCPUs || n > most {
			return refuse("CPUS", "%s CPUs: want 0.01 to %d", strconv.FormatFloat(float64(n)/1e9, 'g', -1, 64), runtime.NumCPU())
		}
		if r.CpuQuotaUs != 0 || r.CpuPeriodUs != 0 {
			return refuse("CPUS", "a number of CPUs excludes CPU quota and period")
		}
		c.Period, c.Quota = cpuPeriod, n*cpuPeriod/1e9
	}
	if r.CpuPeriodUs != 0 {
		if r.CpuPeriodUs < 1000 || r.CpuPeriodUs > 1_000_000 {
			return refuse("CPU_PERIOD", "CPU period %d µs: want 1000 to 1000000", r.CpuPeriodUs)
		}
		c.Period = uint64(r.CpuPeriodUs)
	}
	if r.CpuQuotaUs != 0 {
		if r.CpuQuotaUs < 1000 && r.CpuQuotaUs != -1 {
			return refuse("CPU_QUOTA", "CPU quota %d µs: want at least 1000", r.CpuQuotaUs)
		}
		c.Quota = r.CpuQuotaUs
	}
	if s := r.CpuShares; s != 0 {
		if s < 2 || s > 262144 {
			return refuse("CPU_SHARES", "CPU shares %d: want 2 to 262144", s)
		}
		c.Shares = uint64(s)
	}
	c.Cpus, c.Mems = r.CpusetCpus, r.CpusetMems
	return nil
}

// defaultPids is min(16384, pid_max/8): a fork bomb leaves the host seven
// eighths of its pids.
func defaultPids() int64 {
	const most = 16384
	b, err := os.ReadFile("/proc/sys/kernel/pid_max")
	if err != nil {
		return most
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil || n <= 0 {
		return most
	}
	return min(most, n/8)
}
