package mount

import (
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// MappedOverlay makes an overlay on layers that show their owners as userns maps
// them (Linux 5.19, on file systems that can). It attaches copies of the layers
// in the staging place of the mount namespace, which must be the caller's own.
//
// The result is detached, for use in another mount namespace. Upper and work
// directory have to be on one mount, so a copy of the directory they have in common
// stands for both.
func (b *Builder) MappedOverlay(r *Root, userns int) (*Tree, error) {
	if err := b.stage.prepare(); err != nil {
		return nil, err
	}
	staged := Root{Upper: r.Upper, Work: r.Work, Options: r.Options, Attr: r.Attr}
	for i, dir := range r.Lower {
		place, err := b.stageMapped("l"+strconv.Itoa(i), dir, userns)
		if err != nil {
			return nil, err
		}
		staged.Lower = append(staged.Lower, place)
	}
	if r.Upper == "" && len(r.Lower) == 1 {
		return mappedDir(r.Lower[0], userns, r.Attr|ReadOnly)
	}
	return b.detachedOverlay(&staged, userns)
}

// detachedOverlay makes the overlay of what was staged, for use in another mount namespace. With a user namespace, or
// negative, the upper directory shows its owners as that maps them, too.
func (b *Builder) detachedOverlay(staged *Root, userns int) (*Tree, error) {
	if staged.Upper != "" && userns >= 0 {
		if err := b.stageUpper(staged, userns); err != nil {
			return nil, err
		}
	}
	tree, err := b.Overlay(staged)
	if err != nil {
		return nil, err
	}
	return tree.Detach()
}

// stageUpper puts a mapped copy of the directory that upper and work directory have
// in common in the place of both.
func (b *Builder) stageUpper(r *Root, userns int) error {
	base := commonDir([]string{r.Upper, r.Work})
	place, err := b.stageMapped("u", base, userns)
	if err != nil {
		return err
	}
	r.Upper = place + strings.TrimPrefix(r.Upper, strings.TrimSuffix(base, "/"))
	r.Work = place + strings.TrimPrefix(r.Work, strings.TrimSuffix(base, "/"))
	return nil
}

// stageMapped attaches a mapped copy of dir in the staging place.
func (b *Builder) stageMapped(name, dir string, userns int) (string, error) {
	tree, err := mappedDir(dir, userns, 0)
	if err != nil {
		return "", err
	}
	defer tree.Close()
	return b.attachStaged(name, tree)
}

// attachStaged attaches a mount in the staging place and gives its path.
func (b *Builder) attachStaged(name string, tree *Tree) (string, error) {
	if err := unix.Mkdirat(b.stage.dir, name, 0o700); err != nil {
		return "", err
	}
	target, err := unix.Openat(b.stage.dir, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(target)
	return stageDir + "/" + name, tree.Attach(target)
}

func mappedDir(dir string, userns int, attr Attr) (*Tree, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	copied, err := CopyFD(fd, false)
	if err != nil {
		return nil, err
	}
	tree := &Tree{fd: copied}
	if err := IDMapFD(copied, userns, false); err != nil {
		tree.Close()
		return nil, err
	}
	if attr != 0 {
		if err := tree.SetAttr(attr, false); err != nil {
			tree.Close()
			return nil, err
		}
	}
	return tree, nil
}
