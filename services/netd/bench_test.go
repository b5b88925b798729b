package netd

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	apiv1 "berth/proto/berth/api/v1"
	networkv1 "berth/proto/berth/network/v1"
)

// BenchmarkAttach is one container after the other; a pool has a slot each time.
func BenchmarkAttach(b *testing.B) {
	b.Run("cold", func(b *testing.B) { benchmarkAttach(b, 0, 0) })
	b.Run("cold,port", func(b *testing.B) { benchmarkAttach(b, 0, 0, tcp(8080, 80)) })
	b.Run("pool", func(b *testing.B) { benchmarkAttach(b, 16, 0) })
	b.Run("pool,port", func(b *testing.B) { benchmarkAttach(b, 16, 0, tcp(8080, 80)) })
}

// BenchmarkCrowd is the same beside so many containers.
func BenchmarkCrowd(b *testing.B) {
	for _, crowd := range []int{0, 500, 1000} {
		b.Run(fmt.Sprintf("endpoints=%d", crowd), func(b *testing.B) { benchmarkAttach(b, 16, crowd, tcp(8080, 80)) })
	}
}

func benchmarkAttach(b *testing.B, pool, crowd int, ports ...*apiv1.PortMapping) {
	r := newRig(b, fmt.Sprintf("pool_size = %d", pool))
	var joined sync.WaitGroup
	for i := range 8 {
		joined.Go(func() {
			for n := i; n < crowd; n += 8 {
				r.roundTrip(fmt.Sprint("crowd", n), true, false)
			}
		})
	}
	joined.Wait()
	var attach, detach []time.Duration
	n := 0
	for b.Loop() {
		n++
		if pool > 0 { // what counts is a start that finds a slot
			b.StopTimer()
			r.eventually("the pool has some", func() bool { return r.ready() > pool/2 })
			b.StartTimer()
		}
		id := fmt.Sprint("c", n)
		begin := time.Now()
		r.roundTrip(id, true, false, ports...)
		attach = append(attach, time.Since(begin))
		begin = time.Now()
		r.roundTrip(id, false, true)
		detach = append(detach, time.Since(begin))
	}
	// The lower decile tells of the work, the median of the machine's load too.
	for name, took := range map[string][]time.Duration{"attach": attach, "detach": detach} {
		slices.Sort(took)
		b.ReportMetric(took[len(took)/2].Seconds()*1000, "ms/"+name)
		b.ReportMetric(took[len(took)/10].Seconds()*1000, "ms-p10/"+name)
	}
}

// BenchmarkThroughput is attach and detach by eight clients at once, until the
// last container has been taken apart. netd-ms and rig-ms are the CPU time of
// netd, and of the tests' process, which is client and execd. The kernel's work
// for who dies is in neither; machine-ms is everybody's on the whole machine, and
// means something only where nothing else runs.
func BenchmarkThroughput(b *testing.B) {
	for _, ports := range []bool{false, true} {
		for _, pool := range []int{0, 16} {
			b.Run(fmt.Sprintf("pool=%d,port=%v", pool, ports), func(b *testing.B) { benchmarkThroughput(b, pool, ports) })
		}
	}
}

func benchmarkThroughput(b *testing.B, pool int, withPort bool) {
	r := newRig(b, fmt.Sprintf("pool_size = %d", pool))
	r.eventually("the pool is full", func() bool { return r.ready() == pool })
	netd, rig, machine := r.netdCPU(), selfCPU(), machineCPU()
	var n atomic.Int64
	b.ResetTimer()
	var clients sync.WaitGroup
	for range 8 {
		clients.Go(func() {
			for i := n.Add(1); i <= int64(b.N); i = n.Add(1) {
				var ports []*apiv1.PortMapping
				if withPort {
					ports = append(ports, tcp(10000+uint32(i)%20000, 80))
				}
				r.roundTrip(fmt.Sprint("c", i), true, true, ports...)
			}
		})
	}
	clients.Wait()
	took := b.Elapsed()
	r.eventually("all is taken apart", func() bool { return len(r.slotInterfaces()) <= pool })
	b.ReportMetric(float64(b.N)/took.Seconds(), "containers/s")
	for name, spent := range map[string]time.Duration{"netd": r.netdCPU() - netd, "rig": selfCPU() - rig, "machine": machineCPU() - machine} {
		b.ReportMetric(spent.Seconds()*1000/float64(b.N), name+"-ms/container")
	}
}

func (r *rig) roundTrip(id string, attach, detach bool, ports ...*apiv1.PortMapping) {
	ctx := context.Background()
	if attach {
		if _, err := r.endpoints.Attach(ctx, &networkv1.AttachRequest{ContainerId: id, Network: &apiv1.NetworkSpec{Ports: ports}}); err != nil {
			r.Error(err)
		}
	}
	if detach {
		if _, err := r.endpoints.Detach(ctx, &networkv1.DetachRequest{ContainerId: id}); err != nil {
			r.Error(err)
		}
	}
}

// ready is the number of slots in netd's pool.
func (r *rig) ready() int {
	r.Helper()
	resp, err := apiv1.NewSystemServiceClient(r.conn).GetDaemonInfo(context.Background(), &apiv1.SystemServiceGetDaemonInfoRequest{})
	r.must(err)
	return int(resp.Info.Counters["ready_namespaces"])
}

// netdCPU is the CPU time netd has used.
func (r *rig) netdCPU() time.Duration {
	r.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", r.netd.Process.Pid))
	r.must(err)
	var user, system int64 // fields 14 and 15 of proc_pid_stat(5)
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	fmt.Sscan(fields[11], &user)
	fmt.Sscan(fields[12], &system)
	return time.Duration(user+system) * tick
}

// tick is the unit of CPU time in /proc (USER_HZ).
const tick = 10 * time.Millisecond

func selfCPU() time.Duration {
	var u unix.Rusage
	unix.Getrusage(unix.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// machineCPU is the time all processors were busy (proc_stat(5)).
func machineCPU() time.Duration {
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0
	}
	var user, nice, system, idle, wait, irq, softirq int64
	fmt.Sscanf(string(stat), "cpu %d %d %d %d %d %d %d", &user, &nice, &system, &idle, &wait, &irq, &softirq)
	return time.Duration(user+nice+system+irq+softirq) * tick
}
