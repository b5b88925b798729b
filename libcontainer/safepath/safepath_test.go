package safepath

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// bothWays runs the test by openat2 and by the walk.
func bothWays(t *testing.T, test func(t *testing.T)) {
	t.Helper()
	t.Run("openat2", func(t *testing.T) {
		if !haveOpenat2() {
			t.Skip("SKIPPED: this kernel has no openat2")
		}
		test(t)
	})
	t.Run("walk", func(t *testing.T) {
		forceWalk(t)
		test(t)
	})
}

func forceWalk(tb testing.TB) {
	old := haveOpenat2
	haveOpenat2 = func() bool { return false }
	tb.Cleanup(func() { haveOpenat2 = old })
}

// tree makes a host directory with a root in it, and returns both:
//
//	secret           outside, "host"
//	root/etc/passwd  "inside"
//	root/…           links of every sort, as in the table of TestOpen
func tree(tb testing.TB) (root int, host string) {
	tb.Helper()
	host = tb.TempDir()
	must(tb, os.WriteFile(filepath.Join(host, "secret"), []byte("host"), 0o600))
	dir := filepath.Join(host, "root")
	must(tb, os.MkdirAll(filepath.Join(dir, "etc/deep"), 0o755))
	must(tb, os.MkdirAll(filepath.Join(dir, "run"), 0o755))
	must(tb, os.WriteFile(filepath.Join(dir, "etc/passwd"), []byte("inside"), 0o644))
	for name, target := range map[string]string{
		"var":         "/run/../run",
		"abs":         "/etc/passwd",
		"rel":         "etc/passwd",
		"up":          "../../../../etc/passwd",
		"out":         "../secret",
		"hostabs":     filepath.Join(host, "secret"),
		"dangling":    "/run/made/later",
		"loop":        "loop2",
		"loop2":       "/loop",
		"etc/deep/up": "../../../secret",
		"dirlink":     "etc/deep/..",
		"slash":       "etc/",
		"root":        "/",
		"fileslash":   "etc/passwd/",
	} {
		must(tb, os.Symlink(target, filepath.Join(dir, name)))
	}
	for i := range maxLinks + 2 { // chain40 leads to passwd over 40 links
		target := "/etc/passwd"
		if i > 1 {
			target = "chain" + strconv.Itoa(i-1)
		}
		if i > 0 {
			must(tb, os.Symlink(target, filepath.Join(dir, "chain"+strconv.Itoa(i))))
		}
	}
	root, err := OpenRoot(dir)
	must(tb, err)
	tb.Cleanup(func() { unix.Close(root) })
	return root, host
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

func content(tb testing.TB, fd int) string {
	tb.Helper()
	buf := make([]byte, 64)
	n, err := unix.Read(fd, buf)
	must(tb, err)
	return string(buf[:n])
}

func TestOpen(t *testing.T) {
	root, _ := tree(t)
	tests := []struct {
		path    string
		want    error // in the root
		beneath error // below it
	}{
		{"etc/passwd", nil, nil},
		{"/etc/passwd", nil, unix.EXDEV},
		{"//etc/./deep/../passwd", nil, unix.EXDEV},
		{"../../etc/passwd", nil, unix.EXDEV},
		{"etc/../../etc/passwd", nil, unix.EXDEV},
		{"abs", nil, unix.EXDEV},
		{"rel", nil, nil},
		{"up", nil, unix.EXDEV},
		{"dirlink/passwd", nil, nil},
		{"slash/passwd", nil, nil},
		{"root/etc/passwd", nil, unix.EXDEV},
		{"chain40", nil, unix.EXDEV},
		{"chain41", unix.ELOOP, unix.ELOOP},
		{"out", unix.ENOENT, unix.EXDEV},
		{"hostabs", unix.ENOENT, unix.EXDEV},
		{"etc/deep/up", unix.ENOENT, unix.EXDEV},
		{"loop", unix.ELOOP, unix.EXDEV},
		{"dangling", unix.ENOENT, unix.EXDEV},
		{"etc/passwd/", unix.ENOTDIR, unix.ENOTDIR},
		{"etc/passwd/.", unix.ENOTDIR, unix.ENOTDIR},
		{"etc/passwd/..", unix.ENOTDIR, unix.ENOTDIR},
		{"fileslash", unix.ENOTDIR, unix.ENOTDIR},
		{"missing/../etc/passwd", unix.ENOENT, unix.ENOENT},
		{"", unix.ENOENT, unix.ENOENT},
		{"etc/pass\x00wd", unix.EINVAL, unix.EINVAL},
		{strings.Repeat("./", 2048) + "etc/passwd", unix.ENAMETOOLONG, unix.ENAMETOOLONG},
	}
	bothWays(t, func(t *testing.T) {
		for _, test := range tests {
			fd, err := Open(root, test.path, unix.O_RDONLY, 0)
			check(t, "Open", test.path, fd, err, test.want)
			fd, err = OpenBeneath(root, test.path, unix.O_RDONLY, 0)
			check(t, "OpenBeneath", test.path, fd, err, test.beneath)
		}
	})
}

func check(t *testing.T, call, path string, fd int, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s(%.40q) = %v, want %v", call, path, err, want)
		return
	}
	if err != nil {
		if fd != -1 {
			t.Errorf("%s(%.40q) = descriptor %d with error %v", call, path, fd, err)
		}
		return
	}
	defer unix.Close(fd)
	if got := content(t, fd); got != "inside" {
		t.Errorf("%s(%.40q) reads %q, want the file inside", call, path, got)
	}
	if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("%s(%.40q): not close-on-exec", call, path)
	}
}

func TestOpenCreates(t *testing.T) {
	bothWays(t, func(t *testing.T) {
		root, host := tree(t)
		fd, err := Open(root, "/var/new", unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0o640)
		must(t, err)
		unix.Close(fd)
		info, err := os.Lstat(filepath.Join(host, "root/run/new"))
		must(t, err)
		if info.Mode().Perm() != 0o640 {
			t.Errorf("mode %v, want 0640", info.Mode())
		}
		if _, err := Open(root, "dangling", unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0o600); !errors.Is(err, unix.EEXIST) {
			t.Errorf("exclusive create over a link: %v, want EEXIST", err)
		}
		if _, err := Open(root, "rel", unix.O_RDONLY|unix.O_NOFOLLOW, 0); !errors.Is(err, unix.ELOOP) {
			t.Errorf("O_NOFOLLOW on a link: %v, want ELOOP", err)
		}
	})
}

func TestMagicLinks(t *testing.T) {
	bothWays(t, func(t *testing.T) {
		proc, err := OpenProc()
		must(t, err)
		defer unix.Close(proc)
		for _, path := range []string{"self/exe", "self/root", "self/cwd/x", "self/fd/0", "self/ns/mnt"} {
			if fd, err := Open(proc, path, unix.O_PATH, 0); !errors.Is(err, unix.ELOOP) {
				t.Errorf("Open(%q) = %d, %v, want ELOOP", path, fd, err)
			}
		}
		for _, path := range []string{"self/status", "mounts", "net/dev", "thread-self/comm"} {
			fd, err := Open(proc, path, unix.O_PATH, 0)
			if err != nil {
				t.Errorf("Open(%q): %v", path, err)
				continue
			}
			unix.Close(fd)
		}
	})
}

func TestMkdirAll(t *testing.T) {
	bothWays(t, func(t *testing.T) {
		root, host := tree(t)
		for _, path := range []string{"a/b/c", "/var/lib/x/", "dangling/end", "a/../d/./e", "../../../f", "etc", "/"} {
			fd, err := MkdirAll(root, path, 0o750)
			if err != nil {
				t.Errorf("MkdirAll(%q): %v", path, err)
				continue
			}
			unix.Close(fd)
		}
		for _, path := range []string{"a/b/c", "run/lib/x", "run/made/later/end", "d/e", "f"} {
			info, err := os.Lstat(filepath.Join(host, "root", path))
			if err != nil || !info.IsDir() || info.Mode().Perm() != 0o750 {
				t.Errorf("%s: %v, %v; want a directory of mode 0750", path, info, err)
			}
		}
		for path, want := range map[string]error{"etc/passwd": unix.ENOTDIR, "etc/passwd/x": unix.ENOTDIR, "loop/x": unix.ELOOP, "": unix.ENOENT} {
			if _, err := MkdirAll(root, path, 0o755); !errors.Is(err, want) {
				t.Errorf("MkdirAll(%q) = %v, want %v", path, err, want)
			}
		}
		wantEntries(t, host, "root", "secret")
	})
}

func TestCreateFile(t *testing.T) {
	bothWays(t, func(t *testing.T) {
		root, host := tree(t)
		must(t, unix.Mkfifo(filepath.Join(host, "root/fifo"), 0o600))
		for path, kind := range map[string]uint32{
			"etc/resolv.conf": unix.S_IFREG, "x/y/z": unix.S_IFREG, "/var/f": unix.S_IFREG, "dangling": unix.S_IFREG,
			"abs": unix.S_IFREG, "fifo": unix.S_IFIFO, "etc": unix.S_IFDIR,
		} {
			fd, err := CreateFile(root, path, 0o644)
			if err != nil {
				t.Errorf("CreateFile(%q): %v", path, err)
				continue
			}
			if got, _ := kindOf(fd); got != kind {
				t.Errorf("CreateFile(%q) is of kind %#o, want %#o", path, got, kind)
			}
			unix.Close(fd)
		}
		for _, path := range []string{"etc/resolv.conf", "x/y/z", "run/f", "run/made/later"} {
			if info, err := os.Lstat(filepath.Join(host, "root", path)); err != nil || !info.Mode().IsRegular() || info.Mode().Perm() != 0o644 {
				t.Errorf("%s: %v, %v; want a file of mode 0644", path, info, err)
			}
		}
		if got, _ := os.ReadFile(filepath.Join(host, "root/etc/passwd")); string(got) != "inside" {
			t.Errorf("an existing file now reads %q", got)
		}
		wantEntries(t, host, "root", "secret")
	})
}

// wantEntries fails if anything was made outside the root.
func wantEntries(t *testing.T, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("host directory holds %v, want %v", got, want)
	}
}

func TestNodes(t *testing.T) {
	bothWays(t, func(t *testing.T) {
		root, _ := tree(t)
		must(t, Mkdir(root, "/var/d", 0o700))
		must(t, Symlink(root, "/anything", "var/l"))
		must(t, Mknod(root, "var/p", unix.S_IFIFO|0o600, 0))
		if text, err := Readlink(root, "/var/l"); err != nil || text != "/anything" {
			t.Errorf("Readlink = %q, %v", text, err)
		}
		if _, err := Readlink(root, "etc/passwd"); !errors.Is(err, unix.EINVAL) {
			t.Errorf("Readlink of a file: %v, want EINVAL", err)
		}
		if st, err := Lstat(root, "run/p"); err != nil || st.Mode&unix.S_IFMT != unix.S_IFIFO {
			t.Errorf("Lstat of the FIFO: mode %#o, %v", st.Mode, err)
		}
		if st, err := Stat(root, "abs"); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
			t.Errorf("Stat through a link: mode %#o, %v", st.Mode, err)
		}
		if err := Mkdir(root, "dangling", 0o700); !errors.Is(err, unix.EEXIST) {
			t.Errorf("Mkdir over a link: %v, want EEXIST", err)
		}
		for _, path := range []string{"run/d", "run/l", "run/p"} {
			must(t, Remove(root, path))
		}
		for path, want := range map[string]error{"/": unix.EINVAL, "etc/..": unix.EINVAL, "etc": unix.ENOTEMPTY, "nothing": unix.ENOENT} {
			if err := Remove(root, path); !errors.Is(err, want) {
				t.Errorf("Remove(%q) = %v, want %v", path, err, want)
			}
		}
	})
}

func TestReopen(t *testing.T) {
	bothWays(t, func(t *testing.T) {
		root, _ := tree(t)
		fd, err := Open(root, "abs", unix.O_PATH, 0)
		must(t, err)
		defer unix.Close(fd)
		again, err := Reopen(fd, unix.O_RDONLY)
		must(t, err)
		defer unix.Close(again)
		if got := content(t, again); got != "inside" {
			t.Errorf("reopened file reads %q", got)
		}
		dir, err := Reopen(root, unix.O_RDONLY)
		must(t, err)
		unix.Close(dir)
		link, err := Open(root, "abs", unix.O_PATH|unix.O_NOFOLLOW, 0)
		must(t, err)
		defer unix.Close(link)
		if _, err := Reopen(link, unix.O_RDONLY); !errors.Is(err, unix.ELOOP) {
			t.Errorf("Reopen of a link: %v, want ELOOP", err)
		}
		if _, err := Reopen(fd, unix.O_CREAT); !errors.Is(err, unix.EINVAL) {
			t.Errorf("Reopen with O_CREAT: %v, want EINVAL", err)
		}
	})
}

// TestS09RenameRace lets an attacker swap a directory with a link to the host
// as fast as it can, while files are made and read below it: everything must
// stay inside, whichever of the two the lookup meets.
func TestS09RenameRace(t *testing.T) {
	bothWays(t, func(t *testing.T) {
		root, host := tree(t)
		inside := filepath.Join(host, "root")
		must(t, os.Mkdir(filepath.Join(inside, "swap"), 0o755))
		must(t, os.Symlink("../../..", filepath.Join(inside, "evil")))
		must(t, os.Symlink(host, filepath.Join(inside, "evil2")))
		var stop atomic.Bool
		done := make(chan int)
		go func() {
			n := 0
			for ; !stop.Load(); n++ {
				evil := "evil"
				if n%4 > 1 { // there and back with each
					evil = "evil2"
				}
				if unix.Renameat2(root, "swap", root, evil, unix.RENAME_EXCHANGE) == unix.EBADF {
					// O_PATH directories serve as dirfd; anything else is a bug here.
					panic("renameat2: bad descriptor")
				}
			}
			done <- n
		}()
		deadline := time.Now().Add(700 * time.Millisecond)
		made := 0
		for i := 0; time.Now().Before(deadline); i++ {
			if fd, err := MkdirAll(root, "swap/../swap/x/y"+strconv.Itoa(i%50), 0o755); err == nil {
				unix.Close(fd)
				made++
			}
			if fd, err := CreateFile(root, "swap/pwned", 0o644); err == nil {
				unix.Close(fd)
			}
			if fd, err := Open(root, "swap/secret", unix.O_RDONLY, 0); err == nil {
				t.Errorf("read the host's file: %q", content(t, fd))
				unix.Close(fd)
			}
		}
		stop.Store(true)
		t.Logf("%d directories made, %d exchanges", made, <-done)
		if made == 0 {
			t.Error("nothing was made: the race starves the caller")
		}
		wantEntries(t, host, "root", "secret")
	})
}
