package erofs

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/bits"
	"os"

	"golang.org/x/sys/unix"
)

// bufferSize is how much is written at once, and holeSize how many zeros make a
// hole.
const (
	bufferSize = 1 << 20
	holeSize   = 128 << 10
)

// ErrTooLarge is the error for an image beyond what block numbers can address.
var ErrTooLarge = errors.New("too large for an EROFS image")

// Writer writes an image into a file. It is for one goroutine.
type Writer struct {
	file *os.File
	bits blocks
	buf  []byte // not yet written, from off on; never full
	off  int64
	sum  hash.Hash // of directories and inodes; nil before
}

// NewWriter begins an image in the empty file f, with blocks of blockSize bytes.
func NewWriter(f *os.File, blockSize int) (*Writer, error) {
	if blockSize < MinBlock || blockSize > MaxBlock || blockSize&(blockSize-1) != 0 {
		return nil, fmt.Errorf("an EROFS image cannot have blocks of %d bytes", blockSize)
	}
	b := blocks(bits.TrailingZeros(uint(blockSize)))
	return &Writer{file: f, bits: b, buf: make([]byte, 0, bufferSize), off: max(dataOffset, b.size())}, nil
}

var zeros [holeSize]byte

func (w *Writer) pos() int64 { return w.off + int64(len(w.buf)) }

// Content copies the next size bytes of r to the image. An error of r is
// returned as it is, io.ErrUnexpectedEOF if there are not as many.
func (w *Writer) Content(r io.Reader, size int64) (Extent, error) {
	if size == 0 {
		return Extent{}, nil
	}
	start := w.pos() >> w.bits
	if start+w.bits.of(size) >= 1<<32-1 {
		return Extent{}, ErrTooLarge
	}
	for left := size; left > 0; {
		n, err := w.copy(r, min(left, holeSize))
		left -= n
		if err != nil {
			return Extent{}, err
		}
	}
	return Extent{block: uint32(start), Size: size}, w.pad()
}

// copy copies n bytes, at most holeSize, or makes a hole of them.
func (w *Writer) copy(r io.Reader, n int64) (int64, error) {
	if int64(cap(w.buf)-len(w.buf)) < n {
		if err := w.flush(); err != nil {
			return 0, err
		}
	}
	piece := w.buf[len(w.buf) : len(w.buf)+int(n)]
	if _, err := io.ReadFull(r, piece); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return 0, err
	}
	if n == holeSize && bytes.Equal(piece, zeros[:]) {
		if err := w.flush(); err != nil {
			return 0, err
		}
		w.off += n
		return n, nil
	}
	w.buf = w.buf[:len(w.buf)+int(n)]
	return n, nil
}

// write appends p, which is not a file's content.
func (w *Writer) write(p []byte) error {
	if w.sum != nil {
		w.sum.Write(p)
	}
	for len(p) > 0 {
		if len(w.buf) == cap(w.buf) {
			if err := w.flush(); err != nil {
				return err
			}
		}
		n := copy(w.buf[len(w.buf):cap(w.buf)], p)
		w.buf = w.buf[:len(w.buf)+n]
		p = p[n:]
	}
	return nil
}

// pad fills the block.
func (w *Writer) pad() error {
	if rest := w.pos() & (w.bits.size() - 1); rest != 0 {
		return w.write(zeros[:w.bits.size()-rest])
	}
	return nil
}

func (w *Writer) flush() error {
	if _, err := w.file.WriteAt(w.buf, w.off); err != nil {
		return err
	}
	w.off += int64(len(w.buf))
	w.buf = w.buf[:0]
	return nil
}

// Finish completes the image, whose root is the directory root. The nodes are
// of no use afterwards. It does not sync the file.
func (w *Writer) Finish(root *Node) error {
	w.sum = sha256.New()
	all := collect(root)
	if err := number(all, w.bits); err != nil {
		return err
	}
	for _, n := range all {
		if err := w.body(n); err != nil {
			return err
		}
	}
	s := super{bits: w.bits, meta: uint32(w.pos() >> w.bits), root: uint16(root.nid), inodes: uint64(len(all))}
	if err := w.inodes(all); err != nil {
		return err
	}
	if err := errors.Join(w.pad(), w.flush()); err != nil {
		return err
	}
	if w.off>>w.bits >= 1<<32-1 {
		return ErrTooLarge
	}
	s.blocks = uint32(w.off >> w.bits)
	copy(s.uuid[:], w.sum.Sum(nil))
	_, err := w.file.WriteAt(s.encode(), superOffset)
	return err
}

// collect lists each node once, breadth first, and counts names.
func collect(root *Node) []*Node {
	all := []*Node{root}
	parent := map[*Node]*Node{root: root}
	for i := 0; i < len(all); i++ {
		n := all[i]
		if !n.IsDir() {
			continue
		}
		n.sort(parent[n])
		delete(parent, n)
		for _, c := range n.sorted {
			c.node.links++
			if c.name == "." || c.name == ".." || c.node.links > 1 && !c.node.IsDir() {
				continue
			}
			if c.node.IsDir() {
				parent[c.node] = n
			}
			all = append(all, c.node)
		}
	}
	return all
}

// number gives each node its place among the inodes.
func number(all []*Node, b blocks) error {
	blockSize := b.size()
	at := int64(firstNid * slotSize)
	for _, n := range all {
		xattrs, err := n.xattrsSize()
		if err != nil {
			return err
		}
		size := inodeSize + xattrs
		if at/blockSize != (at+inodeSize-1)/blockSize { // an inode is in one block
			at = roundUp(at, blockSize)
		}
		if n.inline(b) {
			// So is what is inline, and nothing else is behind a link's inode.
			size += int64(len(n.Target))
			if at/blockSize != (at+size-1)/blockSize {
				at = roundUp(at, blockSize)
			}
		}
		n.nid = uint64(at / slotSize)
		at = roundUp(at+size, slotSize)
	}
	return nil
}

// body writes what is not content and has blocks of its own.
func (w *Writer) body(n *Node) error {
	switch {
	case n.sorted != nil:
		n.Content.block = uint32(w.pos() >> w.bits)
		start := w.pos()
		if err := w.directory(n.sorted); err != nil {
			return err
		}
		n.Content.Size = w.pos() - start
	case n.Target != "":
		n.Content.Size = int64(len(n.Target))
		if n.inline(w.bits) {
			return nil
		}
		n.Content.block = uint32(w.pos() >> w.bits)
		if err := w.write([]byte(n.Target)); err != nil {
			return err
		}
	}
	return w.pad()
}

// directory writes entries in blocks of their own: in each, a table of fixed
// records comes first and then the names.
func (w *Writer) directory(entries []child) error {
	block := make([]byte, w.bits.size())
	for len(entries) > 0 {
		count, room := 0, len(block)
		for _, e := range entries {
			if room -= direntSize + len(e.name); room < 0 {
				break
			}
			count++
		}
		clear(block)
		name := count * direntSize
		for i, e := range entries[:count] {
			record := block[i*direntSize:]
			binary.LittleEndian.PutUint64(record, e.node.nid)
			binary.LittleEndian.PutUint16(record[8:], uint16(name))
			record[10] = fileType(e.node.Mode)
			name += copy(block[name:], e.name)
		}
		if err := w.write(block); err != nil {
			return err
		}
		entries = entries[count:]
	}
	return nil
}

func (w *Writer) inodes(all []*Node) error {
	start := w.pos()
	buf := make([]byte, 0, 1024)
	for _, n := range all {
		if gap := start + int64(n.nid*slotSize) - w.pos(); gap > 0 {
			if err := w.write(zeros[:gap]); err != nil {
				return err
			}
		}
		if err := w.write(n.encode(buf, w.bits)); err != nil {
			return err
		}
	}
	return nil
}

// encode gives the inode, extended attributes and inline target, in buf if it
// is large enough.
func (n *Node) encode(buf []byte, bits blocks) []byte {
	b := append(buf, make([]byte, inodeSize)...)
	le := binary.LittleEndian
	format, pointer := uint16(formatPlain), n.Content.block
	switch n.Mode & unix.S_IFMT {
	case unix.S_IFCHR, unix.S_IFBLK:
		pointer = kernelDev(unix.Major(n.Dev), unix.Minor(n.Dev))
	case unix.S_IFLNK:
		if n.inline(bits) {
			format = formatInline
		}
	}
	xattrs, _ := n.xattrsSize() // number has seen to errors
	le.PutUint16(b[0:], format)
	if xattrs > 0 {
		le.PutUint16(b[2:], uint16(1+(xattrs-xattrHeader)/4))
	}
	le.PutUint16(b[4:], uint16(n.Mode))
	le.PutUint64(b[8:], uint64(n.Content.Size))
	le.PutUint32(b[16:], pointer)
	le.PutUint32(b[20:], uint32(n.nid))
	le.PutUint32(b[24:], n.UID)
	le.PutUint32(b[28:], n.GID)
	le.PutUint64(b[32:], uint64(n.Sec))
	le.PutUint32(b[40:], n.Nsec)
	le.PutUint32(b[44:], n.links)
	if xattrs > 0 {
		b = append(b, make([]byte, xattrHeader)...)
	}
	for _, x := range n.Xattrs {
		index, name, _ := splitXattr(x.Name)
		b = append(b, byte(len(name)), index, 0, 0)
		le.PutUint16(b[len(b)-2:], uint16(len(x.Value)))
		b = append(append(b, name...), x.Value...)
		b = append(b, zeros[:roundUp(int64(len(b)), 4)-int64(len(b))]...)
	}
	if format == formatInline {
		b = append(b, n.Target...)
	}
	return b
}
