package gunzip

// Entries of the decoding tables. The low 6 bits are how many bits of input the entry stands for, extra bits included.
//
//	literal    31: 1 · 26–29: code length of the first · 24–25: how many, 1 or 2 · 16–23: second · 8–15: first
//	match      16–30: least length or distance · 8–11: code length, extra bits follow it
//	special    15: 1, and 14: subtable (16–30: where; 8–11: bits of its index), or 13: end of block, or neither: no code
const (
	isLiteral  = 1 << 31
	special    = 1 << 15
	subtable   = 1 << 14
	endOfBlock = 1 << 13

	litBits  = 11
	litMask  = 1<<litBits - 1
	litSize  = 4096 // 2342 are enough for 288 symbols (zlib's enough.c); a power of two needs no check of the index
	distBits = 8
	distMask = 1<<distBits - 1
	distSize = 1024 // 402 are enough for 32 symbols

	maxCode = 15
	maxLit  = 286 // a header may not give more
)

type tables struct {
	lit   [litSize]uint32
	dist  [distSize]uint32
	fixed bool // they are those of fixed blocks
}

var litEntries, distEntries = symbolEntries()

// symbolEntries are the entries of all symbols, without the code's length (RFC 1951 §3.2.5).
func symbolEntries() (lit [288]uint32, dist [32]uint32) {
	for s := range 256 {
		lit[s] = isLiteral | 1<<24 | uint32(s)<<8
	}
	lit[256] = special | endOfBlock
	base := uint32(3)
	for s := 257; s < 285; s++ {
		extra := uint32(max((s-261)/4, 0))
		lit[s] = base<<16 | extra
		base += 1 << extra
	}
	lit[285] = maxMatch << 16
	lit[286], lit[287] = special, special
	base = 1
	for s := range 30 {
		extra := uint32(max(s/2-1, 0))
		dist[s] = base<<16 | extra
		base += 1 << extra
	}
	dist[30], dist[31] = special, special
	return lit, dist
}

// setFixed makes the tables of fixed blocks (RFC 1951 §3.2.6).
func (t *tables) setFixed() {
	if t.fixed {
		return
	}
	var lengths [288]uint8
	for s := range lengths {
		switch {
		case s < 144:
			lengths[s] = 8
		case s < 256:
			lengths[s] = 9
		case s < 280:
			lengths[s] = 7
		default:
			lengths[s] = 8
		}
	}
	fill(t.lit[:], litBits, lengths[:], litEntries[:])
	pair(&t.lit)
	var five [32]uint8
	for s := range five {
		five[s] = 5
	}
	fill(t.dist[:], distBits, five[:], distEntries[:])
	t.fixed = true
}

// codeOrder is the order of the code lengths' own code lengths (RFC 1951 §3.2.7).
var codeOrder = [19]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}

// readCodes reads the codes of a dynamic block.
func (z *Reader) readCodes() error {
	z.tables.fixed = false
	v, err := z.take(14)
	if err != nil {
		return err
	}
	nlit, ndist, nlen := int(v&31)+257, int(v>>5&31)+1, int(v>>10)+4
	if nlit > maxLit || ndist > 30 {
		return corrupt("too many codes")
	}
	var own [19]uint8
	for _, s := range codeOrder[:nlen] {
		n, err := z.take(3)
		if err != nil {
			return err
		}
		own[s] = uint8(n)
	}
	var entries [19]uint32
	for s := range entries {
		entries[s] = uint32(s) << 16
	}
	var table [128]uint32
	if !fill(table[:], 7, own[:], entries[:]) {
		return corrupt("code of the code lengths is not complete")
	}
	var lengths [maxLit + 32]uint8
	if err := z.readLengths(table[:], lengths[:nlit+ndist]); err != nil {
		return err
	}
	if !fill(z.tables.lit[:], litBits, lengths[:nlit], litEntries[:]) ||
		!fill(z.tables.dist[:], distBits, lengths[nlit:nlit+ndist], distEntries[:]) {
		return corrupt("code is not complete")
	}
	pair(&z.tables.lit)
	return nil
}

func (z *Reader) readLengths(table []uint32, lengths []uint8) error {
	for i := 0; i < len(lengths); {
		e, err := z.lookup(table, 7)
		if err != nil {
			return err
		}
		s := e >> 16
		if s < 16 {
			lengths[i] = uint8(s)
			i++
			continue
		}
		var value uint8
		if s == 16 {
			if i == 0 {
				return corrupt("repeats a code length that is not there")
			}
			value = lengths[i-1]
		}
		n, err := z.take([]uint{2, 3, 7}[s-16])
		if err != nil {
			return err
		}
		n += []uint{3, 3, 11}[s-16]
		if i+int(n) > len(lengths) {
			return corrupt("repeats a code length too often")
		}
		for range n {
			lengths[i] = value
			i++
		}
	}
	return nil
}

// fill makes the table, whose first lookup takes primary bits, of a canonical code. It reports whether the code is
// complete; like zlib it also takes one that is empty or has one symbol of one bit.
func fill(table []uint32, primary uint, lengths []uint8, entries []uint32) bool {
	var count [maxCode + 1]uint32
	for _, n := range lengths {
		count[n]++
	}
	count[0] = 0
	var next [maxCode + 2]uint32 // the next code of each length
	code, longest := uint32(0), uint(0)
	for n := uint(1); n <= maxCode; n++ {
		next[n] = code
		code += count[n]
		if code > 1<<n {
			return false
		}
		if count[n] > 0 {
			longest = n
		}
		code <<= 1
	}
	if partial := code != 1<<(maxCode+1); partial {
		if longest > 1 || count[1] > 1 {
			return false
		}
		for i := range table[:1<<primary] {
			table[i] = special
		}
	}
	if longest > primary {
		clear(table[:1<<primary])
	}
	starts := next
	for s, n := range lengths {
		if n == 0 {
			continue
		}
		at := reverse(next[n], uint(n))
		next[n]++
		if uint(n) > primary { // first only how large the subtable has to be
			p := &table[at&(1<<primary-1)]
			*p = max(*p, special|subtable|(uint32(n)-uint32(primary))<<8)
			continue
		}
		e := withLength(entries[s], uint32(n))
		for ; at < 1<<primary; at += 1 << n {
			table[at] = e
		}
	}
	if longest > primary {
		fillSubtables(table, primary, lengths, entries, starts)
	}
	return true
}

// fillSubtables makes the tables behind the first one, for codes of more than primary bits.
func fillSubtables(table []uint32, primary uint, lengths []uint8, entries []uint32, next [maxCode + 2]uint32) {
	free := uint32(1) << primary
	for s, n := range lengths {
		if uint(n) <= primary {
			continue
		}
		at := reverse(next[n], uint(n))
		next[n]++
		p := &table[at&(1<<primary-1)]
		size := uint32(1) << (*p >> 8 & 15)
		if *p>>16 == 0 {
			*p |= free << 16
			free += size
		}
		rest := uint32(n) - uint32(primary)
		for i := at >> primary; i < size; i += 1 << rest {
			table[*p>>16+i] = withLength(entries[s], rest)
		}
	}
}

// withLength completes an entry by the length of its code.
func withLength(e, n uint32) uint32 {
	switch {
	case e&isLiteral != 0:
		return e | n<<26 | n
	case e&special != 0:
		return e | n
	}
	return e + n | n<<8
}

// pair puts two literals into an entry whose bits hold both.
func pair(lit *[litSize]uint32) {
	for i := litMask; i >= 0; i-- { // downwards, since a lookup is of a smaller index
		e := lit[i]
		if e&isLiteral == 0 {
			continue
		}
		n := e & 63
		second := lit[i>>n]
		if second&isLiteral == 0 || n+second&63 > litBits || second>>24&3 != 1 {
			continue
		}
		lit[i] = isLiteral | n<<26 | 2<<24 | second&0xff00<<8 | e&0xff00 | (n + second&63)
	}
}
