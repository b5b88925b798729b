package journal

import (
	"encoding/binary"
	"slices"
)

// Batch is a list of changes that take effect together. The zero Batch is empty
// and ready; it is for one goroutine and one Commit.
type Batch struct {
	ops  []op
	size int // encoded bytes, at most
}

type op struct {
	key   string
	value []byte // nil with del
	del   bool
}

const (
	opPut    = 1
	opDelete = 2
)

// Put sets key to a copy of value.
func (b *Batch) Put(key string, value []byte) {
	v := slices.Clone(value)
	if v == nil {
		v = []byte{}
	}
	b.ops = append(b.ops, op{key: key, value: v})
	b.size += int(entrySize(key, v))
}

// Delete removes key if it is there.
func (b *Batch) Delete(key string) {
	b.ops = append(b.ops, op{key: key, del: true})
	b.size += int(entrySize(key, nil))
}

// Len is the number of changes.
func (b *Batch) Len() int { return len(b.ops) }

// entrySize is what one record takes in a file, rounded up.
func entrySize(key string, value []byte) int64 {
	return int64(1 + 2*binary.MaxVarintLen32 + len(key) + len(value))
}

func (b *Batch) payload() []byte {
	p := make([]byte, 0, b.size)
	for _, o := range b.ops {
		if o.del {
			p = append(p, opDelete)
			p = appendBytes(p, o.key)
			continue
		}
		p = append(p, opPut)
		p = appendBytes(p, o.key)
		p = appendBytes(p, o.value)
	}
	return p
}

// apply changes live and returns by how much its encoded size grew.
func (b *Batch) apply(live map[string][]byte) (grown int64) {
	for _, o := range b.ops {
		if old, ok := live[o.key]; ok {
			grown -= entrySize(o.key, old)
		}
		if o.del {
			delete(live, o.key)
			continue
		}
		live[o.key] = o.value
		grown += entrySize(o.key, o.value)
	}
	return grown
}

func appendBytes[T string | []byte](dst []byte, s T) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(s)))
	return append(dst, s...)
}
