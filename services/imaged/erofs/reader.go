package erofs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

// ErrDamaged is in the chain of errors that blame an image.
var ErrDamaged = errors.New("EROFS image is damaged")

// Reader reads an image without mounting it. It may be used by several
// goroutines, and takes no harm from an image that is damaged.
type Reader struct {
	r      io.ReaderAt
	size   int64
	super  super
	inodes int64 // where they begin
}

// Inode is a file of an image.
type Inode struct {
	Nid      uint64
	Mode     uint32 // as of stat(2)
	UID, GID uint32
	Sec      int64
	Nsec     uint32
	Links    uint32
	Dev      uint64 // of devices, as of stat(2)
	Size     int64

	inline bool
	block  uint32
	xattrs int64 // bytes behind the inode
}

// Dirent is an entry of a directory.
type Dirent struct {
	Name string
	Nid  uint64
	Mode uint32 // only the kind, S_IF…
}

// NewReader opens an image of size bytes that a Writer has made.
func NewReader(r io.ReaderAt, size int64) (*Reader, error) {
	block := make([]byte, 128)
	if _, err := r.ReadAt(block, superOffset); err != nil {
		return nil, damaged("super block", err)
	}
	le := binary.LittleEndian
	if le.Uint32(block) != superMagic {
		return nil, fmt.Errorf("%w: it does not begin like one", ErrDamaged)
	}
	b := blocks(block[12])
	if b > 16 || b.size() < MinBlock || b.size() > MaxBlock || le.Uint32(block[80:]) != 0 {
		return nil, fmt.Errorf("%w: it has features that this engine does not use", ErrDamaged)
	}
	block = make([]byte, superSize(b))
	if _, err := r.ReadAt(block, superOffset); err != nil {
		return nil, damaged("super block", err)
	}
	sum := le.Uint32(block[4:])
	le.PutUint32(block[4:], 0)
	if sum != checksum(block) {
		return nil, fmt.Errorf("%w: checksum of the super block", ErrDamaged)
	}
	s := super{bits: b, root: le.Uint16(block[14:]), blocks: le.Uint32(block[36:]), meta: le.Uint32(block[40:]), inodes: le.Uint64(block[16:])}
	copy(s.uuid[:], block[48:])
	if int64(s.blocks)<<b > size || s.meta > s.blocks {
		return nil, fmt.Errorf("%w: it is too short", ErrDamaged)
	}
	return &Reader{r: r, size: int64(s.blocks) << b, super: s, inodes: int64(s.meta) << b}, nil
}

func damaged(what string, err error) error {
	if err == nil || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: %s", ErrDamaged, what)
	}
	return fmt.Errorf("read %s: %w", what, err)
}

// read reads n bytes at off.
func (r *Reader) read(what string, off, n int64) ([]byte, error) {
	if off < 0 || n < 0 || off > r.size || n > r.size-off {
		return nil, damaged(what+" outside of the image", nil)
	}
	b := make([]byte, n)
	if _, err := r.r.ReadAt(b, off); err != nil {
		return nil, damaged(what, err)
	}
	return b, nil
}

// Root is the number of the root directory.
func (r *Reader) Root() uint64 { return uint64(r.super.root) }

func (r *Reader) offset(nid uint64) int64 {
	if nid > uint64(r.size)/slotSize {
		return -1
	}
	return r.inodes + int64(nid)*slotSize
}

// Inode reads the inode nid.
func (r *Reader) Inode(nid uint64) (Inode, error) {
	b, err := r.read("inode", r.offset(nid), inodeSize)
	if err != nil {
		return Inode{}, err
	}
	le := binary.LittleEndian
	n := Inode{
		Nid: nid, Mode: uint32(le.Uint16(b[4:])), Size: int64(le.Uint64(b[8:])), block: le.Uint32(b[16:]),
		UID: le.Uint32(b[24:]), GID: le.Uint32(b[28:]), Sec: int64(le.Uint64(b[32:])), Nsec: le.Uint32(b[40:]), Links: le.Uint32(b[44:]),
	}
	switch le.Uint16(b) {
	case formatPlain:
	case formatInline:
		n.inline = true
	default:
		return Inode{}, damaged("layout of an inode", nil)
	}
	if count := int64(le.Uint16(b[2:])); count > 0 {
		n.xattrs = xattrHeader + (count-1)*4
	}
	switch n.Mode & unix.S_IFMT {
	case unix.S_IFCHR, unix.S_IFBLK:
		n.Dev = unix.Mkdev(fromKernelDev(n.block))
	}
	if n.Size < 0 || n.Size > r.size && n.Mode&unix.S_IFMT != unix.S_IFREG {
		return Inode{}, damaged("size of a file", nil)
	}
	return n, nil
}

// Content is what the regular file n contains.
func (r *Reader) Content(n Inode) io.Reader {
	off := int64(n.block) << r.super.bits
	if n.inline || n.Size > r.size-off {
		return failing{damaged("content outside of the image", nil)}
	}
	return io.NewSectionReader(r.r, off, n.Size)
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// Target is where the symbolic link n leads.
func (r *Reader) Target(n Inode) (string, error) {
	off := int64(n.block) << r.super.bits
	if n.inline {
		off = r.offset(n.Nid) + inodeSize + n.xattrs
	}
	if n.Size > unix.PathMax {
		return "", damaged("target of a link", nil)
	}
	b, err := r.read("target of a link", off, n.Size)
	return string(b), err
}

// Entries lists the directory n, sorted by name, without "." and "..".
func (r *Reader) Entries(n Inode) (all []Dirent, err error) {
	err = r.eachBlock(n, func(b []byte) (bool, error) {
		entries, err := parseDirectory(b)
		for _, e := range entries {
			if e.Name != "." && e.Name != ".." {
				all = append(all, e)
			}
		}
		return true, err
	})
	return all, err
}

// Lookup finds name in the directory n; false if there is none.
func (r *Reader) Lookup(n Inode, name string) (found Dirent, ok bool, err error) {
	err = r.eachBlock(n, func(b []byte) (bool, error) {
		entries, err := parseDirectory(b)
		for _, e := range entries {
			if e.Name == name {
				found, ok = e, true
			}
		}
		return !ok, err
	})
	return found, ok, err
}

// eachBlock calls f for the blocks of the directory n until that wants no more.
func (r *Reader) eachBlock(n Inode, f func(b []byte) (more bool, err error)) error {
	if n.Mode&unix.S_IFMT != unix.S_IFDIR {
		return unix.ENOTDIR
	}
	blockSize := r.super.bits.size()
	if n.inline || n.Size%blockSize != 0 {
		return damaged("directory", nil)
	}
	// Many blocks at once: a directory of thousands is common.
	atOnce := max(64*MinBlock, blockSize)
	for at := int64(0); at < n.Size; at += atOnce {
		b, err := r.read("directory", int64(n.block)<<r.super.bits+at, min(atOnce, n.Size-at))
		if err != nil {
			return err
		}
		for ; len(b) > 0; b = b[blockSize:] {
			if more, err := f(b[:blockSize]); err != nil || !more {
				return err
			}
		}
	}
	return nil
}

func parseDirectory(b []byte) ([]Dirent, error) {
	le := binary.LittleEndian
	table := int(le.Uint16(b[8:]))
	if table == 0 || table%direntSize != 0 || table > len(b) {
		return nil, damaged("directory", nil)
	}
	all := make([]Dirent, 0, table/direntSize)
	for at := 0; at < table; at += direntSize {
		start, end := int(le.Uint16(b[at+8:])), len(b)
		if at+direntSize < table {
			end = int(le.Uint16(b[at+direntSize+8:]))
		}
		if start < table || start > end || end > len(b) {
			return nil, damaged("directory", nil)
		}
		name := b[start:end]
		if at+direntSize == table { // the last name ends with the block, or before
			for i, c := range name {
				if c == 0 {
					name = name[:i]
					break
				}
			}
		}
		kind := uint32(0)
		for mode, t := range fileTypes {
			if t == b[at+10] && t != 0 {
				kind = uint32(mode) << 12
			}
		}
		if len(name) == 0 || kind == 0 {
			return nil, damaged("directory", nil)
		}
		all = append(all, Dirent{Name: string(name), Nid: le.Uint64(b[at:]), Mode: kind})
	}
	return all, nil
}

// Xattrs are the extended attributes of n.
func (r *Reader) Xattrs(n Inode) (all []Xattr, err error) {
	if n.xattrs == 0 {
		return nil, nil
	}
	b, err := r.read("extended attributes", r.offset(n.Nid)+inodeSize, n.xattrs)
	if err != nil {
		return nil, err
	}
	for b = b[xattrHeader:]; len(b) >= xattrEntry; {
		length, index, value := int(b[0]), b[1], int(binary.LittleEndian.Uint16(b[2:]))
		size := int(roundUp(int64(xattrEntry+length+value), 4))
		if size > len(b) {
			return nil, damaged("extended attributes", nil)
		}
		prefix := ""
		for _, p := range xattrPrefixes {
			if p.index == index {
				prefix = p.prefix
			}
		}
		if prefix == "" {
			return nil, damaged("extended attributes", nil)
		}
		rest := b[xattrEntry:]
		all = append(all, Xattr{prefix + string(rest[:length]), string(rest[length : length+value])})
		b = b[size:]
	}
	return all, nil
}
