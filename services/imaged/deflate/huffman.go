package deflate

import (
	"math/bits"
	"slices"
)

const (
	// maxLitBits is one less than deflate allows, so that four literals fit into a word with seven bits before them.
	maxLitBits  = 14
	maxDistBits = 15
	maxHeadBits = 7
)

// code is what stands for a symbol, its first bit lowest.
type code struct {
	bits uint32
	n    uint8
}

// codes are the two Huffman codes of a block and their description (RFC 1951, 3.2.7).
type codes struct {
	lits    [numLits]code
	matches [256]code // of lengths less 3, with the bits behind the symbol
	dists   [numDists]code

	litLens  [numLits]uint8
	distLens [numDists]uint8
	tree     tree

	numLits, numDists, numHead int
	runs                       []run // litLens and distLens
	headLens                   [19]uint8
	head                       [19]code
}

// run is a symbol of the code of lengths, and the bits behind it.
type run struct{ symbol, value, bits uint8 }

// headOrder is in which the lengths of the code of lengths are written.
var headOrder = [19]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}

// build makes the codes that are best for such numbers of symbols, and gives how many bits the block takes.
func (c *codes) build(lits, dists []uint32) (size int) {
	c.tree.lengths(lits, c.litLens[:], maxLitBits)
	c.tree.lengths(dists, c.distLens[:], maxDistBits)
	assign(c.litLens[:], c.lits[:])
	assign(c.distLens[:], c.dists[:])
	for i, l := range lengths {
		s := c.lits[firstLength+int(l.symbol)]
		c.matches[i] = code{s.bits | uint32(l.value)<<s.n, s.n + l.bits}
	}
	for s, n := range lits {
		size += int(n) * int(c.litLens[s])
		if s >= firstLength+4 && s < numLits-1 {
			size += int(n) * ((s-firstLength)/4 - 1)
		}
	}
	for s, n := range dists {
		size += int(n) * (int(c.distLens[s]) + max(s/2-1, 0))
	}
	return 3 + c.plan() + size
}

// plan prepares the description of the codes, and gives its bits.
func (c *codes) plan() (size int) {
	c.numLits, c.numDists = numLits, numDists
	for c.numLits > firstLength && c.litLens[c.numLits-1] == 0 {
		c.numLits--
	}
	for c.numDists > 1 && c.distLens[c.numDists-1] == 0 {
		c.numDists--
	}
	var both [numLits + numDists]uint8
	c.runs = runsOf(append(append(both[:0], c.litLens[:c.numLits]...), c.distLens[:c.numDists]...), c.runs[:0])
	var counts [19]uint32
	for _, r := range c.runs {
		counts[r.symbol]++
		size += int(r.bits)
	}
	c.tree.lengths(counts[:], c.headLens[:], maxHeadBits)
	assign(c.headLens[:], c.head[:])
	for s, n := range counts {
		size += int(n) * int(c.headLens[s])
	}
	c.numHead = len(headOrder)
	for c.numHead > 4 && c.headLens[headOrder[c.numHead-1]] == 0 {
		c.numHead--
	}
	return 5 + 5 + 4 + 3*c.numHead + size
}

// runsOf appends what stands for a list of lengths.
func runsOf(lens []uint8, runs []run) []run {
	for len(lens) > 0 {
		l, n := lens[0], 1
		for n < len(lens) && lens[n] == l {
			n++
		}
		lens = lens[n:]
		if l > 0 { // only what was there is repeated
			runs = append(runs, run{symbol: l})
			n--
		}
		for n > 0 {
			r, m := run{symbol: l}, 1
			switch {
			case l == 0 && n >= 11:
				m = min(n, 138)
				r = run{18, uint8(m - 11), 7}
			case l == 0 && n >= 3:
				m = min(n, 10)
				r = run{17, uint8(m - 3), 3}
			case l > 0 && n >= 3:
				m = min(n, 6)
				r = run{16, uint8(m - 3), 2}
			}
			runs = append(runs, r)
			n -= m
		}
	}
	return runs
}

// describe writes the description.
func (c *codes) describe(w *bitWriter) {
	w.put(uint64(c.numLits-firstLength), 5)
	w.put(uint64(c.numDists-1), 5)
	w.put(uint64(c.numHead-4), 4)
	for _, s := range headOrder[:c.numHead] {
		w.put(uint64(c.headLens[s]), 3)
	}
	for _, r := range c.runs {
		w.code(c.head[r.symbol])
		w.put(uint64(r.value), uint(r.bits))
	}
}

// assign gives each symbol its code (3.2.2).
func assign(lens []uint8, codes []code) {
	var count, next [16]uint16
	for _, l := range lens {
		count[l]++
	}
	count[0] = 0
	for l := 1; l < len(next); l++ {
		next[l] = (next[l-1] + count[l-1]) << 1
	}
	for s, l := range lens {
		codes[s] = code{}
		if l > 0 {
			codes[s] = code{uint32(bits.Reverse16(next[l]) >> (16 - l)), l}
			next[l]++
		}
	}
}

// tree computes the lengths of Huffman codes; its fields are only to be reused.
type tree struct {
	leaves []uint64 // number and, in the lower 16 bits, symbol
	weight [2 * numLits]uint64
	parent [2 * numLits]uint16
	depth  [2 * numLits]uint8
}

// lengths sets the length of each symbol's code, at most so many bits, and 0 for those that do not occur. Two symbols have
// one in any case: some decoders refuse codes with fewer.
func (t *tree) lengths(counts []uint32, lens []uint8, most int) {
	clear(lens)
	t.leaves = t.leaves[:0]
	for s, n := range counts {
		if n > 0 {
			t.leaves = append(t.leaves, uint64(n)<<16|uint64(s))
		}
	}
	for s := 0; len(t.leaves) < 2; s++ {
		if counts[s] == 0 {
			t.leaves = append(t.leaves, uint64(s))
		}
	}
	slices.Sort(t.leaves)
	t.join()
	// Leaves that are too deep come up, and others go down for it until it is the code of a tree again.
	n := len(t.leaves)
	var count [maxDistBits + 1]int
	taken := 0 // of 2^most
	for _, d := range t.depth[:n] {
		l := min(int(d), most)
		count[l]++
		taken += 1 << (most - l)
	}
	for ; taken > 1<<most; taken-- {
		l := most - 1
		for count[l] == 0 {
			l--
		}
		count[l]--
		count[l+1] += 2
		count[most]--
	}
	for l, leaves := most, t.leaves; l > 0; l-- { // the rarest have the longest
		for _, leaf := range leaves[:count[l]] {
			lens[uint16(leaf)] = uint8(l)
		}
		leaves = leaves[count[l]:]
	}
}

// join makes one tree of the leaves, which are sorted, and sets the depth of each: the two lightest become one, again and
// again. Those that were made come in order of their weight, too.
func (t *tree) join() {
	n := len(t.leaves)
	for i, l := range t.leaves {
		t.weight[i] = l >> 16
	}
	leaf, inner := 0, n
	for made := n; made < 2*n-1; made++ {
		t.weight[made] = 0
		for range 2 {
			lightest := &inner
			if leaf < n && (inner == made || t.weight[leaf] <= t.weight[inner]) {
				lightest = &leaf
			}
			t.weight[made] += t.weight[*lightest]
			t.parent[*lightest] = uint16(made)
			*lightest++
		}
	}
	t.depth[2*n-2] = 0
	for i := 2*n - 3; i >= 0; i-- {
		t.depth[i] = t.depth[t.parent[i]] + 1
	}
}
