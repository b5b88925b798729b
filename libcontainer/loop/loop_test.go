package loop

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// file makes a file of 64 KiB in dir, and skips where there are no loop devices.
func file(t *testing.T, dir string) *os.File {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: needs root")
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		t.Skip("SKIPPED: needs loop devices: ", err)
	}
	f, err := os.CreateTemp(dir, "image")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if _, err := f.Write(bytes.Repeat([]byte("berth..."), 8192)); err != nil {
		t.Fatal(err)
	}
	return f
}

// attached are the loop devices that show files below dir.
func attached(t *testing.T, dir string) (all []string) {
	t.Helper()
	files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && strings.HasPrefix(string(b), dir+"/") {
			all = append(all, f)
		}
	}
	return all
}

// free waits until no device shows a file below dir: the kernel frees some in the background.
func free(t *testing.T, dir string) {
	t.Helper()
	for began := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		left := attached(t, dir)
		if len(left) == 0 {
			return
		}
		if time.Since(began) > 5*time.Second {
			t.Fatalf("still attached: %v", left)
		}
	}
}

func TestAttach(t *testing.T) {
	for name, o := range map[string]Options{"at once": {}, "old": {Old: true}} {
		for _, size := range []int{512, 4096} {
			dir := t.TempDir()
			f := file(t, dir)
			d, err := Attach(int(f.Fd()), f.Name(), size, o)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			got := make([]byte, 65536)
			if _, err := d.file.ReadAt(got, 0); err != nil || !bytes.HasPrefix(got, []byte("berth...berth...")) {
				t.Errorf("%s: the device has %q, %v", name, got[:16], err)
			}
			if w, err := os.OpenFile(d.Path, os.O_WRONLY, 0); err == nil {
				if _, err := w.Write(got[:4096]); err == nil {
					t.Errorf("%s: the device can be written to", name)
				}
				w.Close()
			}
			if b, err := unix.IoctlGetInt(int(d.file.Fd()), unix.BLKSSZGET); err != nil || b != size {
				t.Errorf("%s: sectors of %d bytes, want %d; %v", name, b, size, err)
			}
			direct, err := d.Direct()
			t.Logf("%s, sectors of %d bytes: direct reads: %v, %v", name, size, direct, err)
			d.Close()
			free(t, dir)
		}
	}
}

// Many at once take devices from one another, and all get one.
func TestAttachRace(t *testing.T) {
	dir := t.TempDir()
	f := file(t, dir)
	t.Cleanup(func() { free(t, dir) }) // once all are closed
	var all sync.WaitGroup
	var mu sync.Mutex
	paths := map[string]bool{}
	const users = 24
	for i := range users {
		all.Go(func() {
			d, err := Attach(int(f.Fd()), f.Name(), 512, Options{Old: i%2 == 0})
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			paths[d.Path] = true
			t.Cleanup(func() { d.Close() })
		})
	}
	all.Wait()
	if len(paths) != users {
		t.Errorf("%d devices for %d users", len(paths), users)
	}
}

const killEnv = "BERTH_LOOP_TEST_DIR"

// A process that is killed with devices open leaves none; one that is killed while
// it attaches one by the old calls leaves that, and Release frees it, but none that
// is another's.
func TestF01KilledWithLoopDevices(t *testing.T) {
	if dir := os.Getenv(killEnv); dir != "" {
		f := file(t, dir)
		if _, err := Attach(int(f.Fd()), f.Name(), 512, Options{}); err != nil {
			t.Fatal(err)
		}
		if _, err := Attach(int(f.Fd()), f.Name(), 512, Options{Old: true}); err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(dir, "between") {
			Attach(int(f.Fd()), f.Name(), 512, Options{Old: true, between: func() { unix.Kill(os.Getpid(), unix.SIGKILL) }})
		}
		unix.Kill(os.Getpid(), unix.SIGKILL)
	}
	base := t.TempDir()
	other := filepath.Join(base, "other")
	if err := os.Mkdir(other, 0o755); err != nil {
		t.Fatal(err)
	}
	theirs := file(t, other)
	keep, err := Attach(int(theirs.Fd()), theirs.Name(), 512, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer keep.Close()
	for _, name := range []string{"after", "between"} {
		dir := filepath.Join(base, name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		child := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$")
		child.Env = append(os.Environ(), killEnv+"="+dir)
		out, err := child.CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			t.Fatalf("the child was not killed: %v\n%s", err, out)
		}
		want := 0
		if name == "between" {
			want = 1
		}
		for began := time.Now(); len(attached(t, dir)) != want; time.Sleep(5 * time.Millisecond) {
			if time.Since(began) > 5*time.Second {
				t.Fatalf("%s: %v are attached, want %d", name, attached(t, dir), want)
			}
		}
		freed, err := Release(dir)
		if err != nil || len(freed) != want {
			t.Errorf("%s: freed %v, %v", name, freed, err)
		}
		free(t, dir)
	}
	if freed, err := Release(other); err != nil || slices.Contains(freed, keep.Path) {
		t.Errorf("a device that goes by itself was freed: %v, %v", freed, err)
	}
	if len(attached(t, other)) != 1 {
		t.Error("a device of another is gone")
	}
}

func TestBlockSizeOf(t *testing.T) {
	f := file(t, t.TempDir())
	if n := BlockSizeOf(int(f.Fd())); n != 512 {
		t.Errorf("of no image: %d", n)
	}
	for bits, want := range map[byte]int{9: 512, 12: 4096, 16: 4096, 0: 512} {
		f.WriteAt([]byte{0xE2, 0xE1, 0xF5, 0xE0, 12: bits, 15: 0}, 1024)
		if n := BlockSizeOf(int(f.Fd())); n != want {
			t.Errorf("of blocks of 1<<%d: %d, want %d", bits, n, want)
		}
	}
}
