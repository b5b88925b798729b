package mount

import (
	"errors"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A Builder makes mounts in the mount namespace of the calling thread.
type Builder struct {
	legacy bool
	stage  stage
}

// NewBuilder returns a Builder that uses the mount API of Linux 5.12, or, if
// legacy is true or the kernel lacks it, mount(2).
func NewBuilder(legacy bool) *Builder {
	return &Builder{legacy: legacy || !Modern(), stage: stage{dir: -1}}
}

// Legacy reports whether the Builder uses mount(2).
func (b *Builder) Legacy() bool { return b.legacy }

// Modern reports whether the kernel has fsopen, open_tree, move_mount and
// mount_setattr, the youngest of them, and lets this process use them (old
// seccomp filters do not).
func Modern() bool {
	err := unix.MountSetattr(-1, "", unix.AT_EMPTY_PATH, &unix.MountAttr{})
	return err != unix.ENOSYS && err != unix.EPERM
}

// Close gives up the staging place, if there is one.
func (b *Builder) Close() { b.stage.close() }

// A Tree is a mount, with whatever is mounted below it. Until Attach it is
// part of no path. The caller closes it; once attached it stays without.
type Tree struct {
	fd     int    // O_PATH descriptor of the root of the mount
	staged string // legacy: its path in the staging place, "" once attached
}

// TreeFromFD takes over the descriptor of a detached mount that another
// process made.
func TreeFromFD(fd int) *Tree { return &Tree{fd: fd} }

// FD is the O_PATH descriptor of the root of the mount. It belongs to the Tree.
func (t *Tree) FD() int { return t.fd }

// Close closes the descriptor; a mount that was never attached is gone then.
func (t *Tree) Close() {
	unix.Close(t.fd)
	if t.staged != "" {
		unix.Unmount(t.staged, unix.MNT_DETACH)
	}
}

// New makes a mount of a new instance of a file system. Options are
// "key=value" or "flag", as in the data of mount(2).
func (b *Builder) New(fstype, source string, options []string, attr Attr) (*Tree, error) {
	if b.legacy {
		return b.legacyNew(fstype, source, strings.Join(options, ","), attr)
	}
	return newFS(fstype, func(fs int) error {
		if source != "" {
			if err := configure(fs, "source", source); err != nil {
				return err
			}
		}
		for _, option := range options {
			key, value, _ := strings.Cut(option, "=")
			if err := configure(fs, key, value); err != nil {
				return err
			}
		}
		return nil
	}, attr)
}

// Copy makes a mount that shows what fd, an O_PATH descriptor of a file or
// directory, refers to: a bind mount. Recursive copies what is mounted below
// as well.
func (b *Builder) Copy(fd int, recursive bool) (*Tree, error) {
	if b.legacy {
		return b.legacyCopy(fd, recursive)
	}
	tree, err := CopyFD(fd, recursive)
	if err != nil {
		return nil, err
	}
	return &Tree{fd: tree}, nil
}

// CopyFD is the bare open_tree(2) under Copy: it needs Linux 5.2 and changes
// no mount namespace. The caller owns the descriptor.
func CopyFD(fd int, recursive bool) (int, error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC | unix.AT_EMPTY_PATH)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	return unix.OpenTree(fd, "", flags)
}

// IDMapFD shows the owners in a detached mount as the user namespace userns
// maps them. It needs Linux 5.12 and a file system that can (EINVAL); overlay
// cannot, but its layers can. EPERM if the mount is attached already.
func IDMapFD(tree, userns int, recursive bool) error {
	flags := uint(unix.AT_EMPTY_PATH)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	return unix.MountSetattr(tree, "", flags, &unix.MountAttr{
		Attr_set:  unix.MOUNT_ATTR_IDMAP,
		Userns_fd: uint64(userns),
	})
}

// Detach makes sure that a Tree is part of no mount namespace, not even of the
// staging place of one, so that its descriptor can go to another process. Like
// CopyFD it needs Linux 5.2.
func (t *Tree) Detach() (*Tree, error) {
	if t.staged == "" {
		return t, nil
	}
	fd, err := CopyFD(t.fd, false)
	if err != nil {
		return nil, err
	}
	t.Close()
	return &Tree{fd: fd}, nil
}

// SetAttr adds flags to a Tree.
func (t *Tree) SetAttr(attr Attr, recursive bool) error {
	if t.staged != "" {
		return legacySetAttr(t.staged, attr, recursive)
	}
	flags := uint(unix.AT_EMPTY_PATH)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	set, clear := attr.kernel()
	return unix.MountSetattr(t.fd, "", flags, &unix.MountAttr{Attr_set: set, Attr_clr: clear})
}

// SetPropagation changes the propagation of a Tree.
func (t *Tree) SetPropagation(p Propagation) error {
	flag, recursive, err := p.flags()
	if err != nil {
		return err
	}
	if t.staged != "" {
		if recursive {
			flag |= unix.MS_REC
		}
		return unix.Mount("", t.staged, "", uintptr(flag), "")
	}
	flags := uint(unix.AT_EMPTY_PATH)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	return unix.MountSetattr(t.fd, "", flags, &unix.MountAttr{Propagation: flag})
}

// Attach mounts the tree on the object that target, an O_PATH descriptor,
// refers to: a directory for a directory, anything else for anything else.
func (t *Tree) Attach(target int) error {
	if t.staged != "" {
		err := unix.Mount(t.staged, fdPath(target), "", unix.MS_MOVE, "")
		if err == nil {
			t.staged = ""
		}
		return err
	}
	return unix.MoveMount(t.fd, "", target, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
}

// AttachRoot mounts the tree over "/" of the mount namespace. Absolute paths
// still lead to what was there before, until pivot_root(2).
func (t *Tree) AttachRoot() error {
	if t.staged != "" {
		err := unix.Mount(t.staged, "/", "", unix.MS_MOVE, "")
		if err == nil {
			t.staged = ""
		}
		return err
	}
	return unix.MoveMount(t.fd, "", unix.AT_FDCWD, "/", unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// Change adds flags to the mount at an absolute path that nobody else can
// change, such as "/" after pivot_root.
func Change(path string, attr Attr) error {
	set, clear := attr.kernel()
	err := unix.MountSetattr(unix.AT_FDCWD, path, 0, &unix.MountAttr{Attr_set: set, Attr_clr: clear})
	if err == unix.ENOSYS || err == unix.EPERM {
		return legacySetAttr(path, attr, false)
	}
	return err
}

// newFS runs fsopen, configuration, creation and fsmount.
func newFS(fstype string, config func(fs int) error, attr Attr) (*Tree, error) {
	fs, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fs)
	if err := config(fs); err != nil {
		return nil, explain(fs, err)
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, explain(fs, err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, int(attr))
	if err != nil {
		return nil, explain(fs, err)
	}
	return &Tree{fd: fd}, nil
}

func configure(fs int, key, value string) error {
	if value == "" {
		return unix.FsconfigSetFlag(fs, key)
	}
	return unix.FsconfigSetString(fs, key, value)
}

// explain adds what the kernel says about a failed fsconfig, one line such as
// "e tmpfs: Unknown parameter 'x'".
func explain(fs int, err error) error {
	var buf [512]byte
	n, readErr := unix.Read(fs, buf[:])
	if readErr != nil || n <= 2 {
		return err
	}
	return &explained{strings.TrimSpace(string(buf[2:n])), err}
}

type explained struct {
	text string
	err  error
}

func (e *explained) Error() string { return e.err.Error() + " (" + e.text + ")" }
func (e *explained) Unwrap() error { return e.err }

func fdPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// errStage is the error when no directory for the staging place is found.
var errStage = errors.New("no staging place for mounts")
