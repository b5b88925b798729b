// Package overlay has the graph drivers that stack layers with the kernel's
// overlayfs: starting a container makes two directories, whatever the size of
// the image. The layers of one, overlay, are directories; those of the other,
// erofs, are files that hold an EROFS file system each.
package overlay

import (
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
	"berth/services/imaged/graph"
	"berth/services/imaged/graph/merge"
	"berth/services/imaged/trash"
	"berth/services/imaged/unpack"

	"golang.org/x/sys/unix"
)

// MaxLayers is OVL_MAX_STACK of the kernel, the number of lower layers that one
// mount may have.
const MaxLayers = 500

// Driver stacks layers with overlayfs. Its layers have whiteouts and opaque
// marks in the form that the host's overlayfs reads.
type Driver struct {
	*graph.LayerDir
	form   unpack.Whiteouts
	images bool   // layers are images
	empty  string // a lower layer for images that have none
}

var (
	_ graph.Driver = (*Driver)(nil)
	_ graph.Differ = (*Driver)(nil)
)

// New opens the driver's layers in dir. form is what Probe found.
func New(dir string, form unpack.Whiteouts, can *trash.Can) (*Driver, error) {
	return open(dir, unpack.Options{Whiteouts: form}, can)
}

// NewEROFS opens layers in dir that are EROFS images. They can have any form of
// whiteouts that the host's overlayfs reads, whatever the file system of dir
// can store.
func NewEROFS(dir string, form unpack.Whiteouts, can *trash.Can) (*Driver, error) {
	return open(dir, unpack.Options{Whiteouts: form, Image: true}, can)
}

func open(dir string, form unpack.Options, can *trash.Can) (*Driver, error) {
	layers, err := graph.OpenLayerDir(dir, form, can)
	if err != nil {
		return nil, err
	}
	empty := filepath.Join(dir, "0") // not the name of a layer
	if err := os.Mkdir(empty, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	return &Driver{LayerDir: layers, form: form.Whiteouts, images: form.Image, empty: empty}, nil
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
		UserXattr: d.form == unpack.OverlayUser,
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
	return merge.Changes(filepath.Join(dir, "upper"), d.Paths(layers), d.form)
}

// WriteLayer writes the archive of the writable directory.
func (d *Driver) WriteLayer(ctx context.Context, w io.Writer, dir string, layers []graph.Layer) error {
	root := "" // what the container's "/" was made like
	if l, ok := graph.RootOf(layers); ok {
		root = d.Root(l.Name)
	}
	return merge.WriteLayer(ctx, w, filepath.Join(dir, "upper"), root, d.form)
}

// WriteTree writes the archive of the layers with the writable directory on top.
func (d *Driver) WriteTree(ctx context.Context, w io.Writer, dir string, layers []graph.Layer) error {
	return merge.WriteTree(ctx, w, append(d.Paths(layers), filepath.Join(dir, "upper")), d.form)
}

// overlayMagic is OVERLAYFS_SUPER_MAGIC of linux/magic.h.
const overlayMagic = 0x794c7630

// Probe tells whether this driver can be used for layers in dir, and in which
// form it must write whiteouts. The error says what is missing.
//
// Nothing is mounted to find out, as imaged may not mount: the kernel's version
// decides about userxattr, and the rest is tried on files.
func Probe(dir string) (unpack.Whiteouts, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	if uint32(st.Type) == overlayMagic {
		return 0, fmt.Errorf("%s is on overlayfs itself, which cannot hold a writable layer", dir)
	}
	if !kernelHas("overlay", "nodev") {
		return 0, errors.New("the kernel has no overlayfs")
	}
	tmp, err := os.MkdirTemp(dir, "probe-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(tmp)
	if err := unix.Mknod(filepath.Join(tmp, "whiteout"), unix.S_IFCHR, 0); err != nil {
		return 0, fmt.Errorf("make a whiteout in %s: %w", dir, err)
	}
	var tried []error
	for _, form := range formsOf(kernelVersion()) {
		err := unix.Setxattr(tmp, form.OpaqueXattr(), []byte("y"), 0)
		if err == nil {
			return form, nil
		}
		tried = append(tried, fmt.Errorf("set %s in %s: %w", form.OpaqueXattr(), dir, err))
	}
	return 0, errors.Join(tried...)
}

// ProbeEROFS tells whether the kernel can stack images: it must mount a file
// without a loop device (Linux 6.12) and take mounts that no path leads to as
// layers (6.15). The error says what is missing.
func ProbeEROFS() error {
	if major, minor := kernelVersion(); major < 6 || major == 6 && minor < 15 {
		return fmt.Errorf("EROFS layers need Linux 6.15, this is %d.%d", major, minor)
	}
	if !kernelHas("erofs", "") {
		return errors.New("the kernel has no EROFS")
	}
	return nil
}

// formsOf are the forms that overlayfs of a kernel reads, best first.
func formsOf(major, minor int) []unpack.Whiteouts {
	if major > 5 || major == 5 && minor >= 11 {
		return []unpack.Whiteouts{unpack.OverlayUser, unpack.OverlayTrusted}
	}
	return []unpack.Whiteouts{unpack.OverlayTrusted}
}

func kernelVersion() (major, minor int) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return 0, 0
	}
	fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor)
	return major, minor
}

// kernelHas also says yes when a file system is a module that is not loaded: the
// first mount loads it. kind is "nodev" or empty.
func kernelHas(fs, kind string) bool {
	b, err := os.ReadFile("/proc/filesystems")
	if err != nil || slices.Contains(strings.Split(string(b), "\n"), kind+"\t"+fs) {
		return true
	}
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return true
	}
	dir := map[string]string{"overlay": "overlayfs"}[fs]
	if dir == "" {
		dir = fs
	}
	_, err = os.Stat("/lib/modules/" + unix.ByteSliceToString(u.Release[:]) + "/kernel/fs/" + dir)
	return err == nil
}
