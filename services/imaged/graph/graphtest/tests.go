package graphtest

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"berth/services/imaged/graph"
	"berth/services/imaged/unpack"

	"golang.org/x/sys/unix"
)

func testStack(_ *testing.T, r *rig) {
	bottom := r.layer("etc/", "etc/a=1", "etc/b=1", "bin->usr/bin", "usr/bin/", "usr/bin/sh=sh")
	top := r.layer("etc/", "etc/b=2", "etc/c=2", "home/")
	r.expect([]graph.Layer{bottom, top},
		"etc/", "etc/a=1", "etc/b=2", "etc/c=2", "bin->usr/bin", "usr/", "usr/bin/", "usr/bin/sh=sh", "home/")
	r.expect([]graph.Layer{bottom}, "etc/", "etc/a=1", "etc/b=1", "bin->usr/bin", "usr/", "usr/bin/", "usr/bin/sh=sh")
}

func testWhiteouts(_ *testing.T, r *rig) {
	bottom := r.layer("d/", "d/x=1", "d/y=1", "o/", "o/x=1", "o/s/", "o/s/t=1", "f=1", "g/", "g/x=1", "h=1", "k/", "k/x=1", "kept=1")
	top := r.layer(
		"d/", "d/.wh.x", // one file of a directory
		"o/", "o/.wh..wh.opq", "o/z=2", // all of a directory
		".wh.f",              // a file
		".wh.g",              // a directory
		"h/",                 // a directory instead of a file
		"h/x=2",              //
		".wh.k",              // a directory hidden and made anew
		"k/",                 //
		"k/y=2",              //
		".wh.never",          // what never was
		"kept=2", ".wh.kept", // a file of the same layer is not hidden by it
	)
	r.expect([]graph.Layer{bottom, top},
		"d/", "d/y=1", "o/", "o/z=2", "h/", "h/x=2", "k/", "k/y=2", "kept=2")
	above := r.layer("g/", "g/new=3", "f=3")
	r.expect([]graph.Layer{bottom, top, above},
		"d/", "d/y=1", "o/", "o/z=2", "h/", "h/x=2", "k/", "k/y=2", "kept=2", "g/", "g/new=3", "f=3")
}

func testRoot(t *testing.T, r *rig) {
	rooted := func(mode int64, uid int) graph.Layer {
		var out bytes.Buffer
		w := tar.NewWriter(&out)
		add(t, w, &tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: mode, Uid: uid, Gid: uid}, "")
		w.Close()
		return r.commit(r.stage(out.Bytes()))
	}
	check := func(mode, uid uint32, layers ...graph.Layer) {
		r.mounted(r.prepare(layers...), func(root string) {
			var st unix.Stat_t
			if err := unix.Stat(root, &st); err != nil || st.Mode&0o7777 != mode || st.Uid != uid || st.Gid != uid {
				t.Errorf("root is %o of %d:%d, %v; want %o of %d", st.Mode&0o7777, st.Uid, st.Gid, err, mode, uid)
			}
		})
	}
	silent := r.layer("x=1")
	check(0o755, 0, silent)
	check(0o1777, 7, rooted(0o1777, 7), silent)
	check(0o555, 0, rooted(0o1777, 7), silent, rooted(0o555, 0))
}

func testWritable(t *testing.T, r *rig) {
	layer := r.layer("etc/", "etc/a=1", "d/", "d/x=1")
	recipe := r.prepare(layer)
	r.mounted(recipe, func(root string) {
		err := errors.Join(
			os.WriteFile(filepath.Join(root, "etc/a"), []byte("2"), 0o644),
			os.WriteFile(filepath.Join(root, "new"), []byte("3"), 0o644),
			os.RemoveAll(filepath.Join(root, "d")),
			os.Mkdir(filepath.Join(root, "d"), 0o755),
		)
		if err != nil {
			t.Error(err)
		}
	})
	want := []string{"d/", "etc/", "etc/a=2", "new=3"}
	r.mounted(recipe, func(root string) { // what was written stays
		if got := tree(root); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("got %q, want %q", got, want)
		}
	})
	r.expect([]graph.Layer{layer}, "etc/", "etc/a=1", "d/", "d/x=1") // and stays there
}

func testNoLayers(t *testing.T, r *rig) {
	r.mounted(r.prepare(), func(root string) {
		if got := tree(root); len(got) != 0 {
			t.Errorf("got %q", got)
		}
		if err := os.WriteFile(filepath.Join(root, "x"), nil, 0o644); err != nil {
			t.Error(err)
		}
	})
}

func testOpaqueRoot(_ *testing.T, r *rig) {
	bottom, top := r.layer("a=1", "b=1"), r.layer(".wh..wh.opq", "b=2")
	r.expect([]graph.Layer{bottom, top}, "b=2")
	r.expect([]graph.Layer{bottom, top, r.layer("c=3")}, "b=2", "c=3")
}

func testMetadata(t *testing.T, r *rig) {
	const capability = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	stamp := time.Unix(1_500_000_000, 0)
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	add(t, w, &tar.Header{Typeflag: tar.TypeDir, Name: "d", Mode: 0o1770, Uid: 1, Gid: 2, ModTime: stamp}, "")
	add(t, w, &tar.Header{Typeflag: tar.TypeReg, Name: "d/f", Mode: 0o6755, Uid: 3, Gid: 4, ModTime: stamp, Size: 4,
		Format: tar.FormatPAX, PAXRecords: map[string]string{"SCHILY.xattr.security.capability": capability, "SCHILY.xattr.user.x": "y"}}, "text")
	add(t, w, &tar.Header{Typeflag: tar.TypeLink, Name: "d/g", Linkname: "d/f"}, "")
	add(t, w, &tar.Header{Typeflag: tar.TypeSymlink, Name: "l", Linkname: "/nowhere", Uid: 5, Gid: 6, ModTime: stamp}, "")
	add(t, w, &tar.Header{Typeflag: tar.TypeChar, Name: "null", Devmajor: 1, Devminor: 3, Mode: 0o666, Uid: 7, ModTime: stamp}, "")
	add(t, w, &tar.Header{Typeflag: tar.TypeFifo, Name: "pipe", Mode: 0o600, ModTime: stamp}, "")
	w.Close()
	layer := r.commit(r.stage(out.Bytes()))
	if layer.Bytes != 4 || layer.Entries != 6 {
		t.Errorf("layer is %+v", layer)
	}
	r.mounted(r.prepare(layer), func(root string) {
		for name, want := range map[string]unix.Stat_t{
			"d":    {Mode: unix.S_IFDIR | 0o1770, Uid: 1, Gid: 2},
			"d/f":  {Mode: unix.S_IFREG | 0o6755, Uid: 3, Gid: 4, Nlink: 2},
			"d/g":  {Mode: unix.S_IFREG | 0o6755, Uid: 3, Gid: 4, Nlink: 2},
			"l":    {Mode: unix.S_IFLNK | 0o777, Uid: 5, Gid: 6},
			"null": {Mode: unix.S_IFCHR | 0o666, Uid: 7, Rdev: unix.Mkdev(1, 3)},
			"pipe": {Mode: unix.S_IFIFO | 0o600},
		} {
			var st unix.Stat_t
			err := unix.Lstat(filepath.Join(root, name), &st)
			if err != nil || st.Mode != want.Mode || st.Uid != want.Uid || st.Gid != want.Gid || st.Rdev != want.Rdev ||
				want.Nlink != 0 && st.Nlink != want.Nlink || st.Mtim.Sec != stamp.Unix() {
				t.Errorf("%s: %+v, %v", name, st, err)
			}
		}
		for attr, want := range map[string]string{"security.capability": capability, "user.x": "y"} {
			buf := make([]byte, 100)
			n, err := unix.Lgetxattr(filepath.Join(root, "d/f"), attr, buf)
			// With userxattr overlayfs shows user.* of files, except its own.
			if err != nil || string(buf[:n]) != want {
				t.Errorf("%s is %q, %v", attr, buf[:max(n, 0)], err)
			}
		}
	})
}

func testManyLayers(t *testing.T, r *rig) {
	var layers []graph.Layer
	want := []string{"same=126"}
	for i := range 127 { // Docker's limit, which images keep to
		layers = append(layers, r.layer(fmt.Sprintf("f%d=%d", i, i), fmt.Sprintf("same=%d", i)))
		want = append(want, fmt.Sprintf("f%d=%d", i, i))
	}
	r.expect(layers, want...)
	for _, l := range layers {
		if len(l.Name) > 4 {
			t.Errorf("layer name %q is long", l.Name)
		}
	}
}

func testLifecycle(t *testing.T, r *rig) {
	kept, gone := r.layer("a=1"), r.layer("b=1")
	discarded := r.stage(tarOf(t, "c=1"))
	discarded.Discard()
	r.stage(tarOf(t, "d=1")) // the process dies here
	if names, err := r.driver.Layers(); err != nil || len(names) != 2 {
		t.Errorf("layers are %v, %v", names, err)
	}
	if err := errors.Join(r.driver.Remove(gone.Name), r.driver.Remove(gone.Name)); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"", ".", "..", "../x", "new.1", "A", "0"} {
		if r.driver.Remove(name) == nil {
			t.Errorf("removed %q", name)
		}
	}
	r.restart()
	if names, err := r.driver.Layers(); err != nil || len(names) != 1 || names[0] != kept.Name {
		t.Errorf("after restart layers are %v, %v", names, err)
	}
	entries, _ := os.ReadDir(filepath.Join(r.base, "l"))
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "new.") {
			t.Errorf("%s survived the restart", e.Name())
		}
	}
	if next := r.layer("e=1"); next.Name == kept.Name {
		t.Errorf("name %s given twice", next.Name)
	}
	r.expect([]graph.Layer{kept}, "a=1")
}

func testConcurrency(t *testing.T, r *rig) {
	var all sync.WaitGroup
	layers := make([]graph.Layer, 8)
	for i := range layers {
		archive := tarOf(t, fmt.Sprintf("d/f%d=%d", i, i))
		all.Go(func() {
			s, err := r.driver.Stage(context.Background(), bytes.NewReader(archive), unpack.Limits{})
			if err == nil {
				err = errors.Join(s.Sync(), s.Commit())
			}
			if err != nil {
				t.Error(err)
				return
			}
			layers[i] = s.Layer()
		})
	}
	all.Wait()
	want := []string{"d/"}
	for i := range layers {
		want = append(want, fmt.Sprintf("d/f%d=%d", i, i))
	}
	r.expect(layers, want...)
}

func testRefusal(t *testing.T, r *rig) {
	for _, archive := range [][]byte{tarOf(t, "ok=1", "../x=1"), tarOf(t, "ok=1", "other=long")[:1100]} {
		if _, err := r.driver.Stage(context.Background(), bytes.NewReader(archive), unpack.Limits{}); !errors.Is(err, unpack.ErrRefused) {
			t.Errorf("not refused: %v", err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := r.driver.Stage(ctx, bytes.NewReader(tarOf(t, "a=1")), unpack.Limits{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if names, _ := r.driver.Layers(); len(names) != 0 {
		t.Errorf("layers %v", names)
	}
	entries, _ := os.ReadDir(filepath.Join(r.base, "l"))
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "new.") {
			t.Errorf("%s was left", e.Name())
		}
	}
}

func testCopyOut(t *testing.T, r *rig) {
	layers := []graph.Layer{
		r.layer("run/", "run/x=1", "run/gone=1", "var/", "var/run->/run", "opt/", "opt/a=1", "etc->../../run/../opt", "file=1", "k/", "k/old=1"),
		r.layer("run/", "run/y=2", "run/.wh.gone", "opt/", "opt/.wh..wh.opq", "opt/b=2", ".wh.k", "k/", "k/new=2"),
		r.layer("run/", "run/y=3", "run/deep/", "run/deep/z=3", "loop->loop", "hidden/", "hidden/x=1"),
		r.layer(".wh.hidden"),
	}
	for path, want := range map[string][]string{
		"/run":         {"deep/", "deep/z=3", "x=1", "y=3"},
		"/var/run":     {"deep/", "deep/z=3", "x=1", "y=3"},
		"var/run/deep": {"z=3"},
		"/opt":         {"b=2"},
		"/etc":         {"b=2"},
		"/k":           {"new=2"},
		"/file":        {},
		"/none/x":      {},
		"/loop":        {},
		"/hidden":      {},
		"/run/../../k": {"new=2"},
	} {
		to := t.TempDir()
		if err := r.driver.CopyOut(context.Background(), layers, path, to); err != nil {
			t.Errorf("%s: %v", path, err)
		}
		if got := tree(to); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: got %q, want %q", path, got, want)
		}
	}
}

// testChanges is for drivers that are Differs.
func testChanges(t *testing.T, r *rig) {
	differ, ok := r.driver.(graph.Differ)
	if !ok {
		t.Skip("SKIPPED: the driver does not list changes")
	}
	layers := []graph.Layer{
		r.layer("etc/", "etc/a=1", "etc/b=1", "d/", "d/x=1", "d/y=1", "kept/", "kept/x=1"),
		r.layer("etc/", "etc/.wh.b", "etc/c=2"),
	}
	recipe := r.prepare(layers...)
	r.mounted(recipe, func(root string) {
		err := errors.Join(
			os.WriteFile(filepath.Join(root, "etc/a"), []byte("2"), 0o644),
			os.WriteFile(filepath.Join(root, "etc/b"), []byte("2"), 0o644),
			os.Remove(filepath.Join(root, "etc/c")),
			os.WriteFile(filepath.Join(root, "new"), nil, 0o644),
			os.RemoveAll(filepath.Join(root, "d")),
			os.Mkdir(filepath.Join(root, "d"), 0o755),
			os.WriteFile(filepath.Join(root, "d/x"), nil, 0o644),
		)
		if err != nil {
			t.Error(err)
		}
	})
	got, err := differ.Changes(filepath.Dir(recipe.Upper), layers)
	// 0 is modified, 1 added, 2 deleted. d was replaced as a whole.
	want := "[{0 /d} {2 /d/y} {1 /d/x} {0 /etc} {0 /etc/a} {1 /etc/b} {2 /etc/c} {1 /new}]"
	if fmt.Sprint(got) != want || err != nil {
		t.Errorf("got  %v, %v\nwant %s", got, err, want)
	}
}
