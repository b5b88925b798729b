package deflate

import (
	"encoding/binary"
	"math/bits"
)

// The alphabets of RFC 1951, 3.2.5: literals, the end of a block and lengths; distances.
const (
	endOfBlock  = 256
	firstLength = 257
	numLits     = 286
	numDists    = 30
)

// maxStored is the most that a stored block has (3.2.4).
const maxStored = 1<<16 - 1

// lengths has the symbol of a match of i+3 bytes, less firstLength, and the number and value of the bits behind it.
var lengths = func() (all [256]struct{ symbol, bits, value uint8 }) {
	i := 0
	for symbol := range uint8(28) {
		n := max(symbol/4, 1) - 1
		for value := range 1 << n {
			all[i].symbol, all[i].bits, all[i].value = symbol, n, uint8(value)
			i++
		}
	}
	all[255].symbol, all[255].bits, all[255].value = 28, 0, 0 // 258 has a symbol of its own
	return all
}()

// distanceOf gives the symbol of a distance less one, and how many of its lower bits follow.
func distanceOf(d uint16) (symbol, extra uint) {
	if d < 4 {
		return uint(d), 0
	}
	extra = uint(bits.Len16(d)) - 2
	return 2*extra + uint(d>>extra), extra
}

// write writes the part text, which e.seqs describe.
func (e *encoder) write(text []byte, final bool) {
	e.count(text)
	size := e.codes.build(e.lits[:], e.dists[:])
	if size/8 > len(text) {
		for len(text) > 0 {
			n := min(len(text), maxStored)
			e.out.stored(text[:n], final && n == len(text))
			text = text[n:]
		}
		return
	}
	e.out.room(size/8 + 1)
	e.out.put(uint64(bit(final)|2<<1), 3)
	e.codes.describe(&e.out)
	e.body(text)
}

// count counts the symbols of a part. Neighbours are counted apart, as to add to what was just added to takes longer.
func (e *encoder) count(text []byte) {
	var a, b, c, d [256]uint32
	clear(e.lits[:])
	clear(e.dists[:])
	for _, s := range e.seqs {
		run := text[:s.literals]
		text = text[int(s.literals)+int(s.length):]
		for ; len(run) >= 4; run = run[4:] {
			a[run[0]]++
			b[run[1]]++
			c[run[2]]++
			d[run[3]]++
		}
		for _, l := range run {
			a[l]++
		}
		if s.length > 0 {
			symbol, _ := distanceOf(s.distance)
			e.dists[symbol]++
			e.lits[firstLength+int(lengths[uint8(s.length-3)].symbol)]++
		}
	}
	for i := range a {
		e.lits[i] = a[i] + b[i] + c[i] + d[i]
	}
	e.lits[endOfBlock] = 1
}

// body writes the symbols of a part, for which there is room. It is put of bitWriter by hand: four literals fit into one word.
func (e *encoder) body(text []byte) {
	acc, n, out, at := e.out.acc, e.out.n, e.out.buf[:cap(e.out.buf)], len(e.out.buf)
	lits := &e.codes.lits
	for _, s := range e.seqs {
		run := text[:s.literals]
		text = text[int(s.literals)+int(s.length):]
		for ; len(run) >= 4; run = run[4:] {
			c := lits[run[0]]
			acc |= uint64(c.bits) << (n & 63)
			n += uint(c.n)
			c = lits[run[1]]
			acc |= uint64(c.bits) << (n & 63)
			n += uint(c.n)
			c = lits[run[2]]
			acc |= uint64(c.bits) << (n & 63)
			n += uint(c.n)
			c = lits[run[3]]
			acc |= uint64(c.bits) << (n & 63)
			n += uint(c.n)
			binary.LittleEndian.PutUint64(out[at:at+8:len(out)], acc)
			at, acc, n = at+int(n>>3), acc>>(n&56), n&7
		}
		for _, l := range run {
			acc |= uint64(lits[l].bits) << (n & 63)
			n += uint(lits[l].n)
		}
		binary.LittleEndian.PutUint64(out[at:at+8:len(out)], acc)
		at, acc, n = at+int(n>>3), acc>>(n&56), n&7
		if s.length == 0 {
			break
		}
		c := e.codes.matches[uint8(s.length-3)]
		acc |= uint64(c.bits) << (n & 63)
		n += uint(c.n)
		symbol, extra := distanceOf(s.distance)
		c = e.codes.dists[symbol]
		acc |= uint64(c.bits) << (n & 63)
		n += uint(c.n)
		acc |= uint64(s.distance&(1<<extra-1)) << (n & 63)
		n += extra
		binary.LittleEndian.PutUint64(out[at:at+8:len(out)], acc)
		at, acc, n = at+int(n>>3), acc>>(n&56), n&7
	}
	e.out.acc, e.out.n, e.out.buf = acc, n, out[:at]
	e.out.code(lits[endOfBlock])
}

func bit(b bool) int {
	if b {
		return 1
	}
	return 0
}

// bitWriter collects bits, the lowest of a byte first.
type bitWriter struct {
	buf []byte
	acc uint64
	n   uint // bits in acc; between calls fewer than 8
}

// spare is the room that writing words has need of behind the last byte.
const spare = 16

func (w *bitWriter) reset() { w.buf, w.acc, w.n = w.buf[:0], 0, 0 }

// room makes sure that so many bytes can be put.
func (w *bitWriter) room(bytes int) {
	if bytes += spare; cap(w.buf)-len(w.buf) < bytes {
		w.buf = append(make([]byte, 0, 2*cap(w.buf)+bytes), w.buf...)
	}
}

// put appends the lower count ≤ 48 bits of v, which has no others. There has to be room.
func (w *bitWriter) put(v uint64, count uint) {
	w.acc |= v << w.n
	w.n += count
	at := len(w.buf)
	binary.LittleEndian.PutUint64(w.buf[at:at+8], w.acc)
	w.buf, w.acc, w.n = w.buf[:at+int(w.n>>3)], w.acc>>(w.n&56), w.n&7
}

func (w *bitWriter) code(c code) { w.put(uint64(c.bits), uint(c.n)) }

// align appends zeros up to the next byte.
func (w *bitWriter) align() {
	w.room(1)
	w.put(0, -w.n&7)
}

// stored appends p, at most maxStored bytes, as it is.
func (w *bitWriter) stored(p []byte, final bool) {
	w.room(len(p) + 8)
	w.put(uint64(bit(final)), 3)
	w.align()
	w.put(uint64(len(p))|uint64(^uint16(len(p)))<<16, 32)
	w.buf = append(w.buf, p...)
}
