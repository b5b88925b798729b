package safepath

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// inMountNamespace runs test on a thread with mounts of its own.
func inMountNamespace(t *testing.T, test func(t *testing.T)) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: needs root, to mount over /proc")
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			t.Errorf("unshare: %v", err)
			return
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			t.Errorf("make mounts private: %v", err)
			return
		}
		test(t)
	}()
	<-done
}

// TestReopenFakeProc has containers' versions of /proc in the way.
func TestReopenFakeProc(t *testing.T) {
	root, host := tree(t)
	fd, err := Open(root, "abs", unix.O_PATH, 0)
	must(t, err)
	defer unix.Close(fd)
	fake := filepath.Join(host, "fake")
	must(t, os.MkdirAll(filepath.Join(fake, "thread-self/fd"), 0o755))
	must(t, os.WriteFile(filepath.Join(fake, "thread-self/fd", strconv.Itoa(fd)), []byte("evil"), 0o644))
	for name, mount := range map[string]func() error{
		"another directory":     func() error { return unix.Mount(fake, "/proc", "", unix.MS_BIND, "") },
		"a directory of procfs": func() error { return unix.Mount("/proc/self", "/proc", "", unix.MS_BIND, "") },
		"tmpfs":                 func() error { return unix.Mount("tmpfs", "/proc", "tmpfs", 0, "") },
		"over the descriptors": func() error {
			// "thread-self" of the thread that will look: this one.
			dir := "/proc/self/task/" + strconv.Itoa(unix.Gettid()) + "/fd"
			return unix.Mount(filepath.Join(fake, "thread-self/fd"), dir, "", unix.MS_BIND, "")
		},
	} {
		bothWays(t, func(t *testing.T) {
			inMountNamespace(t, func(t *testing.T) {
				if err := mount(); err != nil {
					t.Errorf("%s: mount: %v", name, err)
					return
				}
				if again, err := Reopen(fd, unix.O_RDONLY); !errors.Is(err, unix.EXDEV) {
					t.Errorf("%s for /proc: Reopen = %d, %v; want EXDEV", name, again, err)
				}
			})
		})
	}
}

// TestMountsInside: a mount below the root is part of it, and ".." leads back
// over its edge but not over the root's.
func TestMountsInside(t *testing.T) {
	bothWays(t, func(t *testing.T) {
		_, host := tree(t)
		inMountNamespace(t, func(t *testing.T) {
			if err := unix.Mount("tmpfs", filepath.Join(host, "root/run"), "tmpfs", 0, ""); err != nil {
				t.Errorf("mount: %v", err)
				return
			}
			// tree opened its root in the old namespace, without the mount.
			root, err := OpenRoot(filepath.Join(host, "root"))
			if err != nil {
				t.Error(err)
				return
			}
			defer unix.Close(root)
			for path, want := range map[string]error{"run/../etc/passwd": nil, "run/made": unix.ENOENT, "run/../../secret": unix.ENOENT} {
				fd, err := Open(root, path, unix.O_RDONLY, 0)
				if !errors.Is(err, want) {
					t.Errorf("Open(%q) = %v, want %v", path, err, want)
				}
				if err == nil {
					unix.Close(fd)
				}
			}
			dir, err := MkdirAll(root, "/var/x", 0o755)
			if err != nil {
				t.Error(err)
				return
			}
			unix.Close(dir)
		})
		if _, err := os.Lstat(filepath.Join(host, "root/run/x")); err == nil {
			t.Error("made below the mount rather than in it")
		}
	})
}
