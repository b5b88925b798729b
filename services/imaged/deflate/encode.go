package deflate

import (
	"encoding/binary"
	"math/bits"
)

const (
	// part is how much input shares a pair of Huffman codes: enough that to describe them costs little, and little
	// enough that they fit.
	part = 128 << 10

	minMatch = 4 // deflate could have 3, which are rarely worth a distance
	maxMatch = 258
	window   = 32 << 10

	tableBits = 14
	// tail is how far from the end no more matches begin, so that eight bytes can be loaded at once.
	tail = 16
)

// sequence is a run of literals and the match behind it, of length 0 at the end of a part that has none there.
type sequence struct {
	literals uint32
	length   uint16
	distance uint16 // less one
}

// encoder compresses blocks to the format of RFC 1951, each by itself. It is greedy, looks at one candidate for a match at
// each place, and at fewer and fewer places the longer it finds nothing: what cannot be compressed is passed over, and
// stored.
type encoder struct {
	// recent has where bytes of a hash were seen last, modulo 2¹⁶: that is twice the window, and a table of 32 KiB stays
	// in the nearest cache. What is out of date is found out when the bytes are compared.
	recent [1 << tableBits]uint16
	seqs   []sequence // of the part
	lits   [numLits]uint32
	dists  [numDists]uint32
	codes  codes
	out    bitWriter
}

// encode gives src as blocks of deflate that end at a byte, and with last as the end of a stream. The result is valid until
// the next call.
func (e *encoder) encode(src []byte, last bool) []byte {
	e.out.reset()
	clear(e.recent[:])
	for at := 0; at < len(src); at += part {
		end := min(at+part, len(src))
		e.find(src[:end], at)
		e.write(src[at:end], last && end == len(src))
	}
	if !last || len(src) == 0 {
		e.out.stored(nil, last)
	}
	e.out.align()
	return e.out.buf
}

func load64(b []byte, i int) uint64 { return binary.LittleEndian.Uint64(b[i : i+8 : len(b)]) }

// hashOf is a hash of the lower six bytes: matches of four and five are taken where they turn up, but not looked for. They
// hardly save anything, and each costs the time of a longer one.
func hashOf(v uint64) uint64 {
	const prime = 227718039650203
	return v << 16 * prime >> (64 - tableBits) % (1 << tableBits)
}

// find divides src[at:] into sequences, whose matches may reach back to the beginning of src.
func (e *encoder) find(src []byte, at int) {
	seqs := e.seqs[:0]
	begun := at // the literals before pos
	limit := len(src) - tail
	skip := 32 // of a place looked at in vain, in parts of 32
	for pos := at + 1; pos < limit; {
		v := load64(src, pos)
		h := hashOf(v)
		back := uint16(pos) - e.recent[h]
		e.recent[h] = uint16(pos)
		from := pos - int(back)
		diff := v ^ load64(src, max(from, 0))
		// What is nearly always the same comes first: how old the entry is, is chance, and a branch that the processor
		// cannot foresee costs more than all the rest.
		if uint32(diff) != 0 || back-1 >= window || from < 0 {
			pos += skip >> 5
			skip++
			continue
		}
		n := bits.TrailingZeros64(diff) >> 3 // at least minMatch
		if n == 8 {
			n += matching(src, from+8, pos+8)
		}
		seqs = append(seqs, sequence{uint32(pos - begun), uint16(n), uint16(pos - from - 1)})
		pos += n
		begun, skip = pos, 32
		if pos < limit {
			e.recent[hashOf(load64(src, pos-1))] = uint16(pos - 1)
		}
	}
	if begun < len(src) {
		seqs = append(seqs, sequence{literals: uint32(len(src) - begun)})
	}
	e.seqs = seqs
}

// matching counts the bytes, at most maxMatch-8, that are the same from a and from b > a on.
func matching(src []byte, a, b int) (n int) {
	most := min(len(src)-b, maxMatch-8)
	for ; n+8 <= most; n += 8 {
		if diff := load64(src, a+n) ^ load64(src, b+n); diff != 0 {
			return n + bits.TrailingZeros64(diff)>>3
		}
	}
	for n < most && src[a+n] == src[b+n] {
		n++
	}
	return n
}
