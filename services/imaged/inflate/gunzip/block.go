package gunzip

import (
	"encoding/binary"
	"math/bits"
)

// need gets at least n bits, n ≤ 32, into the register.
func (z *Reader) need(n uint) error {
	for z.nbits < n {
		if !z.more(1) {
			return z.short()
		}
		z.bits |= uint64(z.in[z.pos]) << z.nbits
		z.pos++
		z.nbits += 8
	}
	return nil
}

func (z *Reader) take(n uint) (uint, error) {
	if err := z.need(n); err != nil {
		return 0, err
	}
	v := uint(z.bits & (1<<n - 1))
	z.bits >>= n
	z.nbits -= n
	return v, nil
}

// blockHeader begins the next block of the member (RFC 1951 §3.2.3), if there is one.
func (z *Reader) blockHeader() error {
	if z.final {
		z.step = nil
		return nil
	}
	v, err := z.take(3)
	if err != nil {
		return err
	}
	z.final = v&1 != 0
	switch v >> 1 {
	case 0:
		return z.storedHeader()
	case 1:
		z.tables.setFixed()
	case 2:
		if err := z.readCodes(); err != nil {
			return err
		}
	default:
		return corrupt("unknown kind of block")
	}
	z.step = (*Reader).symbols
	return nil
}

func (z *Reader) storedHeader() error {
	z.unread()
	if !z.more(4) {
		return z.short()
	}
	n, inverse := binary.LittleEndian.Uint16(z.in[z.pos:]), binary.LittleEndian.Uint16(z.in[z.pos+2:])
	if n != ^inverse {
		return corrupt("length of a stored block does not fit")
	}
	z.pos += 4
	z.left = int(n)
	z.step = (*Reader).stored
	return nil
}

// stored copies what fits of a stored block.
func (z *Reader) stored() error {
	for z.left > 0 && z.to < outSize-slack {
		if !z.more(1) {
			return z.short()
		}
		n := copy(z.out[z.to:outSize-slack], z.in[z.pos:min(len(z.in), z.pos+z.left)])
		z.pos, z.to, z.left = z.pos+n, z.to+n, z.left-n
	}
	if z.left == 0 {
		z.step = (*Reader).blockHeader
	}
	return nil
}

// symbols decodes until the end of the block or until out is full.
func (z *Reader) symbols() error {
	for z.to < outSize-slack {
		if len(z.in)-z.pos >= fastInput {
			if ended, err := z.fast(); ended || err != nil {
				return err
			}
		}
		if z.to >= outSize-slack {
			return nil
		}
		z.more(fastInput)
		if len(z.in)-z.pos >= fastInput {
			continue
		}
		if ended, err := z.careful(); ended || err != nil {
			return err
		}
	}
	return nil
}

var (
	errCode     = corrupt("unknown code")
	errDistance = corrupt("match reaches before the beginning")
)

// fastInput is how much input one round of the fast loop may read.
const fastInput = 16

// fast decodes while there is input for another round and room for another match. It reports the end of the block.
//
// A round takes at most 48 bits: literals with primary codes, or one match (15 + 5 bits of length, 15 + 13 of distance).
func (z *Reader) fast() (ended bool, err error) {
	var (
		in, out  = z.in, z.out
		pos, to  = z.pos, z.to
		hold, nb = z.bits, z.nbits
		lit      = &z.tables.lit
		dist     = &z.tables.dist
		low      = z.low
		inEnd    = len(in) - fastInput
	)
	for pos <= inEnd && to < outSize-slack {
		hold |= binary.LittleEndian.Uint64(in[pos:]) << (nb & 63)
		pos += int((63 - nb) >> 3)
		nb |= 56

		e := lit[hold&litMask]
		if e&isLiteral != 0 {
			hold >>= e & 63
			nb -= uint(e & 63)
			binary.LittleEndian.PutUint16(out[to:], uint16(e>>8))
			to += int(e>>24) & 3
			if e = lit[hold&litMask]; e&isLiteral != 0 {
				hold >>= e & 63
				nb -= uint(e & 63)
				binary.LittleEndian.PutUint16(out[to:], uint16(e>>8))
				to += int(e>>24) & 3
				if e = lit[hold&litMask]; e&isLiteral != 0 {
					hold >>= e & 63
					nb -= uint(e & 63)
					binary.LittleEndian.PutUint16(out[to:], uint16(e>>8))
					to += int(e>>24) & 3
					continue
				}
			}
			// Up to 24 bits went; a match needs up to 48.
			hold |= binary.LittleEndian.Uint64(in[pos:]) << (nb & 63)
			pos += int((63 - nb) >> 3)
			nb |= 56
		}
		if e&special != 0 {
			if e&subtable != 0 {
				hold >>= litBits
				nb -= litBits
				e = lit[(e>>16+uint32(hold&(1<<(e>>8&15)-1)))&(litSize-1)]
				if e&isLiteral != 0 {
					hold >>= e & 63
					nb -= uint(e & 63)
					out[to] = byte(e >> 8)
					to++
					continue
				}
			}
			if e&special != 0 {
				if e&endOfBlock != 0 {
					hold >>= e & 63
					nb -= uint(e & 63)
					ended = true
					break
				}
				err = errCode
				break
			}
		}
		length := int(e>>16) + int(hold&(1<<(e&63)-1)>>(e>>8&15))
		hold >>= e & 63
		nb -= uint(e & 63)

		e = dist[hold&distMask]
		if e&special != 0 {
			if e&subtable == 0 {
				err = errCode
				break
			}
			hold >>= distBits
			nb -= distBits
			if e = dist[(e>>16+uint32(hold&(1<<(e>>8&15)-1)))&(distSize-1)]; e&special != 0 {
				err = errCode
				break
			}
		}
		d := int(e>>16) + int(hold&(1<<(e&63)-1)>>(e>>8&15))
		hold >>= e & 63
		nb -= uint(e & 63)
		from := to - d
		if from < low {
			err = errDistance
			break
		}
		end := to + length
		if d >= 8 {
			// Words may be written beyond the match: what they leave there is overwritten by what comes next.
			for {
				binary.LittleEndian.PutUint64(out[to:], binary.LittleEndian.Uint64(out[from:]))
				binary.LittleEndian.PutUint64(out[to+8:], binary.LittleEndian.Uint64(out[from+8:]))
				to += 16
				from += 16
				if to >= end {
					break
				}
			}
			to = end
		} else {
			for to < end {
				out[to] = out[from]
				to++
				from++
			}
		}
	}
	z.pos, z.to, z.bits, z.nbits = pos, to, hold, nb
	if ended {
		z.step = (*Reader).blockHeader
	}
	return ended, err
}

// careful decodes one symbol, with the few bytes of input that are left.
func (z *Reader) careful() (ended bool, err error) {
	// As many bits as there are; what is missing reads as zero and is noticed by drop.
	e, err := z.lookup(z.tables.lit[:], litBits)
	if err != nil {
		return false, err
	}
	switch {
	case e&isLiteral != 0:
		z.out[z.to] = byte(e >> 8)
		z.to++
		return false, nil
	case e&special != 0:
		z.step = (*Reader).blockHeader
		return true, nil
	}
	length := int(e>>16) + int(z.extra)
	if e, err = z.lookup(z.tables.dist[:], distBits); err != nil {
		return false, err
	}
	from := z.to - int(e>>16) - int(z.extra)
	if from < z.low {
		return false, errDistance
	}
	for range length {
		z.out[z.to] = z.out[from]
		z.to++
		from++
	}
	return false, nil
}

// lookup decodes one code with its extra bits, which it leaves in z.extra. Two literals in one entry are taken apart.
func (z *Reader) lookup(table []uint32, primary uint) (uint32, error) {
	for z.nbits <= 56 && z.more(1) {
		z.bits |= uint64(z.in[z.pos]) << z.nbits
		z.pos++
		z.nbits += 8
	}
	e := table[z.bits&(1<<primary-1)]
	skip := uint(0)
	if e&isLiteral == 0 && e&subtable != 0 {
		skip = primary
		e = table[e>>16+uint32(z.bits>>primary&(1<<(e>>8&15)-1))]
	}
	n := uint(e & 63)
	switch {
	case e&isLiteral != 0:
		if e>>24&3 == 2 {
			n = uint(e >> 26 & 15) // of the first of two
		}
	case e&special != 0 && e&endOfBlock == 0:
		return 0, errCode
	}
	if skip+n > z.nbits {
		return 0, z.short()
	}
	z.bits >>= skip
	if e&isLiteral == 0 {
		z.extra = uint(z.bits & (1<<n - 1) >> (e >> 8 & 15))
	}
	z.bits >>= n
	z.nbits -= skip + n
	return e, nil
}

func reverse(code uint32, n uint) uint32 { return uint32(bits.Reverse16(uint16(code))) >> (16 - n) }
