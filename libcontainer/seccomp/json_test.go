package seccomp

import (
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"berth/libcontainer/caps"
)

func TestParse(t *testing.T) {
	p, err := Parse([]byte(`{
		"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38,
		"archMap": [
			{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"]},
			{"architecture": "SCMP_ARCH_S390X", "subArchitectures": ["SCMP_ARCH_S390"]}],
		"flags": ["SECCOMP_FILTER_FLAG_TSYNC"],
		"syscalls": [
			{"names": ["read", "write"], "action": "SCMP_ACT_ALLOW", "args": [], "comment": "x",
			 "includes": {"caps": ["CAP_KILL"], "minKernel": "4.8"}, "excludes": {}},
			{"name": "ioctl", "action": "SCMP_ACT_ERRNO", "errno": "ENOTTY",
			 "args": [{"index": 1, "value": 4294967295, "valueTwo": 21522, "op": "SCMP_CMP_MASKED_EQ"},
			          {"index": 0, "value": 2, "op": "SCMP_CMP_GT"}],
			 "excludes": {"arches": ["arm64"], "caps": ["CAP_SYS_ADMIN"]}},
			{"names": ["personality"], "action": "SCMP_ACT_LOG",
			 "args": [{"index": 0, "value": 0, "op": "SCMP_CMP_EQ"}, {"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]}]}`))
	if err != nil {
		t.Fatal(err)
	}
	want := &Profile{
		Fallback: Errno(unix.ENOSYS),
		Arches:   map[Arch][]Arch{AMD64: {X32, I386}},
		Rules: []Rule{
			{Names: []string{"read", "write"}, Action: Allow, If: If{Caps: caps.Of(unix.CAP_KILL), Kernel: Version{4, 8}}},
			{Names: []string{"ioctl"}, Action: Errno(unix.ENOTTY),
				Args:   []Arg{{1, MaskedEqual, 21522, 4294967295}, {0, Greater, 2, 0}},
				Unless: Unless{Arches: []string{"arm64"}, Caps: caps.Of(unix.CAP_SYS_ADMIN)}},
			{Names: []string{"personality"}, Action: Log, Args: []Arg{{0, Equal, 0, 0}}},
			{Names: []string{"personality"}, Action: Log, Args: []Arg{{0, Equal, 8, 0}}},
		},
	}
	if !reflect.DeepEqual(p, want) {
		t.Errorf("got  %+v\nwant %+v", p, want)
	}
}

func TestParseRefuses(t *testing.T) {
	const call = `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_ERRNO",`
	for text, want := range map[string]string{
		``:                                      "EOF",
		`[]`:                                    "cannot unmarshal",
		`{}`:                                    `defaultAction: unknown action ""`,
		`{"defaultAction":"SCMP_ACT_ALLOW"} {}`: "something follows",
		`{"defaultAction":"SCMP_ACT_ERRNO","defaultAction":"SCMP_ACT_ALLOW"}`:                 "twice",
		`{"defaultAction":"SCMP_ACT_ERRNO","DefaultAction":"SCMP_ACT_ALLOW"}`:                 "twice",
		`{"defaultAction":"SCMP_ACT_NOTIFY"}`:                                                 "not supported",
		`{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":65536}`:                          "cannot unmarshal",
		`{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":4096}`:                           "above 4095",
		`{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":-1}`:                             "cannot unmarshal",
		`{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"/x"}`:                              "listeners",
		`{"defaultAction":"SCMP_ACT_ALLOW","flags":["SECCOMP_FILTER_FLAG_LOG"]}`:              "flag",
		`{"defaultAction":"SCMP_ACT_ALLOW","sycalls":[]}`:                                     "unknown field",
		`{"defaultAction":"SCMP_ACT_ALLOW","architectures":["A"],"archMap":[{}]}`:             "exclude each other",
		call + `"args":[{"index":6,"op":"SCMP_CMP_EQ"}]}]}`:                                   "argument 6",
		call + `"args":[{"index":-1,"op":"SCMP_CMP_EQ"}]}]}`:                                  "argument -1",
		call + `"args":[{"index":0,"op":"=="}]}]}`:                                            "operator",
		call + `"name":"write"}]}`:                                                            "exclude each other",
		call + `"includes":{"caps":["CAP_FLY"]}}]}`:                                           "CAP_FLY",
		call + `"includes":{"minKernel":"four"}}]}`:                                           "four",
		call + `"errno":"EWHAT"}]}`:                                                           "EWHAT",
		strings.Repeat(`{"syscalls":[`, 40):                                                   "nested too deeply",
		`{"defaultAction":"SCMP_ACT_ALLOW","flags":["` + strings.Repeat("x", MaxJSON) + `"]}`: "larger",
	} {
		if p, err := Parse([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Parse(%.60s) = %v, %v; want an error with %q", text, p, err, want)
		}
	}
}

func TestFromOption(t *testing.T) {
	for value, want := range map[string]*Profile{"": Default(), "builtin": Default(), "unconfined": nil} {
		if p, err := FromOption(value); p != want || err != nil {
			t.Errorf("FromOption(%q) = %p, %v", value, p, err)
		}
	}
	if p, err := FromOption(` {"defaultAction":"SCMP_ACT_ALLOW"}`); err != nil || p == nil || p.Fallback != Allow {
		t.Errorf("JSON: %v, %v", p, err)
	}
	if p, err := FromOption("/etc/passwd"); err == nil {
		t.Errorf("a path: %v", p)
	}
}

func TestUnknownNames(t *testing.T) {
	p := &Profile{Rules: []Rule{{Names: []string{"read", "raed", "breakpoint"}}, {Names: []string{"raed"}}}}
	if got := p.UnknownNames(); !reflect.DeepEqual(got, []string{"raed"}) {
		t.Errorf("UnknownNames() = %q", got)
	}
	// Those of ppc64, s390 and riscv aside, the default profile has none.
	for _, name := range Default().UnknownNames() {
		if name != "riscv_hwprobe" && name != "riscv_flush_icache" {
			t.Errorf("the default profile names %s, which the table lacks", name)
		}
	}
}

// TestOperators tries each comparison around each boundary of both words.
func TestOperators(t *testing.T) {
	values := []uint64{0, 1, 2, 1<<32 - 1, 1 << 32, 1<<32 + 1, 1<<33 + 5, 1<<63 - 1, 1 << 63, 1<<64 - 1}
	holds := map[Op]func(a, v, m uint64) bool{
		Equal:          func(a, v, _ uint64) bool { return a == v },
		NotEqual:       func(a, v, _ uint64) bool { return a != v },
		Less:           func(a, v, _ uint64) bool { return a < v },
		LessOrEqual:    func(a, v, _ uint64) bool { return a <= v },
		Greater:        func(a, v, _ uint64) bool { return a > v },
		GreaterOrEqual: func(a, v, _ uint64) bool { return a >= v },
		MaskedEqual:    func(a, v, m uint64) bool { return a&m == v },
	}
	for op, hold := range holds {
		for _, value := range values {
			mask := value | 1<<40
			p := &Profile{Fallback: eperm, Rules: []Rule{
				{Names: []string{"ioctl"}, Action: Log, Args: []Arg{{5, op, value, mask}, {2, Equal, 7, 0}}},
				{Names: []string{"ioctl"}, Action: Allow},
			}}
			m := compile(t, p, Target{Arch: AMD64})
			nr, _ := number("ioctl", AMD64)
			for _, a := range values {
				for _, third := range []uint64{7, 8} {
					want := Allow
					if hold(a, value, mask) && third == 7 {
						want = Log
					}
					if got := m.run(t, AMD64, nr, 0, 0, third, 0, 0, a); got != want {
						t.Errorf("op %d: argument %#x, value %#x, mask %#x, third %d: %#x, want %#x", op, a, value, mask, third, got, want)
					}
				}
			}
		}
	}
}

func TestCache(t *testing.T) {
	var c Cache
	get := func(p *Profile, set caps.Set) *byte {
		t.Helper()
		code, err := c.Compile(p, Target{AMD64, set, Version{6, 18}, false})
		if err != nil {
			t.Fatal(err)
		}
		return &code[0]
	}
	first := get(Default(), caps.Default)
	if get(Default(), caps.Default|caps.Of(unix.CAP_MKNOD)) != first {
		t.Error("a capability that the profile does not ask about makes another program")
	}
	if get(Default(), caps.Default|caps.Of(unix.CAP_SYS_ADMIN)) == first {
		t.Error("SYS_ADMIN gets the program without it")
	}
	if get(&Profile{Fallback: Allow}, caps.Default) == first {
		t.Error("two profiles share a program")
	}
	for i := range 2 * maxCached {
		get(&Profile{Fallback: Errno(unix.Errno(i))}, 0)
	}
	if len(c.programs) > maxCached {
		t.Errorf("%d programs are kept", len(c.programs))
	}
}

func TestTooLong(t *testing.T) {
	p := &Profile{Fallback: eperm}
	for i := range uint64(3000) {
		p.Rules = append(p.Rules, Rule{Names: []string{"ioctl"}, Action: Allow, Args: []Arg{{1, Equal, i, 0}}})
	}
	if _, err := p.Compile(Target{Arch: AMD64}); err == nil {
		t.Error("a program of more than 4096 instructions was made")
	}
}

// TestLongJumps has rules that push targets out of reach of a conditional jump.
func TestLongJumps(t *testing.T) {
	p := &Profile{Fallback: eperm}
	for i := range uint64(200) {
		p.Rules = append(p.Rules, Rule{Names: []string{"ioctl"}, Action: Errno(unix.Errno(i + 10)), Args: []Arg{{1, Equal, i << 20, 0}, {0, Less, 5, 0}}})
	}
	m := compile(t, p, Target{Arch: AMD64})
	nr, _ := number("ioctl", AMD64)
	for i := range uint64(200) {
		if got := m.run(t, AMD64, nr, 4, i<<20); got != Errno(unix.Errno(i+10)) {
			t.Errorf("rule %d answers %#x", i, got)
		}
		if got := m.run(t, AMD64, nr, 5, i<<20); got != eperm {
			t.Errorf("past rule %d the answer is %#x", i, got)
		}
	}
}

// FuzzParse: whatever parses compiles into a program that is well-formed, or is
// too long.
func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"defaultAction":"SCMP_ACT_ERRNO","architectures":["SCMP_ARCH_X86"],"syscalls":[{"names":["read","clone"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":18446744073709551615,"op":"SCMP_CMP_LE"}]}]}`))
	f.Add([]byte(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"name":"ptrace","action":"SCMP_ACT_TRACE","errnoRet":7,"includes":{"caps":["CAP_SYS_PTRACE"],"arches":["amd64"],"minKernel":"4.8"}}]}`))
	f.Add([]byte(`{"defaultAction":"SCMP_ACT_KILL","syscalls":[{"names":["read"],"action":"SCMP_ACT_ERRNO","args":[{"index":1,"value":3,"valueTwo":1,"op":"SCMP_CMP_MASKED_EQ"},{"index":1,"op":"SCMP_CMP_NE"}]}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := Parse(data)
		if err != nil {
			return
		}
		for _, arch := range []Arch{AMD64, ARM64} {
			code, err := p.Compile(Target{arch, caps.Default, Version{6, 18}, false})
			if err == errTooLong {
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			m := newMachine(t, code)
			nr, _ := number("read", arch)
			m.run(t, arch, nr, 1, 2, 3)
		}
	})
}
