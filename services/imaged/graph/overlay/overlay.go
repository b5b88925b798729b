// Package overlay has the graph drivers that stack layers with the kernel's
// overlayfs: starting a container makes two directories, whatever the size of
// the image. The layers of one, overlay, are directories; those of the other,
// erofs, are files that hold an EROFS file system each.
package overlay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"berth/internal/fault"
	"berth/services/imaged/erofs"
	"berth/services/imaged/graph"
	"berth/services/imaged/graph/merge"
	"berth/services/imaged/trash"
	"berth/services/imaged/unpack"

	"golang.org/x/sys/unix"
)

// MaxLayers is OVL_MAX_STACK of the kernel, the number of lower layers that one
// mount may have.
const MaxLayers = 500

// Driver stacks layers with overlayfs, mounted with "userxattr": layers and writable directories have their opaque marks in
// user.overlay.*, whatever kernel made them.
type Driver struct {
	*graph.LayerDir
	images bool   // layers are images
	empty  string // a lower layer for images that have none
}

var (
	_ graph.Driver = (*Driver)(nil)
	_ graph.Differ = (*Driver)(nil)
)

// form is that of all marks. overlayfs has another, trusted.overlay.*, which only CAP_SYS_ADMIN may write: not imaged.
const form = unpack.OverlayUser

// New opens the driver's layers in dir.
func New(dir string, can *trash.Can) (*Driver, error) {
	return open(dir, unpack.Options{Whiteouts: form}, can)
}

// NewEROFS opens layers in dir that are EROFS images, new ones with blocks of
// blockSize bytes, which is BlockSize but in tests.
func NewEROFS(dir string, blockSize int, can *trash.Can) (*Driver, error) {
	return open(dir, unpack.Options{Whiteouts: form, Image: true, BlockSize: blockSize}, can)
}

func open(dir string, o unpack.Options, can *trash.Can) (*Driver, error) {
	layers, err := graph.OpenLayerDir(dir, o, can)
	if err != nil {
		return nil, err
	}
	empty := filepath.Join(dir, "0") // not the name of a layer
	if err := os.Mkdir(empty, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	return &Driver{LayerDir: layers, images: o.Image, empty: empty}, nil
}

// Name is "overlay" or "erofs".
func (d *Driver) Name() string {
	if d.images {
		return "erofs"
	}
	return "overlay"
}

// Prepare makes the writable and the scratch directory in dir.
func (d *Driver) Prepare(_ context.Context, dir string, layers []graph.Layer) (graph.Recipe, error) {
	r := d.Recipe(dir, layers)
	if len(r.Lower) > MaxLayers {
		return graph.Recipe{}, fault.FailedPrecondition.Errorf("TOO_MANY_LAYERS",
			"image has %d layers; overlayfs stacks at most %d", len(r.Lower), MaxLayers)
	}
	for _, sub := range []string{r.Upper, r.Work} {
		if err := os.Mkdir(sub, 0o755); err != nil {
			return graph.Recipe{}, err
		}
	}
	return r, d.dressRoot(r.Upper, layers)
}

// dressRoot gives the writable directory, which is what a container sees as
// "/", the owner and mode that the image's root has.
func (d *Driver) dressRoot(upper string, layers []graph.Layer) error {
	uid, gid, mode := 0, 0, uint32(0o755)
	if l, ok := graph.RootOf(layers); ok {
		st, err := merge.StatRoot(d.Root(l.Name))
		if err != nil {
			return err
		}
		uid, gid, mode = int(st.Uid), int(st.Gid), st.Mode&0o7777
	}
	if err := os.Lchown(upper, uid, gid); err != nil {
		return err
	}
	if err := unix.Chmod(upper, mode); err != nil {
		return &os.PathError{Op: "chmod", Path: upper, Err: err}
	}
	return nil
}

// Recipe is the overlay mount of dir over layers.
func (d *Driver) Recipe(dir string, layers []graph.Layer) graph.Recipe {
	r := graph.Recipe{
		Type:      "overlay",
		Upper:     filepath.Join(dir, "upper"),
		Work:      filepath.Join(dir, "work"),
		UserXattr: true,
	}
	for _, l := range slices.Backward(graph.Visible(layers)) {
		r.Lower = append(r.Lower, d.Root(l.Name))
	}
	r.Images = d.images && len(r.Lower) > 0
	if len(r.Lower) == 0 {
		r.Lower = []string{d.empty}
	}
	return r
}

// Changes lists what the writable directory holds: overlayfs puts there whatever
// a container touches.
func (d *Driver) Changes(dir string, layers []graph.Layer) ([]merge.Change, error) {
	return merge.Changes(filepath.Join(dir, "upper"), d.Paths(layers), form)
}

// WriteLayer writes the archive of the writable directory.
func (d *Driver) WriteLayer(ctx context.Context, w io.Writer, dir string, layers []graph.Layer) error {
	root := "" // what the container's "/" was made like
	if l, ok := graph.RootOf(layers); ok {
		root = d.Root(l.Name)
	}
	return merge.WriteLayer(ctx, w, filepath.Join(dir, "upper"), root, form)
}

// WriteTree writes the archive of the layers with the writable directory on top.
func (d *Driver) WriteTree(ctx context.Context, w io.Writer, dir string, layers []graph.Layer) error {
	return merge.WriteTree(ctx, w, append(d.Paths(layers), filepath.Join(dir, "upper")), form)
}

// overlayMagic is OVERLAYFS_SUPER_MAGIC of linux/magic.h.
const overlayMagic = 0x794c7630

// Probe tells whether this driver can be used for layers in dir. The error says
// what is missing.
//
// Nothing is mounted to find out, as imaged may not mount: the kernel's version
// decides about userxattr, and the rest is tried on files.
func Probe(dir string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	if uint32(st.Type) == overlayMagic {
		return fmt.Errorf("%s is on overlayfs itself, which cannot hold a writable layer", dir)
	}
	if !kernelHas("overlay", "nodev") {
		return errors.New("the kernel has no overlayfs (modprobe overlay)")
	}
	if !since(5, 11) {
		return errors.New("overlayfs has the option userxattr since Linux 5.11 only")
	}
	tmp, err := os.MkdirTemp(dir, "probe-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	if err := unix.Mknod(filepath.Join(tmp, "whiteout"), unix.S_IFCHR, 0); err != nil {
		return fmt.Errorf("make a whiteout in %s: %w", dir, err)
	}
	if err := unix.Setxattr(tmp, form.OpaqueXattr(), []byte("y"), 0); err != nil {
		return fmt.Errorf("set %s in %s: %w", form.OpaqueXattr(), dir, err)
	}
	return nil
}

// ProbeEROFS is Probe for layers that are images.
//
// Whether these are mounted as files or on loop devices is found out by whoever
// mounts them. Linux before 6.12 cannot do the first and needs the second, and all
// before 6.15, as their overlayfs stacks no mounts that no path leads to.
func ProbeEROFS(dir string) error {
	if err := Probe(dir); err != nil { // of the writable layers
		return err
	}
	if !kernelHas("erofs", "") {
		return errors.New("the kernel has no EROFS (modprobe erofs)")
	}
	if !since(6, 15) && !hasLoop() {
		return errors.New("the kernel has no loop devices, which EROFS layers need before Linux 6.15 (modprobe loop)")
	}
	return nil
}

// BlockSize is the least size of blocks, in bytes, of images that the kernel mounts.
func BlockSize() int {
	if since(6, 4) {
		return erofs.MinBlock
	}
	return os.Getpagesize()
}

// hasLoop also says yes when the module is not loaded: the first use of
// /dev/loop-control loads it.
func hasLoop() bool {
	for _, path := range []string{"/sys/class/misc/loop-control", "/dev/loop-control"} {
		if _, err := os.Stat(path); err == nil {
			return true
		}
	}
	return hasModule("drivers/block/loop")
}

// since reports whether the kernel is at least of this version.
func since(major, minor int) bool {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return false
	}
	var m, n int
	fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &m, &n)
	return m > major || m == major && n >= minor
}

// kernelHas also says yes when a file system is a module that is not loaded: the
// first mount loads it. kind is "nodev" or empty.
func kernelHas(fs, kind string) bool {
	b, err := os.ReadFile("/proc/filesystems")
	if err != nil || slices.Contains(strings.Split(string(b), "\n"), kind+"\t"+fs) {
		return true
	}
	dir := map[string]string{"overlay": "overlayfs"}[fs]
	return hasModule("fs/" + cmp.Or(dir, fs))
}

// hasModule reports whether there are modules of this kernel whose path begins with
// prefix; yes if that cannot be told.
func hasModule(prefix string) bool {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return true
	}
	path := "/lib/modules/" + unix.ByteSliceToString(u.Release[:]) + "/kernel/" + prefix
	if _, err := os.Stat(filepath.Dir(path)); err != nil {
		return !errors.Is(err, fs.ErrNotExist)
	}
	found, err := filepath.Glob(path + "*")
	return err != nil || len(found) > 0
}
