package rest

import (
	"os"
	"slices"
	"strings"
	"testing"
)

func TestClean(t *testing.T) {
	// Of each mapping, some of the lines that proc_pid_smaps(5) shows.
	const smaps = `00400000-00856000 r-xp 00000000 fe:01 4242                               /opt/my berth/apid (deleted)
Size:               4440 kB
Rss:                3772 kB
Anonymous:             0 kB
VmFlags: rd ex mr mw me 
00856000-00db4000 r--p 00456000 fe:01 4242                               /opt/my berth/apid (deleted)
Anonymous:             0 kB
00db4000-00db5000 r--p 00456000 fe:01 4242                               /opt/my berth/apid (deleted)
Anonymous:             4 kB
00db5000-00e1b000 rw-p 009b4000 fe:01 4242                               /opt/my berth/apid (deleted)
Anonymous:             0 kB
00e1b000-02e5f000 rw-p 00000000 00:00 0 
Anonymous:             0 kB
7f2200000000-7f2200010000 r--s 00000000 fe:01 4242                       /opt/my berth/apid (deleted)
Anonymous:             0 kB
7f2200010000-7f2200020000 r--p 00000000 fe:01 99                         /usr/share/zoneinfo/UTC
Anonymous:             0 kB
7fff00000000-7fff00002000 r-xp 00000000 00:00 0                          [vdso]
Anonymous:             0 kB
`
	got, err := clean(strings.NewReader(smaps), "/opt/my berth/apid (deleted)")
	want := []mapping{{0x400000, 0x856000}, {0x856000, 0xdb4000}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%x %v, want %x", got, err, want)
	}
	if _, err := clean(strings.NewReader("zz-00856000 r-xp 0 0 0 /a\n"), "/a"); err == nil {
		t.Error("an address that is none was taken")
	}
}

// TestForgetProgram: all of this program is in memory; then most of it is not, and it goes on.
func TestForgetProgram(t *testing.T) {
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	mem, err := os.Open("/proc/self/mem")
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	maps, err := clean(f, program)
	if err != nil || len(maps) == 0 {
		t.Fatalf("mappings of %s: %v, %v", program, maps, err)
	}
	size := 0
	for _, m := range maps {
		b := make([]byte, m.end-m.start)
		if _, err := mem.ReadAt(b, int64(m.start)); err != nil {
			t.Fatal(err)
		}
		size += len(b) >> 10
	}
	before := residentFile(t)
	if before < size {
		t.Fatalf("%d KiB of files are resident after reading %d: the measure is wrong", before, size)
	}
	if err := forgetProgram(); err != nil {
		t.Fatal(err)
	}
	if after := residentFile(t); after > before-size/4 { // what the test needs is back
		t.Errorf("%d KiB of files are resident, %d before, %d of them the program", after, before, size)
	}
}

// residentFile is this process's memory that is mapped from files, in KiB.
func residentFile(t *testing.T) int { return status(t, "RssFile:") }
