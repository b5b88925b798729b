package user

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/libcontainer/safepath"
)

const passwd = `# comment
root:x:0:0:root:/root:/bin/sh
+nis::::::
broken
web:x:1000:1001:Web:/srv/web:/bin/false
12:x:0:0:a name made of digits:/root:
twin:x:2000:2000::/first:
twin:x:0:0::/second:
huge:x:4294967296:0::/:
minus:x:-1:-1::/:
blank:x: 0:0::/:
nogid:x:50::/:
hex:x:0x0:0::/:
nohome:x:60:60:::
relhome:x:61:61::tmp:
`

const group = `root:x:0:
web:x:1001:
video:x:44:web,other
audio:x:29:other,web
docker:x:999:webmaster
13:x:0:
dup:x:70:web
dup:x:0:
bad:x:99999999999:
`

// makeRoot makes a root file system with the two files.
func makeRoot(tb testing.TB, passwd, group string) (fd int, dir string) {
	tb.Helper()
	dir = tb.TempDir()
	must(tb, os.Mkdir(filepath.Join(dir, "etc"), 0o755))
	must(tb, os.WriteFile(filepath.Join(dir, "etc/passwd"), []byte(passwd), 0o644))
	must(tb, os.WriteFile(filepath.Join(dir, "etc/group"), []byte(group), 0o644))
	fd, err := safepath.OpenRoot(dir)
	must(tb, err)
	tb.Cleanup(func() { unix.Close(fd) })
	return fd, dir
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

func TestResolve(t *testing.T) {
	root, _ := makeRoot(t, passwd, group)
	tests := []struct {
		spec  string
		extra []string
		want  Identity
	}{
		{"", nil, Identity{0, 0, "root", "/root", []int{0}}},
		{"root", nil, Identity{0, 0, "root", "/root", []int{0}}},
		{"0", nil, Identity{0, 0, "root", "/root", []int{0}}},
		{"web", nil, Identity{1000, 1001, "web", "/srv/web", []int{29, 44, 70, 1001}}},
		{"1000", nil, Identity{1000, 1001, "web", "/srv/web", []int{29, 44, 70, 1001}}},
		{"web:video", nil, Identity{1000, 44, "web", "/srv/web", []int{44}}},
		{"web:4242", nil, Identity{1000, 4242, "web", "/srv/web", []int{4242}}},
		{"web", []string{"docker", "7", "44"}, Identity{1000, 1001, "web", "/srv/web", []int{7, 29, 44, 70, 999, 1001}}},
		{"555", nil, Identity{555, 0, "", "/", []int{0}}},
		{"555:666", nil, Identity{555, 666, "", "/", []int{666}}},
		{"2147483647:2147483647", nil, Identity{2147483647, 2147483647, "", "/", []int{2147483647}}},
		{"12", nil, Identity{12, 0, "", "/", []int{0}}}, // the number, not root by another name
		{"5:13", nil, Identity{5, 13, "", "/", []int{13}}},
		{"twin", nil, Identity{2000, 2000, "twin", "/first", []int{2000}}},
		{"5:dup", nil, Identity{5, 70, "", "/", []int{70}}},
		{"nohome", nil, Identity{60, 60, "nohome", "/", []int{60}}},
		{"relhome", nil, Identity{61, 61, "relhome", "/", []int{61}}},
	}
	for _, test := range tests {
		got, err := Resolve(root, test.spec, test.extra)
		if err != nil || !reflect.DeepEqual(got, test.want) {
			t.Errorf("Resolve(%q, %q) = %+v, %v; want %+v", test.spec, test.extra, got, err, test.want)
		}
	}
}

func TestS20UserStrings(t *testing.T) {
	// An image with an account for every odd string, all of them root.
	odd := []string{"2147483648", "4294967295", "4294967296", "18446744073709551616", "-1", "+0", "+", "-", "0x0", "0X0",
		"0xfffffffffffffffff", "0b0", "0o0", "00", "007", "1_0", "1e3", "0.0", " ", "0 ", " 0", "\t0", "0\n", "0\r", "0\x00", "a\nb",
		"٠", "０", "१०००", "é", "a/b", "a,b", "..\x1b[0m", strings.Repeat("1", 5000), strings.Repeat("a", 257)}
	var p, g strings.Builder
	for _, s := range odd {
		p.WriteString(s + ":x:0:0::/:\n")
		g.WriteString(s + ":x:0:\n")
	}
	root, _ := makeRoot(t, p.String(), g.String())
	refuse := func(spec string, extra ...string) {
		t.Helper()
		if got, err := Resolve(root, spec, extra); !errors.Is(err, ErrSyntax) {
			t.Errorf("Resolve(%.40q, %.40q) = %+v, %v; want ErrSyntax", spec, extra, got, err)
		} else if strings.ContainsAny(err.Error(), "\n\x1b\x00") || len(err.Error()) > 300 {
			t.Errorf("Resolve(%.40q): the message is not one clean line: %q", spec, err)
		}
	}
	for _, s := range odd {
		refuse(s)
		refuse("1000:" + s)
		refuse("1000", s)
	}
	for _, s := range []string{":", "::", "0:", ":0", "1:2:3", "a:b:c", "1000:1000:"} {
		refuse(s)
	}
	refuse("1000", "")
}

func TestS20DamagedEntries(t *testing.T) {
	root, _ := makeRoot(t, passwd, group)
	for _, spec := range []string{"huge", "minus", "blank", "nogid", "50", "hex", "web:bad"} {
		if got, err := Resolve(root, spec, nil); !errors.Is(err, ErrBadFile) {
			t.Errorf("Resolve(%q) = %+v, %v; want ErrBadFile", spec, got, err)
		}
	}
	for _, spec := range []string{"nobody", "broken", "we", "webs", "web:nobody", "0:we"} {
		if got, err := Resolve(root, spec, nil); !errors.Is(err, ErrUnknown) {
			t.Errorf("Resolve(%q) = %+v, %v; want ErrUnknown", spec, got, err)
		}
	}
}

func TestMissingFiles(t *testing.T) {
	root, dir := makeRoot(t, "", "")
	must(t, os.RemoveAll(filepath.Join(dir, "etc")))
	want := Identity{1000, 1000, "", "/", []int{1000}}
	if got, err := Resolve(root, "1000:1000", nil); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("numbers: %+v, %v", got, err)
	}
	if _, err := Resolve(root, "root", nil); !errors.Is(err, ErrUnknown) {
		t.Errorf("name: %v, want ErrUnknown", err)
	}
}

func TestS21PrimaryGroupCounts(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: needs root")
	}
	root, _ := makeRoot(t, passwd, group)
	id, err := Resolve(root, "web", nil)
	must(t, err)
	// Others may read, the group may not.
	dir, err := os.MkdirTemp("", "berth-s21-")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	must(t, os.Chmod(dir, 0o755))
	file := filepath.Join(dir, "0604")
	must(t, os.WriteFile(file, []byte("secret"), 0o600))
	must(t, os.Chown(file, 0, id.GID))
	must(t, os.Chmod(file, 0o604))
	read := func(gid int, groups []int) error {
		cred := &syscall.Credential{Uid: uint32(id.UID), Gid: uint32(gid)}
		for _, g := range groups {
			cred.Groups = append(cred.Groups, uint32(g))
		}
		cmd := exec.Command("/bin/cat", file)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred}
		return cmd.Run()
	}
	if read(id.GID, id.Groups) == nil {
		t.Error("a file of mode 0604 is readable to its group")
	}
	// A set-group-ID program changes the primary group: the old one must
	// still count, which is what its place in Groups is for.
	if read(4242, id.Groups) == nil {
		t.Error("a file of mode 0604 is readable after the primary group changed")
	}
	if read(4242, nil) != nil {
		t.Error("the file is unreadable even to strangers: this test proves nothing")
	}
}

func TestS23HostileFiles(t *testing.T) {
	many := "web:x:1000:1000::/:\n"
	tests := []struct {
		name string
		make func(t *testing.T, dir, file string)
	}{
		{"1 GiB of lines", func(t *testing.T, dir, file string) {
			// Sparse: the size is what is refused, and the content is never read.
			must(t, os.WriteFile(file, []byte(many), 0o644))
			must(t, os.Truncate(file, 1<<30))
		}},
		{"one long line", func(t *testing.T, dir, file string) {
			must(t, os.WriteFile(file, []byte(strings.Repeat("a", maxLine+1)), 0o644))
		}},
		{"FIFO", func(t *testing.T, dir, file string) { must(t, unix.Mkfifo(file, 0o666)) }},
		{"directory", func(t *testing.T, dir, file string) { must(t, os.Mkdir(file, 0o755)) }},
		{"socket", func(t *testing.T, dir, file string) { must(t, unix.Mknod(file, unix.S_IFSOCK|0o666, 0)) }},
		{"device", func(t *testing.T, dir, file string) {
			must(t, unix.Mknod(file, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))))
		}},
		{"link to /dev/zero", func(t *testing.T, dir, file string) {
			must(t, os.Mkdir(filepath.Join(dir, "dev"), 0o755))
			must(t, unix.Mknod(filepath.Join(dir, "dev/zero"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))))
			must(t, os.Symlink("/dev/zero", file))
		}},
		{"link loop", func(t *testing.T, dir, file string) {
			must(t, os.Symlink("loop", file))
			must(t, os.Symlink("/etc/passwd", filepath.Join(dir, "etc/loop")))
		}},
		{"file for a directory", func(t *testing.T, dir, file string) {
			must(t, os.Symlink("/etc/group/passwd", file))
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			root, dir := makeRoot(t, "", "")
			file := filepath.Join(dir, "etc/passwd")
			must(t, os.Remove(file))
			test.make(t, dir, file)
			for _, spec := range []string{"", "web", "1000"} {
				start, before := time.Now(), allocated()
				got, err := Resolve(root, spec, nil)
				if !errors.Is(err, ErrBadFile) {
					t.Errorf("Resolve(%q) = %+v, %v; want ErrBadFile", spec, got, err)
				}
				if took := time.Since(start); took > time.Second {
					t.Errorf("Resolve(%q) took %v", spec, took)
				}
				if used := allocated() - before; used > 16<<20 {
					t.Errorf("Resolve(%q) allocated %d bytes", spec, used)
				}
			}
		})
	}
}

func allocated() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.TotalAlloc
}

func TestS23LinkToHost(t *testing.T) {
	root, dir := makeRoot(t, "", "")
	file := filepath.Join(dir, "etc/passwd")
	must(t, os.Remove(file))
	must(t, os.Symlink("../../../../../../../../etc/passwd", file)) // leads to itself, inside
	if got, err := Resolve(root, "root", nil); !errors.Is(err, ErrBadFile) {
		t.Errorf("Resolve = %+v, %v; want ErrBadFile", got, err)
	}
}

func TestS23LegitimateLinks(t *testing.T) {
	root, dir := makeRoot(t, "", "")
	must(t, os.MkdirAll(filepath.Join(dir, "nix/store"), 0o755))
	must(t, os.Rename(filepath.Join(dir, "etc"), filepath.Join(dir, "nix/store/etc")))
	must(t, os.Symlink("/nix/store/etc", filepath.Join(dir, "etc")))
	must(t, os.Remove(filepath.Join(dir, "nix/store/etc/passwd")))
	must(t, os.Symlink("../real", filepath.Join(dir, "nix/store/etc/passwd")))
	must(t, os.Symlink("/nix/accounts", filepath.Join(dir, "nix/store/real")))
	must(t, os.WriteFile(filepath.Join(dir, "nix/accounts"), []byte(passwd), 0o644))
	if got, err := Resolve(root, "web", nil); err != nil || got.UID != 1000 {
		t.Errorf("Resolve = %+v, %v; want uid 1000", got, err)
	}
}

func TestGrowingFile(t *testing.T) {
	root, dir := makeRoot(t, strings.Repeat("# filler\n", 100000), "")
	f, err := openFile(root, "/etc/passwd")
	must(t, err)
	defer f.close()
	must(t, os.WriteFile(filepath.Join(dir, "etc/passwd"), []byte(strings.Repeat("# filler\n", MaxFile/9+1000)), 0o644))
	if _, err := FindUser(f, "web", 0); !errors.Is(err, ErrBadFile) {
		t.Errorf("a file that grew beyond the limit: %v, want ErrBadFile", err)
	}
}

func TestDeadline(t *testing.T) {
	root, _ := makeRoot(t, passwd, group)
	f, err := openFile(root, "/etc/passwd")
	must(t, err)
	defer f.close()
	f.deadline = time.Now().Add(-time.Millisecond)
	if _, err := FindUser(f, "web", 0); !errors.Is(err, ErrBadFile) {
		t.Errorf("after the deadline: %v, want ErrBadFile", err)
	}
}

func TestTooManyGroups(t *testing.T) {
	var g strings.Builder
	for i := range maxGroups + 1 {
		g.WriteString("g:x:" + strconv.Itoa(i+1) + ":web\n")
	}
	root, _ := makeRoot(t, passwd, g.String())
	if _, err := Resolve(root, "web", nil); !errors.Is(err, ErrBadFile) {
		t.Errorf("%d groups: %v, want ErrBadFile", maxGroups+1, err)
	}
}

// FuzzResolve holds to: an answer is in range, has its primary group, and is
// the number that was asked for if a number was.
func FuzzResolve(f *testing.F) {
	f.Add("web", "video", passwd, group)
	f.Add("12", "13", passwd, group)
	f.Add("0x0", "+0", "0x0:x:0:0::/:", "")
	f.Add("a:b", "", "a:x:1:1\n", "b:x:2:a,,a\n")
	f.Add("٣", "4294967295", "::0:0", ":x:0:\r\n")
	f.Fuzz(func(t *testing.T, spec, extra, passwd, group string) {
		root, _ := makeRoot(t, passwd, group)
		id, err := Resolve(root, spec, []string{extra})
		if err != nil {
			if strings.ContainsAny(err.Error(), "\n\x1b") {
				t.Fatalf("message of several lines: %q", err)
			}
			return
		}
		primary := false
		for _, g := range id.Groups {
			primary = primary || g == id.GID
			if g < 0 || g > maxID {
				t.Fatalf("group %d", g)
			}
		}
		if !primary || id.UID < 0 || id.UID > maxID || !strings.HasPrefix(id.Home, "/") {
			t.Fatalf("%+v", id)
		}
		name, _, _ := strings.Cut(spec, ":")
		if n, err := strconv.Atoi(name); err == nil && (n != id.UID || strconv.Itoa(n) != name) {
			t.Fatalf("asked for %q, got uid %d", name, id.UID)
		}
		if id.UID == 0 && name != "" && name != "0" && !strings.Contains(passwd, name+":") {
			t.Fatalf("user %q became root", name)
		}
	})
}
