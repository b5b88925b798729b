package unpack

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// mountImage mounts the image in dir, where no path leads, and gives a path to it.
func mountImage(tb testing.TB, dir string) string {
	tb.Helper()
	fsfd, err := unix.Fsopen("erofs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		tb.Skipf("SKIPPED: the kernel has no EROFS: %v", err)
	}
	defer unix.Close(fsfd)
	must(tb, unix.FsconfigSetString(fsfd, "source", filepath.Join(dir, ImageFile)))
	if err := unix.FsconfigCreate(fsfd); err != nil {
		if errors.Is(err, unix.ENOTBLK) {
			tb.Skip("SKIPPED: mounting a file as EROFS needs Linux 6.12")
		}
		why := make([]byte, 200)
		n, _ := unix.Read(fsfd, why)
		tb.Fatalf("mount: %v: %s", err, why[:max(n, 0)])
	}
	fd, err := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, 0)
	must(tb, err)
	tb.Cleanup(func() { unix.Close(fd) })
	return "/proc/self/fd/" + strconv.Itoa(fd)
}

// looks describes everything below root, a line a file.
func looks(tb testing.TB, root string) []string {
	tb.Helper()
	var all []string
	first := map[uint64]string{}
	err := fs.WalkDir(os.DirFS(root), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		at := filepath.Join(root, path)
		if path == "." {
			at = root + "/."
		}
		var st unix.Stat_t
		must(tb, unix.Lstat(at, &st))
		if isWhiteout(&st) { // when it was made is nobody's business
			st.Mtim = unix.Timespec{}
		}
		line := fmt.Sprintf("%q %o %d:%d %d.%09d links %d dev %d", path, st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec, st.Nlink, st.Rdev)
		if f, ok := first[st.Ino]; ok {
			line += fmt.Sprintf(" is %q", f)
		}
		first[st.Ino] = path
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFLNK:
			target, err := os.Readlink(at)
			must(tb, err)
			line += " -> " + target
		case unix.S_IFREG:
			f, err := os.Open(at)
			must(tb, err)
			h := sha256.New()
			n, err := io.Copy(h, f)
			f.Close()
			must(tb, err)
			line += fmt.Sprintf(" %d bytes %d %x", st.Size, n, h.Sum(nil))
		}
		all = append(all, line+xattrLooks(at))
		return nil
	})
	must(tb, err)
	sort.Strings(all)
	return all
}

func xattrLooks(path string) string {
	list := make([]byte, 64<<10)
	n, _ := unix.Llistxattr(path, list)
	var all []string
	for name := range strings.SplitSeq(string(list[:max(n, 0)]), "\x00") {
		if name != "" && name != "security.selinux" {
			value := make([]byte, 64<<10)
			n, _ := unix.Lgetxattr(path, name, value)
			all = append(all, fmt.Sprintf(" %s=%x", name, sha256.Sum256(value[:max(n, 0)])))
		}
	}
	sort.Strings(all)
	return strings.Join(all, "")
}

// sameTree unpacks an archive both ways, compares, and gives the path of the image.
func sameTree(t *testing.T, name string, archive []byte) string {
	t.Helper()
	if sameTreeIn(t, name, archive, os.Getpagesize()) == "" { // as for kernels before 6.4
		return ""
	}
	return sameTreeIn(t, name, archive, 0)
}

func sameTreeIn(t *testing.T, name string, archive []byte, blockSize int) string {
	t.Helper()
	dir, image := openTemp(t), openTemp(t)
	r1, err1 := Extract(context.Background(), dir, bytes.NewReader(archive), Options{Whiteouts: OverlayUser})
	r2, err2 := Extract(context.Background(), image, bytes.NewReader(archive), Options{Whiteouts: OverlayUser, Image: true, BlockSize: blockSize})
	if fmt.Sprint(err1) != fmt.Sprint(err2) || r1 != r2 {
		t.Fatalf("%s: as files  %+v, %v\nas an image %+v, %v", name, r1, err1, r2, err2)
	}
	if err1 != nil {
		return ""
	}
	want, got := looks(t, dir.Name()), looks(t, mountImage(t, image.Name()))
	for i := range max(len(want), len(got)) {
		if i >= len(want) || i >= len(got) || want[i] != got[i] {
			t.Fatalf("%s: as files  %s\nas an image %s", name, want[min(i, len(want)-1)], got[min(i, len(got)-1)])
		}
	}
	return filepath.Join(image.Name(), ImageFile)
}

// everything is an archive with all that a layer can hold.
func everything(tb testing.TB) []entry {
	all := []entry{
		directory("./").mode(0o751).owned(7, 8),
		directory("etc/").owned(1, 2).xattr("user.dir", "x"),
		file("etc/passwd", "root:x:0:0\n").owned(3, 4_000_000_000).mode(0o4755),
		file("bin/ping", "ping").xattr("security.capability", capPing).owned(1, 1),
		file("etc/noted", "x").xattr("user.note", strings.Repeat("n", 700)).xattr("user.other", ""),
		symlink("etc/mtab", "../../../proc/mounts").owned(5, 6),
		hardlink("etc/passwd.link", "etc/passwd"), hardlink("passwd", "etc/passwd"),
		device("dev/null", tar.TypeChar, 1, 3), device("dev/sda", tar.TypeBlock, 259, 1<<19+7), device("dev/fifo", tar.TypeFifo, 0, 0),
		file("empty", ""), file("block", strings.Repeat("b", 512)), file("more", strings.Repeat("m", 513)),
		file("large", strings.Repeat("0123456789abcdef", 200_000)),
		file("sparse", "head"+strings.Repeat("\x00", 3<<20)+"tail"), file("zeros", strings.Repeat("\x00", 1<<20)),
		file(".wh.gone", ""), file("etc/.wh.shadow", ""),
		directory("opaque"), file("opaque/.wh..wh.opq", ""), file("opaque/x", "x"),
		file("replaced", "x"), file(".wh.replaced", ""),
		file(".wh.later", ""), file("later/x", "x"), directory("before"), file(".wh.before", ""),
		file("a", "first"), hardlink("b", "a"), file("a", "second"), hardlink("a", "a"),
		symlink("link", "b"), file("link", "third"),
		directory("d"), file("d/x", "x"), directory("d/y"), file("d/y/z", "z"), file("d", "file now"),
		file("f", "x"), directory("f"), file("f/g", "g"),
		directory("kept").mode(0o700), file("kept/x", "x"), directory("kept").mode(0o711),
		file(strings.Repeat("very-long-directory-name/", 12)+"leaf", "deep"),
		file("!first", ""), file("\xff\xfe", "no UTF-8"), file("name with\nnewline", "x"),
	}
	for _, year := range []int{1902, 1969, 1970, 2038, 2106, 2200} {
		e := file(fmt.Sprintf("time/%d", year), "")
		e.ModTime = time.Date(year, 1, 2, 3, 4, 5, 999_999_999, time.UTC)
		all = append(all, e)
	}
	for _, n := range []int{1, 2, 100, 447, 448, 449, 511, 512, 513, 4000} {
		all = append(all, symlink(fmt.Sprintf("links/%d", n), strings.Repeat("t", n)), symlink(fmt.Sprintf("links/%d.again", n), strings.Repeat("t", n)))
	}
	for i := range 3000 {
		all = append(all, file(fmt.Sprintf("many/%d%s", i*7919%3000, strings.Repeat("n", i%250)), strconv.Itoa(i)))
	}
	for i := range 300 { // inodes of many sizes, to meet all places in a block
		all = append(all, file(fmt.Sprintf("attrs/%d", i), "").xattr("user.a", strings.Repeat("v", i)))
	}
	return all
}

func TestImageEqualsTree(t *testing.T) {
	needRoot(t)
	sameTree(t, "everything", archive(t, everything(t)...))
	sameTree(t, "nothing", archive(t))
	for n := range 60 { // directories around the size of a block
		var all []entry
		for i := range n {
			all = append(all, file(fmt.Sprintf("d/%020d", i), ""))
		}
		sameTree(t, strconv.Itoa(n), archive(t, all...))
	}
}

// The hostile archives make the same of an image as of a tree, refusals included.
func TestS11ImageEqualsTree(t *testing.T) {
	needRoot(t)
	for _, a := range corpus(filepath.Join(t.TempDir(), "canary")) {
		sameTree(t, a.name, archive(t, a.entries...))
	}
}

func TestS12ImageControlData(t *testing.T) {
	needRoot(t)
	sameTree(t, "attributes", archive(t,
		directory("d").xattr("user.overlay.opaque", "y").xattr("trusted.overlay.opaque", "y").xattr("trusted.overlay.redirect", "/x"),
		file("f", "").xattr("user.overlay.metacopy", "").xattr("user.overlay.overlay.whiteout", "y").xattr("user.kept", "v"),
	))
	for _, bad := range [][]entry{
		{device("x", tar.TypeChar, 0, 0)},
		{file(".wh.", "")}, {file(".wh..", "")}, {file(".wh...", "")},
		{file(".wh.x", ""), hardlink("y", "x")},
		{file(".wh.x", ""), hardlink("y", ".wh.x")},
		{file(".wh.x/y", "")}, {file(".wh..wh.opq/y", "")},
		{file("x", ""), file("x/y", "")}, {symlink("x", "y"), file("x/y", "")},
		{directory("d"), hardlink("x", "d")}, {hardlink("x", "y")}, {symlink("d", "e"), directory("e"), file("e/f", ""), hardlink("x", "d/f")},
		{file("x", "").xattr("security.capability", "short")},
		{file("x", "").xattr("security.capability", capPing+"long")},
		{file("x", "").xattr("security.capability", "\x01\x00\x00\x01"+capPing[4:])},
	} {
		if sameTree(t, bad[len(bad)-1].Name, archive(t, bad...)) != "" {
			t.Errorf("%q was not refused", bad[len(bad)-1].Name)
		}
	}
}

// An image is the same bytes whenever it is made, and differs when a bit of the archive does.
func TestImageIsDeterministic(t *testing.T) {
	needRoot(t)
	sum := func(entries []entry) [32]byte {
		dir, _ := mustExtract(t, Options{Whiteouts: OverlayUser, Image: true}, entries...)
		b, err := os.ReadFile(filepath.Join(dir, ImageFile))
		must(t, err)
		return sha256.Sum256(b)
	}
	all := everything(t)
	want := sum(all)
	for range 3 {
		if got := sum(all); got != want {
			t.Fatal("the same archive gave another image")
		}
	}
	all[2] = all[2].mode(0o4754)
	if sum(all) == want {
		t.Error("another mode gave the same image")
	}
}

// The tree of an image is in memory, and what an archive makes of it is bounded.
func TestS13ImageMemory(t *testing.T) {
	for _, e := range []entry{file("x", ""), directory("x"), symlink("x", "y"), hardlink("x", "there"), device("x", tar.TypeFifo, 0, 0), file(".wh.x", ""), file("a/b", "")} {
		dir := openTemp(t)
		m, err := newImage(dir, Options{Whiteouts: OverlayUser})
		must(t, err)
		x := &extractor{make: m, limits: Limits{}.OrDefault()}
		must(t, x.run(context.Background(), tar.NewReader(bytes.NewReader(archive(t, file("there", ""))))))
		m.memory = maxImageMemory - 10
		if err := x.run(context.Background(), tar.NewReader(bytes.NewReader(archive(t, e)))); !errors.Is(err, ErrRefused) {
			t.Errorf("%s was not refused: %v", e.Name, err)
		}
		m.abandon()
	}
}

// zeroReader is a file of zeros with a mark at its end.
type zeroReader struct{ left int64 }

func (z *zeroReader) Read(p []byte) (int, error) {
	if z.left == 0 {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), z.left))
	clear(p[:n])
	if z.left -= int64(n); z.left == 0 {
		p[n-1] = '!'
	}
	return n, nil
}

// A file of 10 GB, and what comes behind it.
func TestImageOfLargeFile(t *testing.T) {
	needRoot(t)
	const size = 10 << 30
	var head bytes.Buffer
	w := tar.NewWriter(&head)
	must(t, w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "large", Size: size, Format: tar.FormatPAX}))
	dir := openTemp(t)
	r := io.MultiReader(&head, &zeroReader{size}, bytes.NewReader(archive(t, file("after", "it"))))
	if _, err := Extract(context.Background(), dir, r, Options{Whiteouts: OverlayUser, Image: true}); err != nil {
		t.Fatal(err)
	}
	if st := lstat(t, dir.Name(), ImageFile); st.Blocks*512 > 1<<20 {
		t.Errorf("zeros take %d bytes", st.Blocks*512)
	}
	root := mountImage(t, dir.Name())
	f, err := os.Open(filepath.Join(root, "large"))
	must(t, err)
	defer f.Close()
	end := make([]byte, 5)
	if _, err := f.ReadAt(end, size-5); err != nil || string(end) != "\x00\x00\x00\x00!" {
		t.Errorf("it ends with %q, %v", end, err)
	}
	if b, err := os.ReadFile(filepath.Join(root, "after")); string(b) != "it" {
		t.Errorf("after it is %q, %v", b, err)
	}
}
