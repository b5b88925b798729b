package unpack

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// entry is one member of an archive under test.
type entry struct {
	tar.Header
	body string
}

var stamp = time.Unix(1_500_000_000, 123_456_789)

func file(name, body string) entry {
	return entry{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, ModTime: stamp}, body}
}

func directory(name string) entry {
	return entry{tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755, ModTime: stamp}, ""}
}

func symlink(name, target string) entry {
	return entry{tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777, ModTime: stamp}, ""}
}

func hardlink(name, target string) entry {
	return entry{tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target, Mode: 0o644, ModTime: stamp}, ""}
}

func device(name string, kind byte, major, minor int64) entry {
	return entry{tar.Header{Typeflag: kind, Name: name, Mode: 0o620, Devmajor: major, Devminor: minor, ModTime: stamp}, ""}
}

func (e entry) owned(uid, gid int) entry  { e.Uid, e.Gid = uid, gid; return e }
func (e entry) mode(mode int64) entry     { e.Mode = mode; return e }
func (e entry) xattr(k, v string) entry   { return e.pax(paxXattr+k, v) }
func (e entry) format(f tar.Format) entry { e.Format = f; return e }

func (e entry) pax(k, v string) entry {
	records := map[string]string{k: v}
	for k, v := range e.PAXRecords {
		records[k] = v
	}
	e.PAXRecords = records
	e.Format = tar.FormatPAX
	return e
}

func archive(tb testing.TB, entries ...entry) []byte {
	tb.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, e := range entries {
		if e.Typeflag == tar.TypeReg {
			e.Size = int64(len(e.body))
		}
		if e.Format == tar.FormatUnknown {
			e.Format = tar.FormatPAX
		}
		if err := w.WriteHeader(&e.Header); err != nil {
			tb.Fatalf("header of %q: %v", e.Name, err)
		}
		if _, err := io.WriteString(w, e.body); err != nil {
			tb.Fatalf("body of %q: %v", e.Name, err)
		}
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return out.Bytes()
}

// extract unpacks entries into a new directory and gives its path.
func extract(tb testing.TB, o Options, entries ...entry) (string, Result, error) {
	tb.Helper()
	dir := openTemp(tb)
	r, err := Extract(context.Background(), dir, bytes.NewReader(archive(tb, entries...)), o)
	return dir.Name(), r, err
}

func mustExtract(tb testing.TB, o Options, entries ...entry) (string, Result) {
	tb.Helper()
	dir, r, err := extract(tb, o, entries...)
	if err != nil {
		tb.Fatal(err)
	}
	return dir, r
}

func lstat(tb testing.TB, elem ...string) unix.Stat_t {
	tb.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(elem...), &st); err != nil {
		tb.Fatalf("lstat %s: %v", filepath.Join(elem...), err)
	}
	return st
}

func getxattr(path, attr string) string {
	buf := make([]byte, 4096)
	n, err := unix.Lgetxattr(path, attr, buf)
	if err != nil {
		return ""
	}
	return string(buf[:n])
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 && os.Getenv(asImaged) == "" {
		t.Skip("SKIPPED: needs root, or imaged's capabilities")
	}
}

// capPing is cap_net_raw+ep in the kernel's format, revision 2.
const capPing = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

func TestExtractEveryKind(t *testing.T) {
	needRoot(t)
	long := strings.Repeat("very-long-directory-name/", 12) + "leaf"
	dir, r := mustExtract(t, Options{},
		directory("./").mode(0o751),
		directory("etc/").owned(1, 2),
		file("etc/passwd", "root:x:0:0\n").owned(3, 4_000_000_000).mode(0o4755),
		symlink("etc/mtab", "../../../proc/mounts").owned(5, 6),
		hardlink("etc/passwd-", "./etc/passwd").owned(9, 9).mode(0o777),
		device("dev/null", tar.TypeChar, 1, 3).owned(7, 8),
		device("dev/sda", tar.TypeBlock, 259, 70_000),
		device("dev/pipe", tar.TypeFifo, 0, 0),
		file("bin/ping", "ping").xattr("security.capability", capPing).owned(1, 1),
		file("gnu/"+long, "gnu").format(tar.FormatGNU),
		file("pax/"+long, "pax"),
		file("/absolute", "inside"),
	)
	if r.Entries != 12 || !r.RootSet || r.RootOpaque {
		t.Errorf("result is %+v", r)
	}
	if st := lstat(t, dir); st.Mode&0o7777 != 0o751 || st.Mtim.Sec != stamp.Unix() {
		t.Errorf("root has mode %o, time %d", st.Mode, st.Mtim.Sec)
	}
	if st := lstat(t, dir, "etc"); st.Uid != 1 || st.Gid != 2 || st.Mtim.Sec != stamp.Unix() || st.Mtim.Nsec != 123_456_789 {
		t.Errorf("etc: owner %d:%d, time %d.%d", st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec)
	}
	st := lstat(t, dir, "etc/passwd")
	if st.Uid != 3 || st.Gid != 4_000_000_000 || st.Mode != unix.S_IFREG|0o4755 || st.Nlink != 2 || st.Mtim.Sec != stamp.Unix() {
		t.Errorf("etc/passwd: %+v", st)
	}
	if link := lstat(t, dir, "etc/passwd-"); link.Ino != st.Ino {
		t.Error("etc/passwd- is not a hard link of etc/passwd")
	}
	if st := lstat(t, dir, "etc/mtab"); st.Mode&unix.S_IFMT != unix.S_IFLNK || st.Uid != 5 || st.Mtim.Sec != stamp.Unix() {
		t.Errorf("etc/mtab: %+v", st)
	}
	if st := lstat(t, dir, "dev/null"); st.Mode != unix.S_IFCHR|0o620 || st.Rdev != unix.Mkdev(1, 3) || st.Gid != 8 {
		t.Errorf("dev/null: %+v", st)
	}
	if st := lstat(t, dir, "dev/sda"); st.Mode&unix.S_IFMT != unix.S_IFBLK || st.Rdev != unix.Mkdev(259, 70_000) {
		t.Errorf("dev/sda: %+v", st)
	}
	if st := lstat(t, dir, "dev"); st.Mtim.Sec != 0 || st.Uid != 0 || st.Mode&0o7777 != 0o755 {
		t.Errorf("dev, which no entry describes: %+v", st)
	}
	if got := getxattr(filepath.Join(dir, "bin/ping"), "security.capability"); got != capPing {
		t.Errorf("file capability is %q", got)
	}
	for _, name := range []string{"gnu/" + long, "pax/" + long} {
		if b, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(b) != name[:3] {
			t.Errorf("%s holds %q, %v", name, b, err)
		}
	}
	if b, _ := os.ReadFile(filepath.Join(dir, "absolute")); string(b) != "inside" {
		t.Errorf("/absolute holds %q", b)
	}
}

func TestExtractReplaces(t *testing.T) {
	needRoot(t)
	dir, _ := mustExtract(t, Options{},
		file("a", "first"), hardlink("b", "a"), file("a", "second"), // b keeps the first content
		symlink("link", "b"), file("link", "third"), // not through the link
		directory("d"), file("d/x", "x"), directory("d/y"), file("d/y/z", "z"), file("d", "file now"),
		file("f", "x"), directory("f"), file("f/g", "g"),
		directory("kept").mode(0o700), file("kept/x", "x"), directory("kept").mode(0o711),
		hardlink("a", "a"),
	)
	for name, want := range map[string]string{"a": "second", "b": "first", "link": "third", "d": "file now", "f/g": "g", "kept/x": "x"} {
		if b, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(b) != want {
			t.Errorf("%s holds %q, %v; want %q", name, b, err, want)
		}
	}
	if st := lstat(t, dir, "kept"); st.Mode&0o7777 != 0o711 || st.Mtim.Sec != stamp.Unix() {
		t.Errorf("kept: mode %o, time %d", st.Mode, st.Mtim.Sec)
	}
}

func TestExtractHoles(t *testing.T) {
	needRoot(t)
	body := "head" + strings.Repeat("\x00", 4<<20)
	dir, _ := mustExtract(t, Options{}, file("sparse", body), file("tail", body+"tail"))
	for name, want := range map[string]string{"sparse": body, "tail": body + "tail"} {
		got, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || string(got) != want {
			t.Errorf("%s differs: %d bytes, %v", name, len(got), err)
		}
		if st := lstat(t, dir, name); st.Blocks*512 > 1<<20 {
			t.Errorf("%s takes %d bytes", name, st.Blocks*512)
		}
	}
}

func TestWhiteouts(t *testing.T) {
	needRoot(t)
	entries := []entry{
		file(".wh.gone", ""),
		file("replaced", "x"), file(".wh.replaced", ""),
		file(".wh.dir-after", ""), file("dir-after/x", "x"),
		directory("dir-before"), file(".wh.dir-before", ""),
		directory("opaque"), file("opaque/.wh..wh.opq", ""), file("opaque/x", "x"),
		file("file-then-dir", ""), directory("file-then-dir"),
		file(".wh..wh.plnk", ""), directory(".wh..wh.aufs"),
		directory("plain"),
	}
	t.Run("overlay", func(t *testing.T) {
		dir, r := mustExtract(t, Options{Whiteouts: OverlayUser}, entries...)
		if r.RootOpaque {
			t.Error("root is called opaque")
		}
		if st := lstat(t, dir, "gone"); !isWhiteout(&st) {
			t.Errorf("gone has mode %o, device %x", st.Mode, st.Rdev)
		}
		if b, err := os.ReadFile(filepath.Join(dir, "replaced")); err != nil || string(b) != "x" {
			t.Errorf("replaced: %q, %v", b, err)
		}
		for name, want := range map[string]string{"dir-after": "y", "dir-before": "y", "opaque": "y", "file-then-dir": "y", "plain": ""} {
			if got := getxattr(filepath.Join(dir, name), "user.overlay.opaque"); got != want {
				t.Errorf("%s: opaque is %q, want %q", name, got, want)
			}
		}
		names, _ := os.ReadDir(dir)
		for _, n := range names {
			if strings.HasPrefix(n.Name(), ".wh.") {
				t.Errorf("%s was made", n.Name())
			}
		}
	})
	t.Run("files", func(t *testing.T) {
		dir, _ := mustExtract(t, Options{Whiteouts: WhiteoutFiles}, entries...)
		for _, name := range []string{".wh.gone", ".wh.replaced", ".wh.dir-after", "dir-after/x", ".wh.dir-before", "opaque/.wh..wh.opq", "file-then-dir/.wh..wh.opq"} {
			lstat(t, dir, name)
		}
	})
	t.Run("opaque root", func(t *testing.T) {
		if _, r := mustExtract(t, Options{Whiteouts: OverlayUser}, file(".wh..wh.opq", "")); !r.RootOpaque {
			t.Error("root is not called opaque")
		}
	})
}

// Whatever an image brings in overlayfs's own language is dropped or refused.
func TestS12OverlayControlData(t *testing.T) {
	needRoot(t)
	dir, _ := mustExtract(t, Options{Whiteouts: OverlayUser},
		directory("d").xattr("user.overlay.opaque", "y").xattr("trusted.overlay.opaque", "y").xattr("trusted.overlay.redirect", "/x"),
		file("f", "").xattr("user.overlay.metacopy", "").xattr("user.overlay.overlay.whiteout", "y").xattr("user.kept", "v"),
	)
	for _, path := range []string{"d", "f"} {
		path = filepath.Join(dir, path)
		list := make([]byte, 4096)
		n, _ := unix.Llistxattr(path, list)
		if strings.Contains(string(list[:n]), "overlay") {
			t.Errorf("%s has attributes %q", path, list[:n])
		}
	}
	if got := getxattr(filepath.Join(dir, "f"), "user.kept"); got != "v" {
		t.Errorf("user.kept is %q", got)
	}
	for _, bad := range [][]entry{
		{device("x", tar.TypeChar, 0, 0)},
		{file(".wh.", "")}, {file(".wh..", "")}, {file(".wh...", "")},
		{file(".wh.x", ""), hardlink("y", "x")},
		{file(".wh.x", ""), hardlink("y", ".wh.x")},
		{file(".wh.x/y", "")}, {file(".wh..wh.opq/y", "")},
	} {
		if _, _, err := extract(t, Options{Whiteouts: OverlayUser}, bad...); !errors.Is(err, ErrRefused) {
			t.Errorf("%q: %v", bad[len(bad)-1].Name, err)
		}
	}
}

func TestS13Limits(t *testing.T) {
	needRoot(t)
	many := make([]entry, 11)
	for i := range many {
		many[i] = file(fmt.Sprint(i), "0123456789")
	}
	cases := map[string]struct {
		limits  Limits
		entries []entry
	}{
		"entries":   {Limits{Entries: 10}, many},
		"bytes":     {Limits{Bytes: 100}, many},
		"depth":     {Limits{Depth: 4}, []entry{file("1/2/3/4/5", "")}},
		"name":      {Limits{PathBytes: 100}, []entry{file(strings.Repeat("x/", 60)+"x", "")}},
		"component": {Limits{}, []entry{file(strings.Repeat("x", 256), "")}},
		"target":    {Limits{}, []entry{symlink("x", strings.Repeat("x/", 2500))}},
		"owner":     {Limits{}, []entry{file("x", "").owned(1<<32-1, 0)}},
		"xattr":     {Limits{}, []entry{file("x", "").xattr("user.x", strings.Repeat("x", 65<<10))}},
		"device":    {Limits{}, []entry{device("x", tar.TypeChar, 5000, 0)}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if _, _, err := extract(t, Options{Limits: c.limits}, c.entries...); !errors.Is(err, ErrRefused) {
				t.Errorf("not refused: %v", err)
			}
		})
	}
}

// A sparse file may claim any size in a few bytes; the claim is what counts.
func TestS13SparseBomb(t *testing.T) {
	needRoot(t)
	sparse := withRecords(t, "22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n24 GNU.sparse.name=bomb\n44 GNU.sparse.realsize=1152921504606846976\n",
		"0\n"+strings.Repeat("\x00", 510))
	record := "comment=" + strings.Repeat("x", 2<<20) + "\n"
	pax := withRecords(t, fmt.Sprintf("%d %s", len(record)+8, record), "")
	whole := archive(t, file("é", strings.Repeat("x", 10_000)))
	for name, b := range map[string][]byte{"sparse": sparse, "pax": pax, "cut in header": whole[:520], "cut in body": whole[:9000]} {
		_, err := Extract(context.Background(), openTemp(t), bytes.NewReader(b), Options{})
		if !errors.Is(err, ErrRefused) {
			t.Errorf("%s: not refused: %v", name, err)
		}
	}
}

// withRecords is an archive of one file with the given pax records, which
// archive/tar's writer would refuse to write.
func withRecords(tb testing.TB, records, body string) []byte {
	tb.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	must(tb, w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "pax", Size: int64(len(records)), Format: tar.FormatUSTAR}))
	must1(tb, w, records)
	must(tb, w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "bomb", Size: int64(len(body)), Format: tar.FormatUSTAR}))
	must1(tb, w, body)
	must(tb, w.Close())
	b := out.Bytes()
	b[156] = tar.TypeXHeader
	fixChecksum(b[:512])
	return b
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

func must1(tb testing.TB, w io.Writer, s string) {
	tb.Helper()
	_, err := io.WriteString(w, s)
	must(tb, err)
}

// fixChecksum makes a header block that was edited valid again (ustar: the sum
// of all bytes, with the field itself taken as spaces).
func fixChecksum(block []byte) {
	copy(block[148:156], "        ")
	sum := 0
	for _, b := range block[:512] {
		sum += int(b)
	}
	copy(block[148:156], fmt.Sprintf("%06o\x00 ", sum))
}

func TestExtractStops(t *testing.T) {
	needRoot(t)
	ctx, cancel := context.WithCancelCause(context.Background())
	why := errors.New("client went away")
	cancel(why)
	_, err := Extract(ctx, openTemp(t), bytes.NewReader(archive(t, file("x", ""))), Options{})
	if !errors.Is(err, why) {
		t.Errorf("got %v", err)
	}
}

func TestExtractLeavesNoDescriptors(t *testing.T) {
	needRoot(t)
	before := descriptors(t)
	for range 3 {
		extract(t, Options{}, file("a/b/c/d", ""), file("a/b/c/../d", ""))
	}
	// Each call to extract keeps its directory open until the test ends.
	if after := descriptors(t); after != before+3 {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}

// asImaged is set in a test process that has become the user imaged runs as.
const asImaged = "BERTH_TEST_AS_IMAGED"

// TestAsImaged runs this package's tests again with nothing but the
// capabilities imaged has.
func TestAsImaged(t *testing.T) {
	if os.Getenv(asImaged) != "" {
		return
	}
	needRoot(t)
	const nobody = 65534
	tmp := t.TempDir()
	must(t, os.Chown(tmp, nobody, nobody))
	cmd := exec.Command("/proc/self/exe", "-test.run=^Test(Extract|Whiteouts|S)", "-test.skip=Image|ByWorker", "-test.v") // which mount, or are for root
	cmd.Env = append(os.Environ(), asImaged+"=1", "TMPDIR="+tmp)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential: &syscall.Credential{Uid: nobody, Gid: nobody},
		AmbientCaps: []uintptr{unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_FOWNER,
			unix.CAP_FSETID, unix.CAP_SETFCAP, unix.CAP_MKNOD},
	}
	out, err := cmd.CombinedOutput()
	if err != nil || bytes.Contains(out, []byte("SKIP")) || !bytes.Contains(out, []byte("--- PASS: TestExtractEveryKind")) {
		t.Errorf("%v\n%s", err, out)
	}
}
