package mount

import (
	"errors"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// maxString is the longest value that fsconfig(2) takes as a string, without
// its final NUL.
const maxString = 255

// maxData is the longest option text that mount(2) takes: a page less its NUL.
const maxData = 4095

// ErrTooManyLayers is the error for an overlay whose description does not fit
// into what the kernel takes: a page of text before Linux 6.5, 500 layers since.
var ErrTooManyLayers = errors.New("too many layers, or their paths are too long, for one overlay")

// Volatile is the overlay option for an upper directory that is thrown away
// afterwards (Linux 5.10): fsync(2) in it does nothing, and neither unmounting
// it nor sync(2) writes anything out. Otherwise unmounting, which is part of the
// end of a container's last process, syncs the whole file system that the upper
// directory is on (ovl_sync_fs in fs/overlayfs/super.c).
const Volatile = "volatile"

// Overlay makes the mount of an overlay (r.Lower is not empty).
//
// Layers are handed over one by one on Linux 6.5 and later. Before that they
// are one text of at most a page, so they are named relative to the directory
// they have in common; the working directory changes for that moment.
func (b *Builder) Overlay(r *Root) (*Tree, error) {
	return onceMore(r, b.overlay)
}

// onceMore makes an overlay, and if the kernel refuses it as volatile, a durable
// one.
func onceMore(r *Root, make func(*Root) (*Tree, error)) (*Tree, error) {
	tree, err := make(r)
	if !errors.Is(err, unix.EINVAL) || !slices.Contains(r.Options, Volatile) {
		return tree, err
	}
	// Before Linux 5.10 there is no such option; since then the kernel refuses
	// an upper directory that was mounted with it, by the mark it leaves.
	mark := r.Work + "/work/incompat/volatile"
	if err := unix.Unlink(mark + "/dirty"); err != nil && err != unix.ENOENT {
		return nil, err
	}
	if err := unix.Rmdir(mark); err != nil && err != unix.ENOENT {
		return nil, err
	}
	durable := *r
	durable.Options = slices.DeleteFunc(slices.Clone(r.Options), func(o string) bool { return o == Volatile })
	return make(&durable)
}

func (b *Builder) overlay(r *Root) (*Tree, error) {
	attr := r.Attr &^ ReadOnly // later: mountpoints are still to be made
	if r.Upper == "" && len(r.Lower) == 1 {
		return b.singleLayer(r.Lower[0], attr)
	}
	if !b.legacy && fitsStrings(r) {
		tree, err := modernOverlay(r, attr)
		if err == nil || !errors.Is(err, unix.EINVAL) {
			return tree, err
		}
		// EINVAL: perhaps no lowerdir+ (before 6.5). The old call knows.
	}
	return b.legacyOverlay(r, attr)
}

// singleLayer shows the only layer of a read-only root. The kernel refuses an
// overlay of one layer without an upper directory.
func (b *Builder) singleLayer(dir string, attr Attr) (*Tree, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	tree, err := b.Copy(fd, false)
	if err != nil {
		return nil, err
	}
	if err := tree.SetAttr(attr|ReadOnly, false); err != nil {
		tree.Close()
		return nil, err
	}
	return tree, nil
}

func fitsStrings(r *Root) bool {
	for _, dir := range append([]string{r.Upper, r.Work}, r.Lower...) {
		if len(dir) > maxString {
			return false
		}
	}
	return true
}

func modernOverlay(r *Root, attr Attr) (*Tree, error) {
	return newFS("overlay", func(fs int) error {
		for _, dir := range r.Lower {
			if err := unix.FsconfigSetString(fs, "lowerdir+", dir); err != nil {
				return err
			}
		}
		for _, option := range overlayOptions(r) {
			key, value, _ := strings.Cut(option, "=")
			if err := configure(fs, key, value); err != nil {
				return err
			}
		}
		return nil
	}, attr)
}

// overlayOptions are all options but the lower layers.
func overlayOptions(r *Root) []string {
	options := append([]string(nil), r.Options...)
	if r.Upper != "" {
		options = append(options, "upperdir="+r.Upper, "workdir="+r.Work)
	}
	return options
}

func (b *Builder) legacyOverlay(r *Root, attr Attr) (*Tree, error) {
	here, err := unix.Open(".", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(here)
	base, data := legacyData(r)
	if len(data) > maxData {
		return nil, ErrTooManyLayers
	}
	if err := unix.Chdir(base); err != nil {
		return nil, err
	}
	defer unix.Fchdir(here)
	return b.legacyNew("overlay", "", data, attr)
}

// legacyData is the option text with every directory relative to base.
func legacyData(r *Root) (base, data string) {
	dirs := append([]string(nil), r.Lower...)
	if r.Upper != "" {
		dirs = append(dirs, r.Upper, r.Work)
	}
	base = commonDir(dirs)
	for i, dir := range dirs {
		dirs[i] = escape(strings.TrimLeft(strings.TrimPrefix(dir, base), "/"))
	}
	options := append([]string(nil), r.Options...)
	options = append(options, "lowerdir="+strings.Join(dirs[:len(r.Lower)], ":"))
	if r.Upper != "" {
		options = append(options, "upperdir="+dirs[len(dirs)-2], "workdir="+dirs[len(dirs)-1])
	}
	return base, strings.Join(options, ",")
}

// commonDir is the deepest directory that is a proper ancestor of every path.
func commonDir(paths []string) string {
	common := paths[0]
	for _, path := range paths {
		for common != "/" && !strings.HasPrefix(path, strings.TrimSuffix(common, "/")+"/") {
			common = parentDir(common)
		}
	}
	return common
}

func parentDir(path string) string {
	i := strings.LastIndexByte(strings.TrimRight(path, "/"), '/')
	if i <= 0 {
		return "/"
	}
	return path[:i]
}

// escape protects the characters that mean something in overlay's options.
func escape(s string) string {
	return strings.NewReplacer(`\`, `\\`, `:`, `\:`, `,`, `\,`).Replace(s)
}
