package feature

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"berth/libcontainer/mount"
)

func filesystems() []probe {
	return []probe{{
		Feature{Name: "overlay", Since: "3.18 (3.10 of CentOS 7)",
			Lost: "Each container gets a full copy of its image: slow, and large.",
			Do:   "Load the module: modprobe overlay. On XFS the data directory needs ftype=1."},
		func(h *host) (State, string) { return tryOverlay(h, false) },
	}, {
		Feature{Name: "overlay userxattr", Since: "5.11",
			Lost: "Each container gets a full copy of its image: slow, and large.",
			Do:   "Run Linux 5.11 or later."},
		func(h *host) (State, string) { return tryOverlay(h, true) },
	}, {
		Feature{Name: "openat2", Since: "5.6",
			Lost: "Paths inside containers are walked name by name, which is slower.",
			Do:   "Run Linux 5.6 or later."},
		func(*host) (State, string) {
			fd, err := unix.Openat2(unix.AT_FDCWD, "/", &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT})
			if err == nil {
				unix.Close(fd)
			}
			return verdict(os.NewSyscallError("openat2", err))
		},
	}, {
		Feature{Name: "new mount API", Since: "5.2",
			Lost: "Mounts are made in place with mount(2), step by step, inside the container's namespace.",
			Do:   "Run Linux 5.2 or later."},
		func(*host) (State, string) {
			fd, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
			if err == nil {
				unix.Close(fd)
			}
			return verdict(os.NewSyscallError("fsopen", err))
		},
	}, {
		Feature{Name: "idmapped mounts", Since: "5.12",
			Lost: "Containers run in the host's user namespace, unless their files are copied with other owners.",
			Do:   "Run Linux 5.12 or later, with the data directory on ext4, XFS (5.12), btrfs (5.15) or tmpfs (6.3)."},
		tryIdmap,
	}, {
		Feature{Name: "erofs", Since: "5.4 (without loop devices 6.15)",
			Lost: "The graph driver erofs cannot be used; overlay, the default, does not need it.",
			Do:   "Load the module: modprobe erofs; before Linux 6.15 also: modprobe loop."},
		func(h *host) (State, string) { return tryErofs(h) },
	}, {
		Feature{Name: "fuse", Since: "2.6.14",
			Lost: "File systems in user space cannot be used for volumes, nor in containers that ask for /dev/fuse.",
			Do:   "Load the module: modprobe fuse."},
		func(*host) (State, string) {
			fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
			if err == nil {
				unix.Close(fd)
			}
			return verdict(err)
		},
	}}
}

// tryFilesystem asks for a type by name, which loads its module; kernels before 5.2 have only their list of
// types already loaded to offer.
func tryFilesystem(name string) (State, string) {
	fd, err := unix.Fsopen(name, unix.FSOPEN_CLOEXEC)
	if err == nil {
		unix.Close(fd)
		return Yes, ""
	}
	if err == unix.ENOSYS || err == unix.EPERM {
		list, _ := os.ReadFile("/proc/filesystems")
		if strings.Contains(string(list), "\t"+name+"\n") {
			return Yes, ""
		}
		return Unknown, "not in /proc/filesystems; the module may not be loaded yet"
	}
	return verdict(os.NewSyscallError("fsopen "+name, err))
}

// tryErofs looks for the file system, and for a way to mount files: by themselves,
// or on loop devices.
func tryErofs(h *host) (State, string) {
	if state, why := tryFilesystem("erofs"); state != Yes {
		return state, why
	}
	if !h.root {
		return Unknown, asRoot(unix.EPERM)
	}
	if !mount.StacksDetached() {
		return tryLoop("overlay stacks no detached mounts")
	}
	file, err := os.CreateTemp("", "berth-check-")
	if err != nil {
		return Unknown, err.Error()
	}
	defer os.Remove(file.Name())
	defer file.Close()
	if err := file.Truncate(8 << 10); err != nil {
		return Unknown, err.Error()
	}
	// No file system at all: a kernel that could mount a file says so.
	if _, err := mount.Image(int(file.Fd())); errors.Is(err, unix.ENOTBLK) {
		return tryLoop("the kernel mounts no files")
	}
	return Yes, ""
}

// tryLoop asks for a loop device, which loads the module.
func tryLoop(why string) (State, string) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return No, why + ", and there are no loop devices: " + err.Error()
	}
	control.Close()
	return Yes, "on loop devices: " + why
}

// tryOverlay sets up an overlay in the data directory. What works elsewhere may not work there.
func tryOverlay(h *host, userxattr bool) (State, string) {
	if !h.root && userxattr {
		return Unknown, asRoot(unix.EPERM)
	}
	if !h.root {
		return tryFilesystem("overlay")
	}
	dir, err := os.MkdirTemp(h.dir, "check-")
	if err != nil {
		return Unknown, err.Error()
	}
	defer os.RemoveAll(dir)
	options := [][2]string{}
	for _, sub := range []string{"lower", "upper", "work"} {
		path := filepath.Join(dir, sub)
		if err := os.Mkdir(path, 0o700); err != nil {
			return Unknown, err.Error()
		}
		options = append(options, [2]string{sub + "dir", path})
	}
	err = overlayDetached(options, userxattr)
	if err == unix.ENOSYS {
		err = overlayMounted(options, userxattr)
	}
	if err != nil {
		return verdict(fmt.Errorf("overlay in %s: %w", h.dir, err))
	}
	return Yes, ""
}

// overlayDetached makes a superblock and lets it go.
func overlayDetached(options [][2]string, userxattr bool) error {
	fd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for _, o := range options {
		if err := unix.FsconfigSetString(fd, o[0], o[1]); err != nil {
			return err
		}
	}
	if userxattr {
		if err := unix.FsconfigSetFlag(fd, "userxattr"); err != nil {
			return err
		}
	}
	return unix.FsconfigCreate(fd)
}

// overlayMounted is for kernels before 5.2: the mount is made in a mount namespace that dies with its thread.
func overlayMounted(options [][2]string, userxattr bool) error {
	return elsewhere(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return err
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return err
		}
		var data []string
		for _, o := range options {
			data = append(data, o[0]+"="+o[1])
		}
		if userxattr {
			data = append(data, "userxattr")
		}
		target := options[0][1]
		if err := unix.Mount("overlay", target, "overlay", 0, strings.Join(data, ",")); err != nil {
			return err
		}
		return unix.Unmount(target, unix.MNT_DETACH)
	})
}

// tryIdmap makes a detached, idmapped copy of the data directory's mount.
func tryIdmap(h *host) (State, string) {
	if !h.root {
		return known(unix.MountSetattr(-1, "", unix.AT_EMPTY_PATH, &unix.MountAttr{}))
	}
	tree, err := unix.OpenTree(unix.AT_FDCWD, h.dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return verdict(os.NewSyscallError("open_tree", err))
	}
	defer unix.Close(tree)
	mapping := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 100_000, Size: 65_536}}
	err = embryo(syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER, UidMappings: mapping, GidMappings: mapping}, func(pid int) error {
		userns, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", pid))
		if err != nil {
			return err
		}
		defer userns.Close()
		attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(userns.Fd())}
		return unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attr)
	})
	if err != nil {
		return verdict(fmt.Errorf("idmap %s: %w", h.dir, err))
	}
	return Yes, ""
}
