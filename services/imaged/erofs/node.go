package erofs

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Node is a file of any kind. It may be in several directories, or several
// times in one, under different names: hard links.
type Node struct {
	Mode     uint32 // as of stat(2), kind included
	UID, GID uint32
	Nsec     uint32
	Sec      int64   // modified so many seconds after the epoch
	Dev      uint64  // of devices, as of stat(2)
	Target   string  // of symbolic links
	Xattrs   []Xattr // by name
	Content  Extent  // of regular files

	children map[string]*Node // of directories
	sorted   []child          // the same, once the tree is complete
	links    uint32
	nid      uint64
}

// Xattr is an extended attribute of a file.
type Xattr struct{ Name, Value string }

// Extent is content that a Writer has written.
type Extent struct {
	block uint32
	Size  int64
}

type child struct {
	name string
	node *Node
}

// NewDir is a directory without entries.
func NewDir(perm uint32) *Node {
	return &Node{Mode: unix.S_IFDIR | perm, children: map[string]*Node{}}
}

// IsDir reports whether n is a directory.
func (n *Node) IsDir() bool { return n.children != nil }

// Child is what the directory n has as name; nil if nothing.
func (n *Node) Child(name string) *Node { return n.children[name] }

// Link makes c an entry of the directory n, in place of what has the name.
func (n *Node) Link(name string, c *Node) { n.children[name] = c }

// SetXattr sets an extended attribute.
func (n *Node) SetXattr(name, value string) {
	i, found := slices.BinarySearchFunc(n.Xattrs, name, func(x Xattr, name string) int { return strings.Compare(x.Name, name) })
	if found {
		n.Xattrs[i].Value = value
		return
	}
	n.Xattrs = slices.Insert(n.Xattrs, i, Xattr{name, value})
}

// sort turns the map of children into a list, "." and ".." included.
func (n *Node) sort(parent *Node) {
	n.sorted = make([]child, 0, len(n.children)+2)
	n.sorted = append(n.sorted, child{".", n}, child{"..", parent})
	for name, c := range n.children {
		n.sorted = append(n.sorted, child{name, c})
	}
	n.children = nil
	slices.SortFunc(n.sorted, func(a, b child) int { return strings.Compare(a.name, b.name) })
}

// Limits of the format.
const (
	MaxXattrValue = 1<<16 - 1
	maxXattrs     = 1 << 18 // bytes of all attributes of a file
)

// ErrXattrs is the error for extended attributes that have no room in an inode.
var ErrXattrs = errors.New("extended attributes are too large for EROFS")

// xattrsSize is what the attributes of n take behind its inode.
func (n *Node) xattrsSize() (int64, error) {
	if len(n.Xattrs) == 0 {
		return 0, nil
	}
	size := int64(xattrHeader)
	for _, x := range n.Xattrs {
		_, name, err := splitXattr(x.Name)
		if err != nil {
			return 0, err
		}
		if len(x.Value) > MaxXattrValue {
			return 0, ErrXattrs
		}
		size += roundUp(int64(xattrEntry+len(name)+len(x.Value)), 4)
	}
	if size > maxXattrs {
		return 0, ErrXattrs
	}
	return size, nil
}

// splitXattr gives the number of an attribute's prefix, and the rest of its name.
func splitXattr(name string) (index byte, rest string, err error) {
	for _, p := range xattrPrefixes {
		if rest, ok := strings.CutPrefix(name, p.prefix); ok {
			return p.index, rest, nil
		}
	}
	return 0, "", fmt.Errorf("extended attribute %q is of no kind that EROFS knows", name)
}

// inline reports whether the target of a symbolic link goes into its inode's block.
func (n *Node) inline(b blocks) bool {
	return n.Target != "" && int64(len(n.Target)) <= b.size()-inodeSize
}
