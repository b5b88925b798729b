package devices

import (
	"encoding/hex"
	"slices"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	for _, good := range []string{"c 1:3 rwm", "b 8:* r", "a *:* rwm", "c 136:* rw", "c 10:200 m"} {
		r, err := Parse(good)
		if err != nil || r.String() != good {
			t.Errorf("%q: %v, %v", good, r, err)
		}
	}
	for _, bad := range []string{"", "c", "c 1:3", "x 1:3 r", "c 1 r", "c 1:3 ", "c 1:3 rx", "c -1:3 r", "c 4096:0 r", "c 1:1048576 r", "cc 1:3 r", "c 1:3 r w"} {
		if r, err := Parse(bad); err == nil {
			t.Errorf("%q was taken for %v", bad, r)
		}
	}
}

func TestLines(t *testing.T) {
	deny, allow := Policy{Allow: []Rule{{'a', Any, 7, Read}, {'c', 1, 3, All}}}.Lines()
	if deny != "a" || !slices.Equal(allow, []string{"b *:7 r", "c *:7 r", "c 1:3 rwm"}) {
		t.Errorf("got %q, %q", deny, allow)
	}
	if deny, allow := (Policy{AllowAll: true}).Lines(); deny != "" || !slices.Equal(allow, []string{"a"}) {
		t.Errorf("all: got %q, %q", deny, allow)
	}
}

func TestWithKeepsTheOriginal(t *testing.T) {
	p := Default()
	n := len(p.Allow)
	a, b := p.With(Rule{'c', 10, 200, All}), p.With(Rule{'c', 10, 229, All})
	if len(p.Allow) != n || a.Allow[n].Minor != 200 || b.Allow[n].Minor != 229 {
		t.Errorf("%v, %v, %v", p.Allow, a.Allow, b.Allow)
	}
}

// run interprets a program as the kernel would.
func run(t *testing.T, prog []insn, typ, access, major, minor uint64) uint64 {
	t.Helper()
	var r [6]uint64
	for pc := 0; pc < len(prog); pc++ {
		switch in := prog[pc]; in.op {
		case ldxw:
			r[in.dst] = map[int16]uint64{ctxAccessType: access<<16 | typ, ctxMajor: major, ctxMinor: minor}[in.off]
		case movImm:
			r[in.dst] = uint64(int64(in.imm))
		case movReg:
			r[in.dst] = r[in.src]
		case andImm:
			r[in.dst] &= uint64(int64(in.imm))
		case rshImm:
			r[in.dst] >>= uint64(in.imm)
		case jneImm:
			if r[in.dst] != uint64(int64(in.imm)) {
				pc += int(in.off)
			}
		case jneReg:
			if r[in.dst] != r[in.src] {
				pc += int(in.off)
			}
		case exit:
			return r[0]
		default:
			t.Fatalf("instruction %d has operation %#x", pc, in.op)
		}
	}
	t.Fatal("the program runs off its end")
	return 0
}

func TestProgram(t *testing.T) {
	prog := program(Default().With(
		Rule{'b', 8, Any, Read | Mknod},
		Rule{'a', 200, 5, All},
	))
	const none = 0
	for _, test := range []struct {
		name         string
		typ          uint64
		access       Access
		major, minor uint64
		want         uint64
	}{
		{"null", devChar, Read | Write, 1, 3, 1},
		{"null, read", devChar, Read, 1, 3, 1},
		{"null, as open(2) with no access asks", devChar, none, 1, 3, 1},
		{"null, mknod", devChar, Mknod, 1, 3, 1},
		{"mem, mknod", devChar, Mknod, 1, 1, 1},
		{"mem, as open(2) with no access asks", devChar, none, 1, 1, 0},
		{"mem, mknod and write", devChar, Mknod | Write, 1, 1, 0},
		{"null, all", devChar, All, 1, 3, 0},
		{"block 1:3", devBlock, Read, 1, 3, 0},
		{"mem", devChar, Read, 1, 1, 0},
		{"pts/0", devChar, Read | Write, 136, 0, 1},
		{"pts/1048575", devChar, Read | Write, 136, 1048575, 1},
		{"sda1", devBlock, Read, 8, 1, 1},
		{"sda1, write", devBlock, Write, 8, 1, 0},
		{"sda1, mknod", devBlock, Mknod, 8, 1, 1},
		{"both types: char", devChar, All, 200, 5, 1},
		{"both types: block", devBlock, All, 200, 5, 1},
		{"both types: another minor", devBlock, All, 200, 6, 0},
	} {
		if got := run(t, prog, test.typ, uint64(test.access), test.major, test.minor); got != test.want {
			t.Errorf("%s: got %d, want %d", test.name, got, test.want)
		}
	}
	if run(t, program(Policy{}), devChar, uint64(Read), 1, 3) != 0 {
		t.Error("the empty policy allows")
	}
	if run(t, program(Policy{AllowAll: true}), devChar, uint64(All), 9, 9) != 1 {
		t.Error("the full policy denies")
	}
}

// The layout of struct bpf_insn, as assemblers print it.
func TestEncode(t *testing.T) {
	got := hex.EncodeToString(encode(program(Policy{Allow: []Rule{{'c', 1, 3, All}}})))
	want := strings.Join([]string{
		"6112000000000000", // r2 = *(u32 *)(r1 + 0)
		"bf23000000000000", // r3 = r2
		"7703000010000000", // r3 >>= 16
		"57020000ffff0000", // r2 &= 0xffff
		"6114040000000000", // r4 = *(u32 *)(r1 + 4)
		"6115080000000000", // r5 = *(u32 *)(r1 + 8)
		"5502040002000000", // if r2 != 2 goto +4
		"5504030001000000", // if r4 != 1 goto +3
		"5505020003000000", // if r5 != 3 goto +2
		"b700000001000000", // r0 = 1
		"9500000000000000", // exit
		"b700000000000000", // r0 = 0
		"9500000000000000", // exit
	}, "")
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}
