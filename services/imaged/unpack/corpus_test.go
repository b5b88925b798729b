package unpack

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// attack is an archive that tries to reach outside the directory.
type attack struct {
	name    string
	entries []entry
	// harmless: what it asks for can be done inside, so it may succeed.
	harmless bool
}

// corpus makes the attacks of regression S-11. canary is the absolute path of
// a tree that they try to read, write or change; layers are unpacked in a
// sibling directory of it.
func corpus(canary string) []attack {
	var all []attack
	add := func(name string, harmless bool, entries ...entry) {
		all = append(all, attack{fmt.Sprintf("%03d %s", len(all), name), entries, harmless})
	}
	// kinds makes one entry of each kind under a hostile name.
	kinds := func(name string) map[string]entry {
		return map[string]entry{
			"file":     file(name, "owned").owned(1, 1).mode(0o6777),
			"dir":      directory(name).owned(1, 1).mode(0o777),
			"symlink":  symlink(name, "/etc/shadow").owned(1, 1),
			"hardlink": hardlink(name, "seed"),
			"fifo":     device(name, tar.TypeFifo, 0, 0).owned(1, 1),
			"device":   device(name, tar.TypeChar, 1, 1).owned(1, 1),
			"xattr":    file(name, "owned").xattr("user.owned", "1"),
		}
	}
	rel := "../canary"

	// Names that climb out.
	for _, name := range []string{
		rel + "/file", rel + "/new", rel + "/dir", rel, "..", "a/..", "a/../..",
		"./" + rel + "/file", "a/../" + rel + "/file", "a/b/../../" + rel + "/file", "/" + rel + "/file",
		"//../canary/file", "a//..//../canary/file", "./././../canary/file", "../../../../../../../../" + canary + "/file",
	} {
		for kind, e := range kinds(name) {
			add("name "+name+" "+kind, false, file("seed", "x"), e)
		}
	}
	// Absolute names mean the layer's root.
	for kind, e := range kinds(canary + "/file") {
		add("absolute "+kind, true, file("seed", "x"), e)
	}
	// Links planted first, then walked through: absolute, relative, chains, to
	// the root of the file system, through proc and to the layer itself.
	for _, target := range []string{canary, rel, canary + "/dir", "/", "/proc/self/cwd", "/proc/self/root" + canary, ".", "..", "../../"} {
		for kind, e := range kinds("link/file") {
			add("through link to "+target+" "+kind, false, file("seed", "x"), symlink("link", target), e)
		}
		add("chain to "+target, false, symlink("one", target), symlink("two", "one"), symlink("link", "two"), file("link/file", "owned"))
		add("deep link to "+target, false, directory("a"), symlink("a/link", target), file("a/link/file", "owned"))
		add("whiteout through link to "+target, false, symlink("link", target), file("link/.wh.file", ""))
		add("opaque through link to "+target, false, symlink("link", target), file("link/.wh..wh.opq", ""))
		// Something is made in the place of the link itself; nothing goes through.
		for kind, e := range kinds("link") {
			add("in place of link to "+target+" "+kind, true, file("seed", "x"), symlink("link", target), e)
		}
		add("directory replaced by link to "+target, false, directory("d"), file("d/x", "x"), symlink("d", target), file("d/file", "owned"))
		add("whiteout of link to "+target, true, symlink("link", target), file(".wh.link", ""))
	}
	// Hard links to what is not in the archive.
	for _, target := range []string{
		rel + "/file", canary + "/file", "/etc/passwd", "etc/passwd", "..", ".", "/", "a/../" + rel + "/file",
		"lower/file", "/proc/self/exe", "../layer/seed", strings.Repeat("x/", 300), strings.Repeat("y", 300),
	} {
		add("hard link to "+target, false, file("seed", "x"), hardlink("x", target), file("x", "owned"))
	}
	for _, target := range []string{canary, rel, "/", "."} {
		add("hard link through link to "+target, false, symlink("link", target), hardlink("x", "link/file"))
		// The link itself gets a second name; writing there replaces it.
		add("hard link to link to "+target, true, symlink("link", target+"/file"), hardlink("x", "link"), file("x", "owned"))
	}
	add("hard link to directory", false, directory("d"), hardlink("x", "d"))
	add("hard link to itself first", false, hardlink("x", "x"))
	add("link with metadata", true, symlink("x", canary+"/file"), hardlink("y", "x").owned(1, 1).mode(0o6777))
	// The root itself.
	for _, name := range []string{".", "./.", "", "a/../.", ".//."} {
		for kind, e := range kinds(name) {
			add("root "+name+" "+kind, kind == "dir" && name != "a/../.", file("seed", "x"), e)
		}
	}
	// Odd names that must not confuse the walk.
	add("backslash", true, file(`..\canary\file`, "x"))
	add("case", true, directory("Link"), symlink("link", canary), file("Link/file", "x"))
	add("dots", true, file("...", "x"), file(".. /x", "x"), file("..x/..y", "x"))
	add("newline", true, file("a\nb", "x"))
	add("not UTF-8", true, entry{tar.Header{Typeflag: tar.TypeReg, Name: "\xff\xfe", Mode: 0o644, Format: tar.FormatGNU}, ""})
	add("file as directory", false, file("f", "x"), file("f/x", "x"))
	add("device as directory", false, device("f", tar.TypeChar, 1, 3), file("f/x", "x"))
	add("whiteout climbing", false, file("../.wh.canary", ""))
	add("whiteout of dot-dot", false, file(".wh...", ""))
	add("unknown type", false, entry{tar.Header{Typeflag: 'Z', Name: "x"}, ""})
	return all
}

func TestS11NothingOutside(t *testing.T) {
	needRoot(t)
	base := t.TempDir()
	canary := filepath.Join(base, "canary")
	plantCanary(t, canary)
	want := snapshot(t, canary)
	attacks := corpus(canary)
	if len(attacks) < 200 {
		t.Errorf("the corpus has %d archives", len(attacks))
	}
	for _, form := range []Whiteouts{WhiteoutFiles, OverlayUser} {
		for _, a := range attacks {
			layer := filepath.Join(base, "layer")
			must(t, os.Mkdir(layer, 0o700))
			dir, err := os.Open(layer)
			must(t, err)
			_, err = Extract(context.Background(), dir, bytes.NewReader(archive(t, a.entries...)), Options{Whiteouts: form})
			dir.Close()
			switch {
			case a.harmless && err != nil:
				t.Errorf("%s: %v", a.name, err)
			case !a.harmless && !errors.Is(err, ErrRefused):
				t.Errorf("%s: not refused: %v", a.name, err)
			}
			if got := snapshot(t, canary); got != want {
				t.Fatalf("%s changed the canary:\n%s\nwas\n%s", a.name, got, want)
			}
			if names, _ := os.ReadDir(base); len(names) != 2 {
				t.Fatalf("%s left %v beside the layer", a.name, names)
			}
			must(t, os.RemoveAll(layer))
		}
	}
}

// NUL bytes cannot be written by archive/tar, so the name is planted by hand.
func TestS11NulInName(t *testing.T) {
	needRoot(t)
	b := archive(t, file("é/bbbb", "")) // not ASCII, so the name goes into a pax record
	planted := bytes.Replace(b, []byte("path=é/bbbb"), []byte("path=é\x00bbbb"), 1)
	if bytes.Equal(b, planted) {
		t.Fatal("the archive has no pax path")
	}
	_, err := Extract(context.Background(), openTemp(t), bytes.NewReader(planted), Options{})
	if !errors.Is(err, ErrRefused) {
		t.Errorf("not refused: %v", err)
	}
}

func plantCanary(t *testing.T, dir string) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Join(dir, "dir"), 0o750))
	must(t, os.WriteFile(filepath.Join(dir, "file"), []byte("alive"), 0o640))
	must(t, os.WriteFile(filepath.Join(dir, "dir", "file"), []byte("alive too"), 0o600))
	must(t, os.Symlink("file", filepath.Join(dir, "link")))
}

// snapshot describes everything below dir.
func snapshot(t *testing.T, dir string) string {
	t.Helper()
	var out strings.Builder
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		st := lstat(t, path)
		xattrs := make([]byte, 1024)
		n, _ := unix.Llistxattr(path, xattrs)
		fmt.Fprintf(&out, "%s %o %d:%d %d.%09d %d links %q", path, st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec, st.Nlink, xattrs[:max(n, 0)])
		if d.Type().IsRegular() {
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&out, " %x", sha256.Sum256(b))
		}
		out.WriteByte('\n')
		return nil
	})
	must(t, err)
	return out.String()
}
