// Package erofs writes and reads file systems of the kind EROFS, one file each,
// without compression: a tree of files that costs the host one inode.
//
// A [Writer] takes the content of files as it comes, in one pass and straight to
// its place, and everything else at the end, so that an archive can be turned
// into a file system while it is read. What it holds in memory meanwhile is a
// [Node] for each file. The same calls give the same bytes.
//
//	0       nothing
//	1024    super block
//	4096    content of files, each from a new block on
//	…       directories, and the long targets of symbolic links
//	…       inodes, with extended attributes and short link targets, by nid
//
// Blocks have 512 bytes, the least that there is, where the kernel takes them
// (Linux 6.4): most files of a system are small, and with pages for blocks a third
// of an image is padding. Older kernels want blocks of a page. What else is used of
// the format is in every kernel that has it (5.4): inodes of 64 bytes, data that is
// contiguous or, of short links, inline, and attributes with the prefixes of old. Holes are no matter of this format but of the file it is in, which
// has holes where a file's content is zeros for long: the data of a sparse file
// takes no room on the disk, and its readers need no map of it.
//
// The kernel mounts such a file without a loop device (Linux 6.12), or on one. Not for:
// images that others made; a [Reader] knows the layout above and refuses the
// rest. The format is described in the kernel's Documentation/filesystems/erofs.rst
// and fs/erofs/erofs_fs.h.
package erofs

import (
	"encoding/binary"
	"hash/crc32"
)

// MinBlock and MaxBlock are the sizes of blocks, powers of two, that images here have.
const (
	MinBlock = 512
	MaxBlock = 64 << 10
)

// blocks is a size of blocks, as the number of its bits.
type blocks byte

func (b blocks) size() int64 { return 1 << b }

// of is how many blocks n bytes take.
func (b blocks) of(n int64) int64 { return (n + b.size() - 1) >> b }

const (
	superOffset = 1024
	superMagic  = 0xE0F5E1E2
	dataOffset  = 4096 // or the second block

	featureChecksum = 0x1 // EROFS_FEATURE_COMPAT_SB_CHKSUM
	featureMtime    = 0x2 // EROFS_FEATURE_COMPAT_MTIME

	slotSize  = 32 // nids count these
	firstNid  = 2  // numbers below are not used for files: 0 is no inode number to readdir(3)
	inodeSize = 64

	// i_format: bit 0, an inode of 64 bytes; from bit 1, the layout of its data.
	formatPlain  = 1
	formatInline = 1 | 2<<1

	direntSize = 12

	xattrHeader = 12 // erofs_xattr_ibody_header
	xattrEntry  = 4  // erofs_xattr_entry, before name and value
)

// xattrPrefixes are the beginnings of names that the format has numbers for.
var xattrPrefixes = []struct {
	index  byte
	prefix string
}{{1, "user."}, {4, "trusted."}, {6, "security."}}

// fileTypes are EROFS_FT_…, by the upper four bits of the mode.
var fileTypes = [16]byte{1: 5, 2: 3, 4: 2, 6: 4, 8: 1, 10: 7, 12: 6}

func fileType(mode uint32) byte { return fileTypes[mode>>12&0xF] }

// super is the part of the super block that differs between images.
type super struct {
	bits   blocks
	blocks uint32
	meta   uint32 // block where nids begin
	root   uint16 // nid
	inodes uint64
	uuid   [16]byte
}

// superSize is how much belongs to the super block of an image with such blocks,
// from superOffset on: the rest of its block.
func superSize(b blocks) int64 {
	if b.size() > superOffset {
		return b.size() - superOffset
	}
	return b.size()
}

// encode gives what begins at superOffset.
func (s *super) encode() []byte {
	b := make([]byte, superSize(s.bits))
	le := binary.LittleEndian
	le.PutUint32(b[0:], superMagic)
	le.PutUint32(b[8:], featureChecksum|featureMtime)
	b[12] = byte(s.bits)
	le.PutUint16(b[14:], s.root)
	le.PutUint64(b[16:], s.inodes)
	le.PutUint32(b[36:], s.blocks)
	le.PutUint32(b[40:], s.meta)
	copy(b[48:64], s.uuid[:])
	le.PutUint32(b[4:], checksum(b))
	return b
}

// checksum is the CRC-32C of what encode gives, with none of the final inversion that is
// usual elsewhere.
func checksum(block []byte) uint32 {
	return ^crc32.Checksum(block, crc32.MakeTable(crc32.Castagnoli))
}

// roundUp is the next multiple of to, a power of two.
func roundUp(n, to int64) int64 { return (n + to - 1) &^ (to - 1) }

// kernelDev is a device number as the kernel writes it into 32 bits
// (new_encode_dev of linux/kdev_t.h).
func kernelDev(major, minor uint32) uint32 { return minor&0xff | major<<8 | (minor&^0xff)<<12 }

func fromKernelDev(dev uint32) (major, minor uint32) {
	return dev >> 8 & 0xfff, dev&0xff | dev>>12&^0xff
}
