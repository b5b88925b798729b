package seccomp

import (
	"bufio"
	"os"
	"regexp"
	"slices"
	"strconv"
	"testing"

	other "github.com/elastic/go-seccomp-bpf/arch"
)

// TestNumbers compares the generated table with that of another library, which
// took its numbers from the kernel's sources on its own. (It has x32, too, but
// as a copy of amd64.)
func TestNumbers(t *testing.T) {
	for arch, info := range map[Arch]*other.Info{AMD64: other.X86_64, I386: other.I386, ARM64: other.AARCH64, ARM: other.ARM} {
		compareNumbers(t, arch, info.SyscallNames)
	}
}

// TestX32Numbers compares with the kernel's header, which is where x32 has
// numbers of its own.
func TestX32Numbers(t *testing.T) {
	const header = "/usr/include/x86_64-linux-gnu/asm/unistd_x32.h"
	f, err := os.Open(header)
	if err != nil {
		t.Skipf("SKIPPED: needs the kernel's headers: %v", err)
	}
	defer f.Close()
	define := regexp.MustCompile(`#define __NR_(\w+) \(__X32_SYSCALL_BIT \+ (\d+)\)`)
	numbers := map[string]int{}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if m := define.FindStringSubmatch(lines.Text()); m != nil {
			numbers[m[1]], _ = strconv.Atoi(m[2])
		}
	}
	compareNumbers(t, X32, numbers)
}

func compareNumbers(t *testing.T, arch Arch, numbers map[string]int) {
	t.Helper()
	checked := 0
	for name, want := range numbers {
		got, ok := number(name, arch)
		if !ok {
			continue // names differ where the kernel's own tables do
		}
		if int(got) != want {
			t.Errorf("%v: %s is %d, elsewhere %d", arch, name, got, want)
		}
		checked++
	}
	if t.Logf("%v: %d of %d numbers compared", arch, checked, len(numbers)); checked < 300 {
		t.Errorf("%v: only %d numbers to compare", arch, checked)
	}
}

func TestTableIsSorted(t *testing.T) {
	if !slices.IsSortedFunc(syscalls, func(a, b row) int {
		if a.name < b.name {
			return -1
		}
		return 1
	}) {
		t.Error("lookup needs the table sorted by name")
	}
}
