// Package graphtest is the suite that every graph driver must pass. A driver's
// test calls [Run].
package graphtest

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"berth/services/imaged/graph"
	"berth/services/imaged/trash"
	"berth/services/imaged/unpack"

	"golang.org/x/sys/unix"
)

// Open makes the driver under test in dir. It is called several times for the
// same directory, as a daemon that restarts does.
type Open func(dir string, can *trash.Can) (graph.Driver, error)

// Run runs the suite. It needs root, to mount and to make devices; mounts are
// made in mount namespaces of their own.
func Run(t *testing.T, open Open) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: needs root")
	}
	for name, test := range map[string]func(*testing.T, *rig){
		"Stack":       testStack,
		"Whiteouts":   testWhiteouts,
		"Root":        testRoot,
		"Writable":    testWritable,
		"NoLayers":    testNoLayers,
		"OpaqueRoot":  testOpaqueRoot,
		"Metadata":    testMetadata,
		"ManyLayers":  testManyLayers,
		"Lifecycle":   testLifecycle,
		"Concurrency": testConcurrency,
		"CopyOut":     testCopyOut,
		"Changes":     testChanges,
		"WriteTree":   testWriteTree,
		"WriteLayer":  testWriteLayer,
		"S09Race":     testS09Race,
		"Refusal":     testRefusal,
	} {
		t.Run(name, func(t *testing.T) { test(t, newRig(t, open)) })
	}
}

// rig is a driver with a directory of its own.
type rig struct {
	*testing.T
	open   Open
	base   string
	can    *trash.Can
	driver graph.Driver
}

func newRig(t *testing.T, open Open) *rig {
	t.Helper()
	// Not 0700: a mapped user must be able to traverse to the layers.
	r := &rig{T: t, open: open, base: t.TempDir()}
	r.restart()
	t.Cleanup(func() { r.can.Close() })
	return r
}

// restart opens the driver again, as after a crash.
func (r *rig) restart() {
	r.Helper()
	if r.can != nil {
		r.can.Close()
	}
	var err error
	if r.can, err = trash.Open(filepath.Join(r.base, "trash"), r.Logf); err != nil {
		r.Fatal(err)
	}
	if r.driver, err = r.open(filepath.Join(r.base, "l"), r.can); err != nil {
		r.Fatal(err)
	}
}

// layer commits a layer with the given entries. "dir/" is a directory,
// "name=content" a file, "name->target" a link; a whiteout is a file.
func (r *rig) layer(entries ...string) graph.Layer {
	r.Helper()
	return r.commit(r.stage(tarOf(r.T, entries...)))
}

func (r *rig) stage(archive []byte) graph.Staged {
	r.Helper()
	s, err := r.driver.Stage(context.Background(), Make(archive))
	if err != nil {
		r.Fatal(err)
	}
	return s
}

// Make unpacks archive in this process, as berth-unpack does in another.
func Make(archive []byte) graph.Maker {
	return func(ctx context.Context, dir *os.File, o unpack.Options) (unpack.Result, error) {
		return unpack.Extract(ctx, dir, bytes.NewReader(archive), o)
	}
}

func (r *rig) commit(s graph.Staged) graph.Layer {
	r.Helper()
	if err := errors.Join(s.Sync(), s.Commit()); err != nil {
		r.Fatal(err)
	}
	s.Discard() // must be harmless now
	return s.Layer()
}

func tarOf(t *testing.T, entries ...string) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, e := range entries {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: e, Mode: 0o644, ModTime: time.Unix(1000, 0)}
		var body string
		if name, target, ok := strings.Cut(e, "->"); ok {
			h.Typeflag, h.Name, h.Linkname = tar.TypeSymlink, name, target
		} else if name, content, ok := strings.Cut(e, "="); ok {
			h.Name, h.Size, body = name, int64(len(content)), content
		} else if strings.HasSuffix(e, "/") {
			h.Typeflag, h.Mode = tar.TypeDir, 0o755
		}
		add(t, w, h, body)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func add(t *testing.T, w *tar.Writer, h *tar.Header, body string) {
	t.Helper()
	if err := w.WriteHeader(h); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, body); err != nil {
		t.Fatal(err)
	}
}

// prepare makes a root file system and its recipe, and checks that Recipe
// gives the same again.
func (r *rig) prepare(layers ...graph.Layer) graph.Recipe {
	r.Helper()
	dir, err := os.MkdirTemp(r.base, "rw-")
	if err != nil {
		r.Fatal(err)
	}
	recipe, err := r.driver.Prepare(context.Background(), dir, layers)
	if err != nil {
		r.Fatal(err)
	}
	if again := r.driver.Recipe(dir, layers); fmt.Sprint(again) != fmt.Sprint(recipe) {
		r.Errorf("Prepare gave %+v, Recipe %+v", recipe, again)
	}
	return recipe
}

// mounted runs f with the path at which recipe is mounted. The mount is in a
// mount namespace of one thread, which ends with it: f must not leave the
// goroutine, or it sees an empty directory.
func (r *rig) mounted(recipe graph.Recipe, f func(root string)) {
	r.Helper()
	root := filepath.Join(r.base, "mnt")
	if err := os.MkdirAll(root, 0o755); err != nil {
		r.Fatal(err)
	}
	var failure error
	var done sync.WaitGroup
	done.Go(func() {
		runtime.LockOSThread() // never unlocked: the thread dies with the namespace
		if failure = mount(recipe, root); failure == nil {
			f(root)
			failure = unix.Unmount(root, unix.MNT_DETACH)
		}
	})
	done.Wait()
	if failure != nil {
		r.Fatalf("mount %+v: %v", recipe, failure)
	}
}

func mount(recipe graph.Recipe, root string) error {
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
		return os.NewSyscallError("unshare", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return os.NewSyscallError("mount", err)
	}
	switch recipe.Type {
	case "bind":
		return os.NewSyscallError("mount", unix.Mount(recipe.Source, root, "", unix.MS_BIND, ""))
	case "overlay":
		return mountOverlay(recipe, root)
	}
	return fmt.Errorf("recipe of unknown type %q", recipe.Type)
}

// mountOverlay names layers relative to their directory: the options of the
// old mount call must fit in a page.
func mountOverlay(recipe graph.Recipe, root string) error {
	if recipe.Images {
		return mountImages(recipe, root)
	}
	base := filepath.Dir(recipe.Lower[0])
	if err := unix.Chdir(base); err != nil {
		return err
	}
	var lower []string
	for _, l := range recipe.Lower {
		lower = append(lower, filepath.Base(l))
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", strings.Join(lower, ":"), recipe.Upper, recipe.Work)
	if recipe.UserXattr {
		options += ",userxattr"
	}
	return os.NewSyscallError("mount", unix.Mount("overlay", root, "overlay", 0, options))
}

// mountImages hands the layers over as descriptors of mounts that no path leads to.
func mountImages(recipe graph.Recipe, root string) error {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("fsopen", err)
	}
	defer unix.Close(fs)
	for _, l := range recipe.Lower {
		image, err := mountImage(l)
		if err != nil {
			return err
		}
		defer unix.Close(image)
		if err := unix.FsconfigSetFd(fs, "lowerdir+", image); err != nil {
			return os.NewSyscallError("fsconfig", err)
		}
	}
	err = errors.Join(unix.FsconfigSetString(fs, "upperdir", recipe.Upper), unix.FsconfigSetString(fs, "workdir", recipe.Work),
		unix.FsconfigSetString(fs, "xino", "on")) // as layers are file systems of their own
	if recipe.UserXattr {
		err = errors.Join(err, unix.FsconfigSetFlag(fs, "userxattr"))
	}
	if err := errors.Join(err, unix.FsconfigCreate(fs)); err != nil {
		return os.NewSyscallError("fsconfig", err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("fsmount", err)
	}
	defer unix.Close(fd)
	return os.NewSyscallError("move_mount", unix.MoveMount(fd, "", unix.AT_FDCWD, root, unix.MOVE_MOUNT_F_EMPTY_PATH))
}

func mountImage(path string) (int, error) {
	fs, err := unix.Fsopen("erofs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, os.NewSyscallError("fsopen", err)
	}
	defer unix.Close(fs)
	if err := errors.Join(unix.FsconfigSetString(fs, "source", path), unix.FsconfigCreate(fs)); err != nil {
		return -1, fmt.Errorf("mount %s: %w", path, err)
	}
	return unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
}

// tree lists root as strings that tarOf would make, without directories' slash.
func tree(root string) []string {
	all := []string{}
	filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		name, _ := filepath.Rel(root, path)
		switch {
		case err != nil:
			all = append(all, err.Error())
		case name == ".":
		case d.Type()&os.ModeSymlink != 0:
			target, _ := os.Readlink(path)
			all = append(all, name+"->"+target)
		case d.Type().IsRegular():
			b, _ := os.ReadFile(path)
			all = append(all, name+"="+string(b))
		case d.IsDir():
			all = append(all, name+"/")
		default:
			all = append(all, name+" "+d.Type().String())
		}
		return nil
	})
	slices.Sort(all)
	return all
}

// expect mounts the stack and compares its tree, and that of its archive.
func (r *rig) expect(layers []graph.Layer, want ...string) {
	r.Helper()
	slices.Sort(want)
	recipe := r.prepare(layers...)
	r.mounted(recipe, func(root string) {
		if got := tree(root); !slices.Equal(got, want) {
			r.Errorf("got  %q\nwant %q", got, want)
		}
	})
	if got := tree(r.extracted(r.writeTree(recipe, layers))); !slices.Equal(got, want) {
		r.Errorf("archive has %q\nwant        %q", got, want)
	}
}

// dirOf is the directory that recipe was prepared in.
func dirOf(recipe graph.Recipe) string { return filepath.Dir(recipe.Upper + recipe.Source) }

func (r *rig) writeTree(recipe graph.Recipe, layers []graph.Layer) []byte {
	r.Helper()
	var out bytes.Buffer
	if err := r.driver.WriteTree(context.Background(), &out, dirOf(recipe), layers); err != nil {
		r.Fatal(err)
	}
	return out.Bytes()
}

// extracted is a directory with the content of an archive.
func (r *rig) extracted(archive []byte) string {
	r.Helper()
	path, err := os.MkdirTemp(r.base, "x-")
	if err != nil {
		r.Fatal(err)
	}
	dir, err := os.Open(path)
	if err != nil {
		r.Fatal(err)
	}
	defer dir.Close()
	if _, err := unpack.Extract(context.Background(), dir, bytes.NewReader(archive), unpack.Options{}); err != nil {
		r.Fatal(err)
	}
	return path
}
