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
			s, err := r.driver.Stage(context.Background(), Make(archive))
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
		if _, err := r.driver.Stage(context.Background(), Make(archive)); !errors.Is(err, unpack.ErrRefused) {
			t.Errorf("not refused: %v", err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := r.driver.Stage(ctx, Make(tarOf(t, "a=1"))); !errors.Is(err, context.Canceled) {
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

// details are what tree leaves out: kind, mode, owner, time and device of each
// file, the first of its names, and its extended attributes.
func details(t *testing.T, root string) map[string]string {
	t.Helper()
	all := map[string]string{}
	first := map[uint64]string{}
	for _, entry := range tree(root) {
		name, _, _ := strings.Cut(entry, "=")
		name, _, _ = strings.Cut(name, "->")
		name, _, _ = strings.Cut(name, " ")
		name = strings.TrimSuffix(name, "/")
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(root, name), &st); err != nil {
			t.Fatal(err)
		}
		if first[st.Ino] == "" {
			first[st.Ino] = name
		}
		note := make([]byte, 100)
		n, _ := unix.Lgetxattr(filepath.Join(root, name), "user.note", note)
		all[name] = fmt.Sprintf("%o %d:%d %d.%d %d %s %q", st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec, st.Rdev, first[st.Ino], note[:max(n, 0)])
	}
	return all
}

// testWriteTree: the archive of a root file system has its files as they are,
// with what tells them apart, and none of what the driver adds.
func testWriteTree(t *testing.T, r *rig) {
	layers := []graph.Layer{r.layer("etc/", "etc/a=1", "bin->usr/bin", "usr/bin/", "usr/bin/sh=sh", "gone=1"), r.layer("etc/", "etc/b=2", ".wh.gone")}
	recipe := r.prepare(layers...)
	var want map[string]string
	r.mounted(recipe, func(root string) {
		at := func(name string) string { return filepath.Join(root, name) }
		err := errors.Join(
			os.Mkdir(at("d"), 0o2750),
			os.WriteFile(at("d/file"), bytes.Repeat([]byte("x"), 300_000), 0o600),
			os.Chown(at("d/file"), 1000, 70_000),
			os.Chmod(at("d/file"), 0o4711|os.ModeSetuid),
			os.Link(at("d/file"), at("name")),
			unix.Setxattr(at("d/file"), "user.note", []byte("kept"), 0),
			os.Symlink("/nowhere/at/all", at("d/link")),
			unix.Mkfifo(at("d/fifo"), 0o640),
			unix.Mknod(at("d/null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))),
			unix.Mknod(at("d/socket"), unix.S_IFSOCK|0o666, 0),
			os.Remove(at("etc/a")),
			os.WriteFile(at("etc/b"), []byte("3"), 0o644),
			os.Chtimes(at("d"), time.Unix(5, 0), time.Unix(123456789, 987654321)),
		)
		if err != nil {
			t.Error(err)
		}
		want = details(t, root)
		delete(want, "d/socket")
	})
	got := details(t, r.extracted(r.writeTree(recipe, layers)))
	for name, w := range want {
		if got[name] != w {
			t.Errorf("%s: got %q, want %q", name, got[name], w)
		}
	}
	if len(got) != len(want) || got["gone"] != "" || got["etc/a"] != "" {
		t.Errorf("got %v, want %v", got, want)
	}
}

// testWriteLayer: a container's changes, as a layer on its image's layers, give
// what the container saw.
func testWriteLayer(t *testing.T, r *rig) {
	differ, ok := r.driver.(graph.Differ)
	if !ok {
		t.Skip("SKIPPED: the driver does not know what changed")
	}
	layers := []graph.Layer{
		r.layer("etc/", "etc/a=1", "etc/b=1", "d/", "d/x=1", "d/y=1", "kept/", "kept/x=1", "f=1"),
		r.layer("etc/", "etc/.wh.b", "etc/c=2"),
	}
	recipe := r.prepare(layers...)
	var want []string
	r.mounted(recipe, func(root string) {
		at := func(name string) string { return filepath.Join(root, name) }
		err := errors.Join(
			os.WriteFile(at("etc/a"), []byte("2"), 0o644),
			os.WriteFile(at("etc/b"), []byte("2"), 0o644),
			os.Remove(at("etc/c")),
			os.WriteFile(at("new"), nil, 0o644),
			os.RemoveAll(at("d")),
			os.Mkdir(at("d"), 0o755),
			os.WriteFile(at("d/x"), nil, 0o644),
			os.Remove(at("f")),
			os.Mkdir(at("f"), 0o700),
			os.Chmod(root, 0o700),
		)
		if err != nil {
			t.Error(err)
		}
		want = tree(root)
	})
	var out bytes.Buffer
	if err := differ.WriteLayer(context.Background(), &out, dirOf(recipe), layers); err != nil {
		t.Fatal(err)
	}
	top := r.commit(r.stage(out.Bytes()))
	r.expect(append(layers, top), want...)
	r.mounted(r.prepare(append(layers, top)...), func(root string) {
		if st, err := os.Stat(root); err != nil || st.Mode().Perm() != 0o700 {
			t.Errorf("the root is %v, %v", st.Mode(), err)
		}
	})
	unchanged := r.prepare(layers...)
	out.Reset()
	if err := differ.WriteLayer(context.Background(), &out, dirOf(unchanged), layers); err != nil {
		t.Fatal(err)
	}
	if got := tree(r.extracted(out.Bytes())); len(got) != 0 {
		t.Errorf("of a container that changed nothing: %q", got)
	}
}

// testS09Race: a container that swaps directories and files for links and pipes
// while its files are archived cannot have anything of the host archived, nor
// hold the archiving up.
func testS09Race(t *testing.T, r *rig) {
	canary := t.TempDir()
	if err := os.WriteFile(filepath.Join(canary, "f"), []byte("SECRET OF THE HOST"), 0o600); err != nil {
		t.Fatal(err)
	}
	recipe := r.prepare(r.layer("d/", "d/f=1", "f=1"))
	root := recipe.Upper + recipe.Source // what a container's writes come to
	at := func(name string) string { return filepath.Join(root, name) }
	err := errors.Join(
		os.MkdirAll(at("d"), 0o755), os.WriteFile(at("d/f"), []byte("1"), 0o644), os.WriteFile(at("f"), []byte("1"), 0o644),
		os.Symlink(canary, at("to-dir")), os.Symlink(filepath.Join(canary, "f"), at("to-file")), unix.Mkfifo(at("pipe"), 0o600),
	)
	if err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var swapping sync.WaitGroup
	swap := func(a, b string) {
		for {
			select {
			case <-stop:
				return
			default:
				unix.Renameat2(unix.AT_FDCWD, at(a), unix.AT_FDCWD, at(b), unix.RENAME_EXCHANGE)
			}
		}
	}
	swapping.Go(func() { swap("d", "to-dir") })
	swapping.Go(func() { swap("f", "to-file") })
	swapping.Go(func() { swap("f", "pipe") })
	differ, _ := r.driver.(graph.Differ)
	seen := map[string]bool{}
	for began, n := time.Now(), 0; n < 2000 && time.Since(began) < 5*time.Second; n++ {
		var out bytes.Buffer
		if err := r.driver.WriteTree(context.Background(), &out, dirOf(recipe), nil); err != nil {
			t.Error(err)
			break
		}
		if differ != nil {
			if err := differ.WriteLayer(context.Background(), &out, dirOf(recipe), nil); err != nil {
				t.Error(err)
				break
			}
		}
		if bytes.Contains(out.Bytes(), []byte("SECRET")) {
			t.Error("a file of the host is in the archive")
			break
		}
		seen[fmt.Sprint(bytes.Contains(out.Bytes(), []byte("d/f")))] = true
	}
	close(stop)
	swapping.Wait()
	if len(seen) != 2 {
		t.Logf("the race was never met: %v", seen)
	}
}
