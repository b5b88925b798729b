package harness

import (
	"archive/tar"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// Applets are the commands of the busybox image, beside busybox itself.
var Applets = []string{"sh", "true", "false", "cat", "echo", "ls", "id", "hostname", "ps", "sleep", "httpd", "wget", "nc", "ip", "env", "pwd",
	"test", "touch", "rm", "mkdir", "mount", "umount", "stat", "head", "tail", "dd", "seq", "yes", "kill", "grep", "sed", "tty", "stty", "mknod", "ln", "chmod",
	"chown", "sync", "df", "free", "awk", "sort", "wc", "nslookup", "ping", "readlink", "date", "trap", "printf", "unshare", "chroot", "su", "sysctl"}

// BusyboxTar writes a root file system of static busybox: users root and www (33), a page under /www. It is the same
// for all tests of a process.
func BusyboxTar(t testing.TB) string {
	t.Helper()
	busyboxOnce.Do(func() { busyboxPath, busyboxErr = makeBusyboxTar() })
	if busyboxErr != nil {
		t.Fatal(busyboxErr)
	}
	return busyboxPath
}

var (
	busyboxOnce sync.Once
	busyboxPath string
	busyboxErr  error
)

func makeBusyboxTar() (string, error) {
	bin, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return "", err
	}
	f, err := os.CreateTemp("", "berth-busybox-*.tar")
	if err != nil {
		return "", err
	}
	w := tar.NewWriter(f)
	add := func(h *tar.Header, body []byte) {
		h.Size = int64(len(body))
		if err == nil {
			err = w.WriteHeader(h)
		}
		if err == nil {
			_, err = w.Write(body)
		}
	}
	for _, d := range []string{"bin/", "etc/", "www/", "proc/", "sys/", "dev/", "var/"} {
		add(&tar.Header{Name: d, Mode: 0o755, Typeflag: tar.TypeDir}, nil)
	}
	add(&tar.Header{Name: "tmp/", Mode: 0o1777, Typeflag: tar.TypeDir}, nil)
	add(&tar.Header{Name: "root/", Mode: 0o700, Typeflag: tar.TypeDir}, nil)
	add(&tar.Header{Name: "bin/busybox", Mode: 0o755}, bin)
	for _, a := range Applets {
		add(&tar.Header{Name: "bin/" + a, Linkname: "busybox", Typeflag: tar.TypeSymlink, Mode: 0o777}, nil)
	}
	add(&tar.Header{Name: "var/run", Linkname: "/run", Typeflag: tar.TypeSymlink, Mode: 0o777}, nil)
	add(&tar.Header{Name: "run/", Mode: 0o755, Typeflag: tar.TypeDir}, nil)
	add(&tar.Header{Name: "www/index.html", Mode: 0o644}, []byte("hello from berth\n"))
	add(&tar.Header{Name: "etc/passwd", Mode: 0o644}, []byte("root:x:0:0:root:/root:/bin/sh\nwww:x:33:33:www:/www:/bin/sh\n"))
	add(&tar.Header{Name: "etc/group", Mode: 0o644}, []byte("root:x:0:\nwww:x:33:\nextra:x:44:www\n"))
	add(&tar.Header{Name: "etc/notexec", Mode: 0o644}, []byte("not a program\n"))
	if err == nil {
		err = w.Close()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return f.Name(), err
}

// Busybox imports the busybox image under a name, once per engine.
func (e *Engine) Busybox(t testing.TB) string {
	t.Helper()
	const name = "busybox:test"
	if e.Try("image", "inspect", name).Code != 0 {
		e.Berth(t, "import", "-c", `CMD ["/bin/sh"]`, "-c", "EXPOSE 80", BusyboxTar(t), name)
	}
	return name
}

// DebianTar is a Debian minbase root file system made by debootstrap, cached below the user's cache directory because
// making it takes a minute.
func DebianTar(t testing.TB) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	path := filepath.Join(cache, "berth-test", "debian-bookworm-minbase.tar")
	if _, err := os.Stat(path); err == nil {
		return path
	}
	t.Fatalf("%s is not there: scripts/setup.sh makes it (debootstrap needs the network, which these tests do not have)", path)
	return ""
}

// Sh runs a host command and fails the test when it fails.
func Sh(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}
