package mount

import (
	"bytes"
	"strings"

	"golang.org/x/sys/unix"
)

// The old way: mount(2) names its target by a path, and everything but
// MS_MOVE needs several calls that look the path up again each time. So mounts
// are made and finished at a path where nobody interferes.

// stageDir is where the staging tmpfs is mounted: a directory that every
// kernel has, whose content no container needs, and which is part of procfs so
// that nothing of the host's can be mounted from below it.
const stageDir = "/proc/fs"

const (
	stagePlaceDir  = stageDir + "/d" // mountpoint for directories
	stagePlaceFile = stageDir + "/f" // mountpoint for everything else
)

// stage is the staging place; each mount is moved away before the next is made.
type stage struct{ dir int }

func (s *stage) prepare() error {
	if s.dir >= 0 {
		return nil
	}
	if err := unix.Mount("berth", stageDir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "size=64k,mode=700"); err != nil {
		return errStage
	}
	// Without this MS_MOVE out of it is EINVAL: a new mount joins the peer
	// group of its parent.
	if err := unix.Mount("", stageDir, "", unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	dir, err := unix.Open(stageDir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := unix.Mkdirat(dir, "d", 0o700); err != nil {
		unix.Close(dir)
		return err
	}
	if err := unix.Mknodat(dir, "f", unix.S_IFREG|0o600, 0); err != nil {
		unix.Close(dir)
		return err
	}
	s.dir = dir
	return nil
}

func (s *stage) close() {
	if s.dir >= 0 {
		unix.Close(s.dir)
		unix.Unmount(stageDir, unix.MNT_DETACH)
		s.dir = -1
	}
}

// finish opens the root of the mount just made at place.
func finish(place string) (*Tree, error) {
	fd, err := unix.Open(place, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		unix.Unmount(place, unix.MNT_DETACH)
		return nil, err
	}
	return &Tree{fd: fd, staged: place}, nil
}

func (b *Builder) legacyNew(fstype, source, data string, attr Attr) (*Tree, error) {
	if err := b.stage.prepare(); err != nil {
		return nil, err
	}
	if source == "" {
		source = fstype
	}
	// Read-only is for this mount, not for the file system behind it, which
	// may be another's too: the host's sysfs is.
	if err := unix.Mount(source, stagePlaceDir, fstype, (attr &^ ReadOnly).legacy(), data); err != nil {
		return nil, err
	}
	tree, err := finish(stagePlaceDir)
	if err == nil && attr&ReadOnly != 0 {
		err = tree.SetAttr(attr, false)
	}
	return tree, err
}

func (b *Builder) legacyCopy(fd int, recursive bool) (*Tree, error) {
	if err := b.stage.prepare(); err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	place := stagePlaceFile
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		place = stagePlaceDir
	}
	flags := uintptr(unix.MS_BIND)
	if recursive {
		flags |= unix.MS_REC
	}
	if err := unix.Mount(fdPath(fd), place, "", flags, ""); err != nil {
		return nil, err
	}
	// A copy of a shared mount is shared, and could not be moved.
	if err := unix.Mount("", place, "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		unix.Unmount(place, unix.MNT_DETACH)
		return nil, err
	}
	return finish(place)
}

// legacySetAttr adds flags to the mount at path and, if recursive, to those
// below it.
func legacySetAttr(path string, attr Attr, recursive bool) error {
	if err := remount(path, attr); err != nil || !recursive {
		return err
	}
	info, err := readFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for _, below := range mountsBelow(info, path) {
		if err := remount(below, attr); err != nil {
			return err
		}
	}
	return nil
}

// remount adds flags and keeps those the mount has: MS_REMOUNT|MS_BIND sets
// them all, and inside a user namespace the kernel forbids to clear any.
func remount(path string, attr Attr) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		return err
	}
	var have Attr
	// ST_… of statfs(2) have the values of MS_… for the flags here.
	for _, n := range attrNames {
		if uintptr(fs.Flags)&n.legacy != 0 {
			have |= n.attr
		}
	}
	return unix.Mount("", path, "", unix.MS_REMOUNT|unix.MS_BIND|(attr|have).legacy(), "")
}

// mountsBelow lists the mountpoints below path in the text of a mountinfo file
// (proc_pid_mountinfo(5)).
func mountsBelow(info []byte, path string) []string {
	var found []string
	for line := range bytes.Lines(info) {
		fields := bytes.Fields(line)
		if len(fields) < 5 {
			continue
		}
		point := unescape(string(fields[4]))
		if strings.HasPrefix(point, strings.TrimSuffix(path, "/")+"/") {
			found = append(found, point)
		}
	}
	return found
}

// unescape undoes the octal escapes of mountinfo: \040 is a space.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var out []byte
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			out = append(out, (s[i+1]-'0')<<6|(s[i+2]-'0')<<3|(s[i+3]-'0'))
			i += 3
			continue
		}
		out = append(out, s[i])
	}
	return string(out)
}

func readFile(path string) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var text []byte
	buf := make([]byte, 32<<10)
	for {
		n, err := unix.Read(fd, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return text, err
		}
		text = append(text, buf[:n]...)
	}
}
