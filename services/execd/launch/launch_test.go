package launch

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"berth/internal/fault"
	"berth/libcontainer/cgroup"
	apiv1 "berth/proto/berth/api/v1"
	networkv1 "berth/proto/berth/network/v1"
)

func TestArgs(t *testing.T) {
	image := &apiv1.ImageConfig{Entrypoint: []string{"entry"}, Cmd: []string{"cmd"}}
	for _, c := range []struct {
		spec  *apiv1.ContainerSpec
		image *apiv1.ImageConfig
		want  string
	}{
		{&apiv1.ContainerSpec{}, image, "entry cmd"},
		{&apiv1.ContainerSpec{Args: []string{"a", "b"}}, image, "entry a b"},
		{&apiv1.ContainerSpec{Entrypoint: []string{"mine"}}, image, "mine"},
		{&apiv1.ContainerSpec{Entrypoint: []string{"mine"}, Args: []string{"a"}}, image, "mine a"},
		{&apiv1.ContainerSpec{Entrypoint: []string{""}, Args: []string{"a"}}, image, "a"},
		{&apiv1.ContainerSpec{}, &apiv1.ImageConfig{Cmd: []string{"sh"}}, "sh"},
		{&apiv1.ContainerSpec{Entrypoint: []string{""}}, image, ""},
		{&apiv1.ContainerSpec{}, nil, ""},
	} {
		got, err := Args(c.spec, c.image)
		if strings.Join(got, " ") != c.want || (err != nil) != (c.want == "") {
			t.Errorf("%v on %v: got %v, %v, want %q", c.spec, c.image, got, err, c.want)
		}
	}
}

func TestEnv(t *testing.T) {
	image := &apiv1.ImageConfig{Env: []string{"PATH=/img", "A=1", "B=2", "malformed"}}
	got, err := Env(&apiv1.ContainerSpec{Tty: true, Env: []string{"B=3", "C=", "A", "B=4", "D=x=y"}}, image, "h")
	want := []string{"PATH=/img", "HOSTNAME=h", "TERM=xterm", "B=4", "C=", "D=x=y"}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
	got, err = ExecEnv(want, []string{"TERM", "E=1"}, true)
	if want := []string{"PATH=/img", "HOSTNAME=h", "B=4", "C=", "D=x=y", "E=1"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("exec: got %q, %v, want %q", got, err, want)
	}
}

func TestResources(t *testing.T) {
	r, err := Resources(&apiv1.Resources{MemoryBytes: 64 << 20, NanoCpus: 500_000_000, CpuShares: 512, PidsLimit: 10, CpusetCpus: "0"}, 0)
	if err != nil || r.Memory.Limit != 64<<20 || r.CPU.Quota != 50_000 || r.CPU.Period != 100_000 || r.CPU.Shares != 512 || r.Pids != 10 || r.CPU.Cpus != "0" {
		t.Errorf("got %+v, %v", r, err)
	}
	if r, err := Resources(nil, 0); err != nil || r.Pids <= 0 || r.Pids > 16384 {
		t.Errorf("default: %+v, %v", r, err)
	}
	if r, err := Resources(&apiv1.Resources{PidsLimit: -1}, 100); err != nil || r.Pids != cgroup.Unlimited {
		t.Errorf("no limit of pids: %+v, %v", r, err)
	}
	for _, bad := range []*apiv1.Resources{
		{MemoryBytes: -1}, {MemoryBytes: 1}, {MemorySwapBytes: 1 << 30}, {MemoryBytes: 8 << 20, MemoryReservationBytes: 9 << 20},
		{NanoCpus: -1}, {NanoCpus: 9_999_999}, {NanoCpus: 1e9, CpuQuotaUs: 5000}, {CpuPeriodUs: 1}, {CpuQuotaUs: 5}, {CpuShares: 1},
		{CpuShares: 1 << 20}, {BlkioWeight: 5}, {CpusetCpus: "x"},
	} {
		if _, err := Resources(bad, 0); !errors.Is(err, fault.InvalidArgument) {
			t.Errorf("%v: got %v, want a refusal", bad, err)
		}
	}
}

func TestRlimits(t *testing.T) {
	got, err := Rlimits([]*apiv1.Ulimit{{Name: "nofile", Soft: 10, Hard: 20}, {Name: "core", Soft: -1, Hard: -1}})
	if err != nil || len(got) != 2 {
		t.Fatalf("got %v, %v", got, err)
	}
	for _, l := range got {
		if l.Resource == unix.RLIMIT_NOFILE && (l.Soft != 10 || l.Hard != 20) || l.Resource == unix.RLIMIT_CORE && l.Hard != infinity {
			t.Errorf("got %+v", l)
		}
	}
}

func TestUserDevice(t *testing.T) {
	list, access, err := userDevice("/dev/null:/dev/hole:r")
	if err != nil || len(list) != 1 || list[0].Path != "/dev/hole" || list[0].Major != 1 || list[0].Minor != 3 || access.String() != "r" {
		t.Errorf("got %+v, %v, %v", list, access, err)
	}
	if list, _, err := userDevice("/dev/null:rw"); err != nil || list[0].Path != "/dev/null" {
		t.Errorf("access in second place: %+v, %v", list, err)
	}
	for _, bad := range []string{"", "null", "/dev/nosuch", "/etc/passwd", "/dev/null:/etc/x", "/dev/null:/dev/../etc/x", "/dev/null:/dev/x:q", "a:b:c:d"} {
		if _, _, err := userDevice(bad); !errors.Is(err, fault.InvalidArgument) {
			t.Errorf("%q: got %v, want a refusal", bad, err)
		}
	}
}

func TestHosts(t *testing.T) {
	net := &networkv1.AttachResponse{
		Namespace: &networkv1.Namespace{Kind: networkv1.Namespace_KIND_HELD},
		Endpoints: []*apiv1.EndpointInfo{{IpAddress: "172.17.0.2", Ipv6Address: "fd00::2"}},
		Dns:       &networkv1.DnsConfig{Hosts: []string{"10.0.0.1 db\nevil line"}},
	}
	got := string(hosts("box", &apiv1.ContainerSpec{Domainname: "example.org"}, net))
	for _, want := range []string{"127.0.0.1\tlocalhost\n", "172.17.0.2\tbox.example.org box\n", "fd00::2\tbox.example.org box\n", "10.0.0.1 db evil line\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("lacks %q:\n%s", want, got)
		}
	}
}

func TestSignal(t *testing.T) {
	for name, want := range map[string]int{"TERM": 15, "SIGKILL": 9, "10": 10, "usr1": 10} {
		if got, err := Signal(name); got != want || err != nil {
			t.Errorf("%s: got %d, %v", name, got, err)
		}
	}
	for _, bad := range []string{"", "0", "-1", "65", "NOPE", "9 "} {
		if n, err := Signal(bad); !errors.Is(err, fault.InvalidArgument) {
			t.Errorf("%q: got %d, %v", bad, n, err)
		}
	}
}

func FuzzUserDevice(f *testing.F) {
	f.Add("/dev/null:/dev/x:rwm")
	f.Fuzz(func(t *testing.T, s string) {
		list, _, err := userDevice(s)
		for _, d := range list {
			if err == nil && !strings.HasPrefix(d.Path, "/dev/") {
				t.Errorf("%q gives a node at %s", s, d.Path)
			}
		}
	})
}
