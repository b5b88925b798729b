package cgroup

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"berth/libcontainer/cgroup/devices"
)

func TestCheckNamesTheField(t *testing.T) {
	for _, test := range []struct {
		field string
		r     Resources
	}{
		{"memory.limit", Resources{Memory: Memory{Limit: 6<<20 - 1}}},
		{"memory.limit", Resources{Memory: Memory{Limit: -2}}},
		{"memory.reservation", Resources{Memory: Memory{Limit: 64 << 20, Reservation: 65 << 20}}},
		{"memory.swap", Resources{Memory: Memory{Swap: 64 << 20}}},
		{"memory.swap", Resources{Memory: Memory{Limit: 64 << 20, Swap: 63 << 20}}},
		{"memory.swappiness", Resources{Memory: Memory{Swappiness: new(uint64(101))}}},
		{"cpu.shares", Resources{CPU: CPU{Shares: 1}}},
		{"cpu.shares", Resources{CPU: CPU{Shares: 262145}}},
		{"cpu.quota", Resources{CPU: CPU{Quota: CPUs(0.009)}}},
		{"cpu.period", Resources{CPU: CPU{Period: 999}}},
		{"cpu.period", Resources{CPU: CPU{Period: 1_000_001}}},
		{"cpuset.cpus", Resources{CPU: CPU{Cpus: "0-"}}},
		{"cpuset.cpus", Resources{CPU: CPU{Cpus: "3-1"}}},
		{"cpuset.mems", Resources{CPU: CPU{Mems: "0;1"}}},
		{"pids.limit", Resources{Pids: -2}},
		{"io.weight", Resources{IO: IO{Weight: 9}}},
		{"io.wbps", Resources{IO: IO{Throttles: []Throttle{{WriteBPS: -5}}}}},
		{"hugetlb.size", Resources{HugePages: []HugePages{{Size: "../2MB"}}}},
		{"devices", Resources{Devices: &devices.Policy{Allow: []devices.Rule{{Type: 'x'}}}}},
	} {
		err := test.r.Check()
		var field *FieldError
		if !errors.As(err, &field) || field.Field != test.field || !errors.Is(err, ErrInvalid) {
			t.Errorf("%+v: got %v, want a complaint about %s", test.r, err, test.field)
		}
	}
	good := Resources{Memory: Memory{Limit: 64 << 20, Swap: 64 << 20}, CPU: CPU{Shares: 2, Quota: CPUs(0.01), Cpus: "0-1,3"}, Pids: 1}
	if err := good.Check(); err != nil {
		t.Errorf("%+v: %v", good, err)
	}
}

// The weights are those other engines have settled on, so that a container moved over keeps its share.
func TestWeight(t *testing.T) {
	for _, test := range []struct{ shares, want uint64 }{
		{2, 1}, {10, 4}, {100, 17}, {512, 59}, {1024, 100}, {2048, 174}, {262144, 10000},
	} {
		if got := weight(test.shares); got != test.want {
			t.Errorf("weight(%d) = %d, want %d", test.shares, got, test.want)
		}
	}
	for shares := uint64(minShares + 1); shares <= maxShares; shares += 7 {
		if w := weight(shares); w < weight(shares-1) || w < 1 || w > 10000 {
			t.Fatalf("weight(%d) = %d falls or leaves 1 to 10000", shares, w)
		}
	}
	if ioWeight(10) != 1 || ioWeight(1000) != 10000 {
		t.Errorf("ioWeight: ends are %d and %d", ioWeight(10), ioWeight(1000))
	}
}

// fake is a Parent over a directory of plain files: one group "g" which has the files given, all empty.
func fake(t *testing.T, v2 bool, controllers, files string) (p *Parent, root string) {
	t.Helper()
	root = t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "g"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, f := range strings.Fields(files) {
		if err := os.WriteFile(filepath.Join(root, "g", f), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	fd, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	p = &Parent{missing: map[string]string{}, filters: map[string]*devices.Program{}}
	p.trees = []tree{{
		dir:       dir{fd, root},
		Hierarchy: Hierarchy{V2: v2, Controllers: strings.Fields(controllers), Mountpoint: root},
		missing:   p.missing,
	}}
	t.Cleanup(func() { p.Close() })
	return p, root
}

// written returns "file=content" of all files that are not empty.
func written(t *testing.T, root string) string {
	t.Helper()
	var out []string
	entries, err := os.ReadDir(filepath.Join(root, "g"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if b, _ := os.ReadFile(filepath.Join(root, "g", e.Name())); len(b) > 0 {
			out = append(out, e.Name()+"="+string(b))
		}
	}
	slices.Sort(out)
	return strings.Join(out, "; ")
}

const (
	filesV2 = "memory.max memory.low memory.swap.max memory.current cpu.weight cpu.max cpuset.cpus cpuset.mems pids.max " +
		"io.weight io.max hugetlb.2MB.max hugetlb.2MB.rsvd.max"
	filesV1 = "memory.limit_in_bytes memory.memsw.limit_in_bytes memory.soft_limit_in_bytes memory.swappiness memory.oom_control " +
		"cpu.shares cpu.cfs_period_us cpu.cfs_quota_us cpuset.cpus cpuset.mems pids.max blkio.weight " +
		"blkio.throttle.read_bps_device blkio.throttle.write_iops_device hugetlb.2MB.limit_in_bytes"
)

func TestWrites(t *testing.T) {
	mib := int64(1 << 20)
	for _, test := range []struct {
		name   string
		r      Resources
		v1, v2 string
	}{
		{"memory alone: as much swap again",
			Resources{Memory: Memory{Limit: 64 * mib}},
			"memory.limit_in_bytes=67108864; memory.memsw.limit_in_bytes=134217728",
			"memory.max=67108864; memory.swap.max=67108864"},
		{"no swap",
			Resources{Memory: Memory{Limit: 64 * mib, Swap: 64 * mib}},
			"memory.limit_in_bytes=67108864; memory.memsw.limit_in_bytes=67108864",
			"memory.max=67108864; memory.swap.max=0"},
		{"all the swap there is",
			Resources{Memory: Memory{Limit: 64 * mib, Swap: Unlimited}},
			"memory.limit_in_bytes=67108864; memory.memsw.limit_in_bytes=-1",
			"memory.max=67108864; memory.swap.max=max"},
		{"lift the limit",
			Resources{Memory: Memory{Limit: Unlimited}},
			"memory.limit_in_bytes=-1; memory.memsw.limit_in_bytes=-1",
			"memory.max=max; memory.swap.max=max"},
		{"reservation",
			Resources{Memory: Memory{Reservation: 32 * mib}},
			"memory.soft_limit_in_bytes=33554432",
			"memory.low=33554432"},
		{"cpu",
			Resources{CPU: CPU{Shares: 1024, Quota: CPUs(1.5)}},
			"cpu.cfs_period_us=100000; cpu.cfs_quota_us=150000; cpu.shares=1024",
			"cpu.max=150000 100000; cpu.weight=100"},
		{"lift the quota",
			Resources{CPU: CPU{Quota: Unlimited}},
			"cpu.cfs_quota_us=-1",
			"cpu.max=max 100000"},
		{"cpuset",
			Resources{CPU: CPU{Cpus: "0,2-3", Mems: "0"}},
			"cpuset.cpus=0,2-3; cpuset.mems=0",
			"cpuset.cpus=0,2-3; cpuset.mems=0"},
		{"pids", Resources{Pids: 100}, "pids.max=100", "pids.max=100"},
		{"no pids limit", Resources{Pids: Unlimited}, "pids.max=max", "pids.max=max"},
		{"io",
			Resources{IO: IO{Weight: 500, Throttles: []Throttle{{Major: 8, ReadBPS: mib, WriteIOPS: Unlimited}}}},
			"blkio.throttle.read_bps_device=8:0 1048576; blkio.throttle.write_iops_device=8:0 0; blkio.weight=500",
			"io.max=8:0 rbps=1048576 wiops=max; io.weight=default 4950"},
		{"huge pages",
			Resources{HugePages: []HugePages{{"2MB", 4 * mib}}},
			"hugetlb.2MB.limit_in_bytes=4194304",
			"hugetlb.2MB.max=4194304; hugetlb.2MB.rsvd.max=4194304"},
	} {
		for _, v2 := range []bool{false, true} {
			controllers, files, want := "memory cpu cpuset pids blkio hugetlb", filesV1, test.v1
			if v2 {
				controllers, files, want = "memory cpu cpuset pids io hugetlb", filesV2, test.v2
			}
			p, root := fake(t, v2, controllers, files)
			for _, f := range []string{"cpuset.cpus", "cpuset.mems", "cpuset.cpus.effective", "cpuset.mems.effective"} {
				if err := os.WriteFile(filepath.Join(root, f), []byte("0-7\n"), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			g, err := p.Open("g")
			if err != nil {
				t.Fatal(err)
			}
			if err := g.Set(test.r); err != nil {
				t.Errorf("%s, v2 %v: %v", test.name, v2, err)
			}
			if got := written(t, root); got != want {
				t.Errorf("%s, v2 %v:\ngot  %s\nwant %s", test.name, v2, got, want)
			}
		}
	}
}

func TestRefusals(t *testing.T) {
	for _, test := range []struct {
		name        string
		v2          bool
		controllers string
		files       string
		r           Resources
		kind        error
		says        string
	}{
		{"no controller", true, "cpu", filesV2, Resources{Pids: 5}, ErrNotAvailable, "pids.limit needs the cgroup controller pids"},
		{"nothing asked of it", true, "cpu", filesV2, Resources{CPU: CPU{Shares: 5}}, nil, ""},
		{"no swap counting", false, "memory", "memory.limit_in_bytes", Resources{Memory: Memory{Limit: 64 << 20, Swap: 100 << 20}}, ErrNotAvailable, "swapaccount=1"},
		{"swap not asked for", false, "memory", "memory.limit_in_bytes", Resources{Memory: Memory{Limit: 64 << 20}}, nil, ""},
		{"swappiness on v2", true, "memory", filesV2, Resources{Memory: Memory{Swappiness: new(uint64(10))}}, ErrNotAvailable, "memory.swappiness"},
		{"no BFQ", false, "blkio", "", Resources{IO: IO{Weight: 100}}, ErrNotAvailable, "io.weight"},
		{"page size", true, "hugetlb", filesV2, Resources{HugePages: []HugePages{{"1GB", 1 << 30}}}, ErrNotAvailable, "hugetlb.1GB"},
		{"processors", true, "cpuset", filesV2, Resources{CPU: CPU{Cpus: "0,9"}}, ErrInvalid, "there are 0-7"},
	} {
		p, root := fake(t, test.v2, test.controllers, test.files)
		if err := os.WriteFile(filepath.Join(root, "cpuset.cpus.effective"), []byte("0-7\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		g, err := p.Open("g")
		if err != nil {
			t.Fatal(err)
		}
		err = g.Set(test.r)
		if !errors.Is(err, test.kind) || err != nil && !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: got %v, want %v that says %q", test.name, err, test.kind, test.says)
		}
	}
}

func TestBusyBelowUsage(t *testing.T) {
	p, root := fake(t, true, "memory", filesV2)
	if err := os.WriteFile(filepath.Join(root, "g/memory.current"), []byte("20000000\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	g, _ := p.Open("g")
	if err := g.Set(Resources{Memory: Memory{Limit: 10 << 20}}); !errors.Is(err, ErrBusy) {
		t.Errorf("limit below usage: got %v, want ErrBusy", err)
	}
	if got := written(t, root); got != "memory.current=20000000\n" {
		t.Errorf("written all the same: %s", got)
	}
}

func TestStatsV2(t *testing.T) {
	p, root := fake(t, true, "memory cpu pids io", "")
	for file, text := range map[string]string{
		"cpu.stat":            "usage_usec 3000000\nuser_usec 2000000\nsystem_usec 1000000\nnr_periods 10\nnr_throttled 4\nthrottled_usec 500000\n",
		"memory.current":      "1000\n",
		"memory.max":          "max\n",
		"memory.stat":         "anon 300\nfile 600\ninactive_file 200\n",
		"memory.swap.current": "7\n",
		"memory.events":       "low 0\nhigh 0\nmax 9\noom 2\noom_kill 1\n",
		"pids.current":        "3\n",
		"pids.max":            "64\n",
		"io.stat":             "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n8:16 rbytes=10 wbytes=20 rios=30 wios=40\n",
	} {
		if err := os.WriteFile(filepath.Join(root, "g", file), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	g, _ := p.Open("g")
	got, err := g.Stats()
	want := Stats{
		CPU:    CPUStats{Usage: 3e9, User: 2e9, System: 1e9, Periods: 10, Throttled: 4, ThrottledTime: 5e8},
		Memory: MemoryStats{Usage: 1000, Cache: 600, Anon: 300, Swap: 7, WorkingSet: 800},
		Pids:   PidsStats{Current: 3, Limit: 64},
		IO:     IOStats{ReadBytes: 11, WriteBytes: 22, ReadOps: 33, WriteOps: 44},
	}
	if err != nil || got != want {
		t.Errorf("got  %+v, %v\nwant %+v", got, err, want)
	}
	if oom, err := g.OOM(); err != nil || oom != (OOM{Kills: 1, Limit: 9}) {
		t.Errorf("OOM: got %+v, %v", oom, err)
	}
}

func TestNames(t *testing.T) {
	p, _ := fake(t, true, "", "")
	for _, name := range []string{"", ".", "..", "a/b", "cgroup.procs", "a\nb", strings.Repeat("x", 256)} {
		if _, err := p.Create(name, Resources{}); !errors.Is(err, ErrInvalid) {
			t.Errorf("name %q: got %v, want ErrInvalid", name, err)
		}
	}
	if _, err := p.Open("absent"); !errors.Is(err, ErrNotFound) {
		t.Errorf("open of an absent group: got %v, want ErrNotFound", err)
	}
}
