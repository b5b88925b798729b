package seccomp

import (
	"encoding/json"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	public "github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth/libcontainer/caps"
	"berth/libcontainer/seccomp/filter"
)

// TestDefaultIsThePublicProfile compares the answers of our compiled profile
// with those that the rules of the public one give, for every call on every
// architecture, under every capability and on old and new kernels.
func TestDefaultIsThePublicProfile(t *testing.T) {
	compareWithPublic(t, Default())
}

// TestParsePublicProfile does the same with the public profile's own JSON,
// read by our parser.
func TestParsePublicProfile(t *testing.T) {
	text, err := json.Marshal(public.DefaultProfile())
	if err != nil {
		t.Fatal(err)
	}
	p, err := Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	compareWithPublic(t, p)
}

func compareWithPublic(t *testing.T, p *Profile) {
	t.Helper()
	rules := public.DefaultProfile().Syscalls
	sets := []caps.Set{0, caps.Default, caps.Docker, caps.Of(unix.CAP_SYS_ADMIN) | caps.Default, 1<<41 - 1}
	for c := range caps.Cap(41) {
		sets = append(sets, caps.Of(c))
	}
	checked := 0
	for _, arch := range []Arch{AMD64, ARM64} {
		for i, set := range sets {
			for _, kernel := range []Version{{3, 10}, {4, 8}, {6, 18}} {
				if i > 4 && kernel.Major != 6 {
					continue
				}
				target := Target{arch, set, kernel, false}
				m := compile(t, p, target)
				for _, abi := range abis(arch) {
					checked += compareABI(t, m, publicFor(rules, target), target, abi)
				}
			}
		}
	}
	t.Logf("%d answers compared", checked)
}

// publicFor filters the public rules for a target, by its conditions' words.
func publicFor(rules []*public.Syscall, t Target) []*public.Syscall {
	holds := func(f *public.Filter, all bool) bool {
		match := func(name string) bool { c, err := caps.Parse(name); return err == nil && t.Caps.Has(c) }
		for _, c := range f.Caps {
			if match(c) != all {
				return !all
			}
		}
		return all
	}
	var in []*public.Syscall
	for _, r := range rules {
		if f := r.Includes; f != nil {
			if !holds(f, true) || len(f.Arches) > 0 && !slices.Contains(f.Arches, t.Arch.String()) {
				continue
			}
			if k := f.MinKernel; k != nil && t.Kernel.before(Version{int(k.Kernel), int(k.Major)}) {
				continue
			}
		}
		if f := r.Excludes; f != nil && (holds(f, false) || slices.Contains(f.Arches, t.Arch.String())) {
			continue
		}
		in = append(in, r)
	}
	return in
}

// compareABI compares all calls of one ABI and returns how many answers.
func compareABI(t *testing.T, m machine, rules []*public.Syscall, target Target, abi Arch) int {
	t.Helper()
	newest := uint32(0)
	for _, r := range public.DefaultProfile().Syscalls {
		for _, name := range r.Names {
			if nr, ok := number(name, abi); ok && nr < archInfo[abi].private {
				newest = max(newest, nr)
			}
		}
	}
	samples := []uint64{0}
	for bit := range 64 {
		samples = append(samples, 1<<bit, 1<<bit|17)
	}
	for f := range uint64(50) {
		samples = append(samples, f, f|1<<40)
	}
	samples = append(samples, 0x20008, 0xffffffff, 1<<64-1, unix.CLONE_NEWTIME, unix.CLONE_VM|unix.CLONE_FS, unix.CLONE_NEWUSER|uint64(unix.SIGCHLD))
	checked := 0
	for _, s := range syscalls {
		nr, ok := number(s.name, abi)
		if !ok {
			continue
		}
		values := samples[:1]
		if slices.Contains([]string{"socket", "personality", "clone"}, s.name) {
			values = samples
		}
		for _, value := range values {
			want := publicAnswer(rules, s.name, value)
			if want == eperm && nr > newest && nr < archInfo[abi].private {
				want = enosys
			}
			if got := m.run(t, abi, nr, value); got != want {
				t.Errorf("%v/%v, %v, kernel %v: %s(%#x) is %#x, the public profile says %#x", target.Arch, abi, target.Caps, target.Kernel, s.name, value, got, want)
			}
			checked++
		}
	}
	return checked
}

// publicAnswer applies rules to a call whose first argument is value.
func publicAnswer(rules []*public.Syscall, name string, value uint64) Action {
	for _, r := range rules {
		if !slices.Contains(r.Names, name) {
			continue
		}
		match := true
		for _, arg := range r.Args {
			switch arg.Op {
			case specs.OpEqualTo:
				match = match && value == arg.Value
			case specs.OpLessThan:
				match = match && value < arg.Value
			case specs.OpMaskedEqual:
				match = match && value&arg.Value == arg.ValueTwo
			default:
				panic("operator " + arg.Op)
			}
		}
		if match {
			if r.Action == specs.ActErrno {
				return Errno(unix.Errno(*r.ErrnoRet))
			}
			return Allow
		}
	}
	return eperm
}

// TestDefaultNamesEach finds names lost in, or added to, the groups of
// ordinary calls; unlike the comparison of answers it sees names that have no
// number here.
func TestDefaultNamesEach(t *testing.T) {
	ours := strings.Fields(ordinary)
	theirs := public.DefaultProfile().Syscalls[0].Names
	for _, name := range theirs {
		if !slices.Contains(ours, name) {
			t.Errorf("%s is missing", name)
		}
	}
	for i, name := range ours {
		if !slices.Contains(theirs, name) {
			t.Errorf("%s is too much", name)
		}
		if slices.Index(ours, name) != i {
			t.Errorf("%s is there twice", name)
		}
	}
}

// denied is the answer of the default profile with the default capabilities:
// the surface that attacks on the kernel came through.
var denied = map[string]Action{
	"acct": eperm, "add_key": eperm, "request_key": eperm, "keyctl": eperm,
	"bpf": eperm, "perf_event_open": eperm, "userfaultfd": eperm,
	"io_uring_setup": eperm, "io_uring_enter": eperm, "io_uring_register": eperm,
	"clone3":  enosys,
	"unshare": eperm, "setns": eperm, "pivot_root": eperm,
	"mount": eperm, "umount": eperm, "umount2": eperm, "mount_setattr": eperm, "move_mount": eperm,
	"open_tree": eperm, "fsopen": eperm, "fsconfig": eperm, "fsmount": eperm, "fspick": eperm,
	"open_by_handle_at": eperm, "fanotify_init": eperm, "quotactl": eperm, "quotactl_fd": eperm,
	"kexec_load": eperm, "kexec_file_load": eperm, "reboot": eperm,
	"init_module": eperm, "finit_module": eperm, "delete_module": eperm,
	"create_module": eperm, "query_module": eperm, "get_kernel_syms": eperm,
	"kcmp": eperm, "pidfd_getfd": eperm, "process_madvise": eperm, "lookup_dcookie": eperm,
	"iopl": eperm, "ioperm": eperm, "swapon": eperm, "swapoff": eperm, "syslog": eperm, "vhangup": eperm,
	"settimeofday": eperm, "stime": eperm, "clock_settime": eperm, "clock_settime64": eperm,
	"sethostname": eperm, "setdomainname": eperm,
	"get_mempolicy": eperm, "set_mempolicy": eperm, "mbind": eperm, "move_pages": eperm, "migrate_pages": eperm,
	"set_mempolicy_home_node": eperm,
	"nfsservctl":              eperm, "uselib": eperm, "ustat": eperm, "sysfs": eperm, "_sysctl": eperm, "vm86": eperm, "vm86old": eperm,
	"lsm_get_self_attr": eperm, "lsm_set_self_attr": eperm, "lsm_list_modules": eperm,
	"open_tree_attr": enosys, "file_getattr": enosys, "file_setattr": enosys, // of Linux 6.15 and 6.17, newer than the profile
}

// TestS34Verdicts runs the filter over the table above on each ABI.
func TestS34Verdicts(t *testing.T) {
	for _, arch := range []Arch{AMD64, ARM64} {
		m := compile(t, Default(), Target{arch, caps.Default, Version{6, 18}, false})
		for _, abi := range abis(arch) {
			for name, want := range denied {
				if nr, ok := number(name, abi); ok {
					if got := m.run(t, abi, nr); got != want {
						t.Errorf("%v: %s is %#x, want %#x", abi, name, got, want)
					}
				}
			}
			socket, _ := number("socket", abi)
			for f := range uint64(64) {
				want := Allow
				if f == unix.AF_ALG || f == unix.AF_VSOCK || f > unix.AF_MCTP {
					want = eperm
				}
				if got := m.run(t, abi, socket, f); got != want {
					t.Errorf("%v: socket(%d) is %#x, want %#x", abi, f, got, want)
				}
			}
			clone, _ := number("clone", abi)
			for bit := range 32 {
				flag := uint64(1) << bit
				want := Allow
				if flag&newNamespaces != 0 {
					want = eperm
				}
				if got := m.run(t, abi, clone, flag|uint64(unix.SIGCHLD)); got != want {
					t.Errorf("%v: clone(%#x) is %#x, want %#x", abi, flag, got, want)
				}
			}
		}
	}
}

// TestForeignArchitectures are denied whatever the profile's fallback.
func TestForeignArchitectures(t *testing.T) {
	open := &Profile{Fallback: Allow}
	for _, test := range []struct {
		profile *Profile
		native  Arch
		call    Arch
		want    Action
	}{
		{Default(), AMD64, ARM64, eperm},
		{Default(), ARM64, AMD64, eperm},
		{Default(), AMD64, I386, Allow},
		{Default(), AMD64, X32, Allow},
		{Default(), ARM64, ARM, Allow},
		{open, AMD64, AMD64, Allow},
		{open, AMD64, I386, eperm},
		{open, AMD64, X32, eperm},
		{open, ARM64, ARM, eperm},
	} {
		m := compile(t, test.profile, Target{test.native, caps.Default, Version{6, 18}, false})
		nr, _ := number("read", test.call)
		if got := m.run(t, test.call, nr); got != test.want {
			t.Errorf("fallback %#x on %v: read of %v is %#x, want %#x", test.profile.Fallback, test.native, test.call, got, test.want)
		}
	}
}

// TestStrangeNumbers covers what is no call: gaps, the future, and the numbers
// that programs and tracers make up.
func TestStrangeNumbers(t *testing.T) {
	m := compile(t, Default(), Target{AMD64, caps.Default, Version{6, 18}, false})
	for _, test := range []struct {
		arch Arch
		nr   uint32
		want Action
	}{
		{AMD64, 400, eperm}, // the gap before the numbers that all architectures share
		{AMD64, 0xffffffff, enosys},
		{AMD64, 0x3fffffff, enosys},
		{AMD64, 512, enosys}, // x32 numbers without the bit, once a way in (Linux < 5.4)
		{AMD64, 520, enosys},
		{X32, 59, eperm}, // execve has a number of its own there
		{X32, 520, Allow},
		{X32, 0, Allow},
		{X32, 16, eperm},
		{I386, 0xffffffff, enosys},
		{I386, 10000, enosys},
	} {
		if got := m.run(t, test.arch, test.nr); got != test.want {
			t.Errorf("%v %d is %#x, want %#x", test.arch, test.nr, got, test.want)
		}
	}
}

// TestWithoutX32 is for kernels that have none: all its numbers get the kernel's own answer, or are denied as in a profile
// that does not name it, and nothing else changes.
func TestWithoutX32(t *testing.T) {
	with := Target{AMD64, caps.Default, Version{6, 18}, false}
	without := with
	without.NoX32 = true
	normal, short := compile(t, Default(), with), compile(t, Default(), without)
	unnamed := compile(t, &Profile{Fallback: Allow}, without)
	for nr := range uint32(1024) {
		if got := short.run(t, X32, nr); got != enosys {
			t.Fatalf("x32 %d is %#x, want %#x", nr, got, enosys)
		}
		if got := unnamed.run(t, X32, nr); got != eperm {
			t.Fatalf("x32 %d is %#x in a profile without x32, want %#x", nr, got, eperm)
		}
		for _, arch := range []Arch{AMD64, I386} {
			if a, b := normal.run(t, arch, nr), short.run(t, arch, nr); a != b {
				t.Errorf("%v %d is %#x without x32, %#x with it", arch, nr, b, a)
			}
		}
	}
	var cache Cache
	a, err := cache.Compile(Default(), with)
	if err != nil {
		t.Fatal(err)
	}
	b, err := cache.Compile(Default(), without)
	if err != nil {
		t.Fatal(err)
	}
	if len(b) >= len(a) {
		t.Errorf("%d bytes without x32, %d with it", len(b), len(a))
	}
}

// TestProgramSize keeps the promise of the package comment.
func TestProgramSize(t *testing.T) {
	for _, arch := range []Arch{AMD64, ARM64} {
		code, err := Default().Compile(Target{arch, caps.Default, Version{6, 18}, false})
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%v: %d instructions", arch, len(code)/8)
		if len(code)/8 > 1500 {
			t.Errorf("%v: %d instructions", arch, len(code)/8)
		}
	}
}

func BenchmarkCompile(b *testing.B) {
	for b.Loop() {
		if _, err := Default().Compile(Target{AMD64, caps.Default, Version{6, 18}, false}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCache(b *testing.B) {
	var c Cache
	for b.Loop() {
		if _, err := c.Compile(Default(), Target{AMD64, caps.Default, Version{6, 18}, false}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkLoad has the kernel check, translate and keep the default filter, as for each container and exec.
func BenchmarkLoad(b *testing.B) {
	target, err := Host()
	if err != nil {
		b.Fatal(err)
	}
	target.Caps = caps.Default
	for name, no := range map[string]bool{"x32": false, "no x32": true} {
		b.Run(name, func(b *testing.B) {
			target.NoX32 = no
			code, err := Default().Compile(target)
			if err != nil {
				b.Fatal(err)
			}
			var took time.Duration
			for b.Loop() {
				done := make(chan time.Duration)
				go func() {
					runtime.LockOSThread() // the thread ends with the goroutine
					begin := time.Now()
					if err := filter.Load(code); err != nil {
						b.Error(err)
					}
					done <- time.Since(begin)
				}()
				took += <-done
			}
			b.ReportMetric(float64(took.Nanoseconds())/float64(b.N), "ns/load")
			b.ReportMetric(float64(len(code)/filter.InstructionSize), "instructions")
		})
	}
}
