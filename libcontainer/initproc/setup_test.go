package initproc

import (
	"errors"
	"reflect"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"berth/libcontainer/internal/wire"
	"berth/libcontainer/mount"
	"berth/libcontainer/ns"
)

// full is a setup in which every field has a value of its own, so that a field
// that is forgotten or exchanged on the way is seen.
func full() *Setup {
	adj := -7
	return &Setup{
		Force: ForceMount, Ahead: true, Pinned: true, Exec: true, Hold: true, Joins: []Join{{ns.Net, 4}}, Unshare: 5, Loopback: true, LateNet: true,
		Root:   mount.Root{Bind: "/b", Lower: []string{"/l"}, Images: true, Upper: "/u", Work: "/w", Options: []string{"o"}, Attr: mount.NoDev, IDMap: true},
		RootFD: -1,
		Mounts: []mount.Mount{{Type: "t", Source: "/s", Destination: "/d", Options: []string{"x=y"}, Attr: mount.ReadOnly,
			Recursive: true, Propagation: mount.RSlave, IDMap: true}},
		MountFDs: []int{9},
		Cgroups:  []CgroupMount{{"cpu,cpuacct", "/sys", []string{"cpu"}}},
		Masked:   []string{"/m"}, ReadOnly: []string{"/r"},
		Devices:  []mount.Device{{Path: "/dev/x", Type: 'c', Major: 1, Minor: 2, Mode: 3, UID: 4, GID: 5, Source: "/dev/y"}},
		Hostname: "h", Domain: "d", Sysctls: []Sysctl{{"net/x", "1"}},
		Command: Command{
			Args: []string{"a"}, Env: []string{"E=1"}, Cwd: "/c", User: User{"u:g", []string{"audio"}}, Caps: 1 << 40,
			NoNewPrivs: true, Seccomp: []byte{1, 2, 3, 4, 5, 6, 7, 8}, Rlimits: []Rlimit{{7, 8, ^uint64(0)}},
			Terminal: &ConsoleSize{10, 20}, OOMScoreAdj: &adj, Umask: 0o77, AppArmor: "aa", SELinux: "se", Init: true,
		},
		KeepMounts: true, ConfineEarly: true,
	}
}

// TestSetupRoundTrip also makes sure that full leaves no field at zero, new ones
// included.
func TestSetupRoundTrip(t *testing.T) {
	want := full()
	got, err := DecodeSetup(want.Encode())
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v\nwant %+v", got, err, want)
	}
	notZero(t, "Setup", reflect.ValueOf(*want))
}

func notZero(t *testing.T, name string, v reflect.Value) {
	t.Helper()
	switch {
	case v.IsZero():
		t.Errorf("%s is zero in the test", name)
	case v.Kind() == reflect.Struct:
		for i := range v.NumField() {
			notZero(t, name+"."+v.Type().Field(i).Name, v.Field(i))
		}
	case v.Kind() == reflect.Slice:
		notZero(t, name+"[0]", v.Index(0))
	case v.Kind() == reflect.Pointer:
		notZero(t, name, v.Elem())
	}
}

// FuzzDecodeSetup: what decodes encodes to something that decodes to the same.
func FuzzDecodeSetup(f *testing.F) {
	f.Add(full().Encode())
	f.Add((&Setup{}).Encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := DecodeSetup(b)
		if err != nil {
			return
		}
		again, err := DecodeSetup(s.Encode())
		if err != nil || !reflect.DeepEqual(again, s) {
			t.Errorf("%+v became %+v, %v", s, again, err)
		}
	})
}

func TestReport(t *testing.T) {
	err := &stepError{step: "start", kind: KindNotFound, err: unix.ENOENT}
	want := &Report{
		Steps: []Step{{"a", 1, 2}}, Warnings: []string{"w"}, Console: true, Failure: failure(err),
	}
	pair, e := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if e != nil {
		t.Fatal(e)
	}
	defer unix.Close(pair[1])
	if e := Send(pair[0], want.encode(), pair[0], pair[1]); e != nil {
		t.Fatal(e)
	}
	unix.Close(pair[0])
	message, fds, e := Receive(pair[1])
	if e != nil || len(fds) != 2 {
		t.Fatalf("descriptors %v, %v", fds, e)
	}
	for _, fd := range fds {
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags != unix.FD_CLOEXEC {
			t.Errorf("descriptor %d: flags %d, %v", fd, flags, err)
		}
		unix.Close(fd)
	}
	got, e := DecodeReport(message)
	if e != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v; want %+v", got, e, want)
	}
	if message, _, e := Receive(pair[1]); message != nil || e != nil {
		t.Errorf("at the end: %v, %v", message, e)
	}
	if got.Failure.Kind != KindNotFound || got.Failure.Errno != unix.ENOENT {
		t.Errorf("failure %+v", got.Failure)
	}
}

func TestReceiveMalformed(t *testing.T) {
	for _, b := range [][]byte{{1}, {5, 0, 0, 0, 1}, {0xff, 0xff, 0xff, 0xff}} {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		unix.Write(pair[0], b)
		unix.Close(pair[0])
		if _, _, err := Receive(pair[1]); !errors.Is(err, wire.ErrMalformed) {
			t.Errorf("%v: %v", b, err)
		}
		unix.Close(pair[1])
	}
}

func TestCandidates(t *testing.T) {
	for _, c := range []struct {
		name string
		env  []string
		want []string
	}{
		{"/bin/x", []string{"PATH=/a"}, []string{"/bin/x"}},
		{"./x", nil, []string{"./x"}},
		{"x", []string{"PATH=/a:/b/::/a"}, []string{"/a/x", "/b/x", "./x", "/a/x"}},
		{"x", []string{"PATH=/a", "PATH=/b"}, []string{"/b/x"}},
		{"x", []string{"PATH=/"}, []string{"/x"}},
	} {
		if got := candidates(c.name, c.env); !slices.Equal(got, c.want) {
			t.Errorf("%s in %v: %v, want %v", c.name, c.env, got, c.want)
		}
	}
}
