package seccomp

import (
	"errors"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Arch is a system call ABI; its value is the column in the table of numbers.
type Arch int

const (
	AMD64 Arch = iota
	X32        // 32-bit pointers on amd64: AMD64's audit architecture, bit 30 of the number set
	I386
	ARM64
	ARM
	arches
)

// x32Bit marks an x32 call (__X32_SYSCALL_BIT).
const x32Bit = 0x40000000

var archInfo = [arches]struct {
	name    string // in conditions of rules, Docker's spelling
	scmp    string // in Docker's JSON, libseccomp's spelling
	audit   uint32
	private uint32 // numbers from here on are old calls of this ABI's own
}{
	AMD64: {"amd64", "SCMP_ARCH_X86_64", unix.AUDIT_ARCH_X86_64, noPrivate},
	X32:   {"x32", "SCMP_ARCH_X32", unix.AUDIT_ARCH_X86_64, 512},
	I386:  {"x86", "SCMP_ARCH_X86", unix.AUDIT_ARCH_I386, noPrivate},
	ARM64: {"arm64", "SCMP_ARCH_AARCH64", unix.AUDIT_ARCH_AARCH64, noPrivate},
	ARM:   {"arm", "SCMP_ARCH_ARM", unix.AUDIT_ARCH_ARM, 0xf0000}, // __ARM_NR_BASE
}

const noPrivate = 1 << 31

// family are the architectures that a machine of the first can run.
var family = map[Arch][]Arch{AMD64: {X32, I386}, ARM64: {ARM}}

func (a Arch) String() string { return archInfo[a].name }

// row is one call in the table of numbers.
type row struct {
	name    string
	numbers [arches]int32 // by Arch, -1 where there is none
}

// lookup finds a row; the generated table is sorted by name.
func lookup(name string) (*row, bool) {
	i, ok := slices.BinarySearchFunc(syscalls, name, func(s row, name string) int {
		return strings.Compare(s.name, name)
	})
	if !ok {
		return nil, false
	}
	return &syscalls[i], true
}

// number finds a call's number on arch, for x32 less its bit.
func number(name string, arch Arch) (uint32, bool) {
	s, ok := lookup(name)
	if !ok || s.numbers[arch] < 0 {
		return 0, false
	}
	return uint32(s.numbers[arch]), true
}

// Version is a kernel version as far as rules know it: 4.8 is {4, 8}.
type Version struct{ Major, Minor int }

func (v Version) before(w Version) bool {
	return v.Major < w.Major || v.Major == w.Major && v.Minor < w.Minor
}

// ParseVersion reads the beginning of a kernel release: "4.8",
// "3.10.0-1160.el7.x86_64", "6.18-rc2".
func ParseVersion(release string) (Version, error) {
	major, rest, _ := strings.Cut(release, ".")
	end := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' })
	if end < 0 {
		end = len(rest)
	}
	a, err1 := strconv.ParseUint(major, 10, 16)
	b, err2 := strconv.ParseUint(rest[:end], 10, 16)
	if err1 != nil || err2 != nil {
		return Version{}, errors.New("malformed kernel version " + strconv.Quote(release))
	}
	return Version{int(a), int(b)}, nil
}

// Host is the target that this machine is; the caller adds the capabilities.
func Host() (Target, error) {
	t := Target{Arch: AMD64}
	if runtime.GOARCH == "arm64" {
		t.Arch = ARM64
	}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return t, err
	}
	t.NoX32 = noX32()
	var err error
	t.Kernel, err = ParseVersion(unix.ByteSliceToString(uts.Release[:]))
	return t, err
}

// noX32 asks the kernel: most are built without x32, or boot with it off. It does not ask under a filter, which might
// kill for it.
func noX32() bool {
	if mode, err := unix.PrctlRetInt(unix.PR_GET_SECCOMP, 0, 0, 0, 0); runtime.GOARCH != "amd64" || err != nil || mode != 0 {
		return false
	}
	_, _, errno := unix.RawSyscall(x32Bit|unix.SYS_GETPID, 0, 0, 0)
	return errno == unix.ENOSYS
}
