package journal

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"

	"berth/internal/fault"
)

const (
	fileMagic  = "BERTHJNL"
	version    = 1
	headerSize = 8 + 4 + 8 + 8 + 4

	frameMagic     = 0xb7e1d00d
	frameHeadSize  = 4 + 4 + 8 + 4
	maxPayloadSize = MaxBatch + 64
)

var (
	castagnoli      = crc32.MakeTable(crc32.Castagnoli)
	frameMagicBytes = binary.LittleEndian.AppendUint32(nil, frameMagic)
)

func putHeader(dst []byte, salt, base uint64) {
	copy(dst, fileMagic)
	binary.LittleEndian.PutUint32(dst[8:], version)
	binary.LittleEndian.PutUint64(dst[12:], salt)
	binary.LittleEndian.PutUint64(dst[20:], base)
	binary.LittleEndian.PutUint32(dst[28:], crc32.Checksum(dst[:28], castagnoli))
}

func appendFrame(dst []byte, salt, durable uint64, payload []byte) []byte {
	dst = binary.LittleEndian.AppendUint32(dst, frameMagic)
	checked := len(dst)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(payload)))
	dst = binary.LittleEndian.AppendUint64(dst, durable)
	crc := frameSum(salt, dst[checked:], payload)
	dst = binary.LittleEndian.AppendUint32(dst, crc)
	return append(dst, payload...)
}

func frameSum(salt uint64, head, payload []byte) uint32 {
	crc := crc32.Update(0, castagnoli, binary.LittleEndian.AppendUint64(nil, salt))
	crc = crc32.Update(crc, castagnoli, head)
	return crc32.Update(crc, castagnoli, payload)
}

// content is what a file says.
type content struct {
	live map[string][]byte
	salt uint64
	end  int64 // of the last good frame
}

// parse replays a whole file. It keeps no part of data.
func parse(data []byte) (content, error) {
	if len(data) < headerSize || string(data[:8]) != fileMagic {
		return content{}, corrupt(0, "header")
	}
	// The version comes before the checksum: a newer header may be longer.
	if v := binary.LittleEndian.Uint32(data[8:]); v > version {
		return content{}, fault.FailedPrecondition.Errorf("JOURNAL_TOO_NEW",
			"format %d is newer than this build reads (%d)", v, version).
			Hint("run the version of berth that wrote it, or a newer one")
	} else if v != version {
		return content{}, corrupt(8, "version")
	}
	if binary.LittleEndian.Uint32(data[28:]) != crc32.Checksum(data[:28], castagnoli) {
		return content{}, corrupt(0, "header")
	}
	const aRecord = 200 // bytes; only a guess of how large the map will be
	c := content{live: make(map[string][]byte, len(data)/aRecord), salt: binary.LittleEndian.Uint64(data[12:])}
	base := binary.LittleEndian.Uint64(data[20:])

	var values arena
	at := headerSize
	for at < len(data) {
		payload, _, ok := frameAt(data, at, c.salt)
		if !ok {
			break
		}
		if !replay(c.live, payload, &values) {
			return content{}, corrupt(at, "payload") // its checksum is right: a bug wrote it
		}
		at += frameHeadSize + len(payload)
	}
	c.end = int64(at)
	if uint64(at) < max(base, durableBehind(data, at, c.salt)) {
		return content{}, corrupt(at, "frame")
	}
	return c, nil
}

// frameAt is the payload of the good frame at offset at, if there is one.
func frameAt(data []byte, at int, salt uint64) (payload []byte, durable uint64, ok bool) {
	rest := data[at:]
	if len(rest) < frameHeadSize || binary.LittleEndian.Uint32(rest) != frameMagic {
		return nil, 0, false
	}
	length := binary.LittleEndian.Uint32(rest[4:])
	if length > maxPayloadSize || int(length) > len(rest)-frameHeadSize {
		return nil, 0, false
	}
	payload = rest[frameHeadSize : frameHeadSize+int(length)]
	if binary.LittleEndian.Uint32(rest[16:]) != frameSum(salt, rest[4:16], payload) {
		return nil, 0, false
	}
	return payload, binary.LittleEndian.Uint64(rest[8:]), true
}

// durableBehind is the largest "durable" of the good frames behind a bad one.
func durableBehind(data []byte, bad int, salt uint64) (durable uint64) {
	for at := bad + 1; at < len(data); {
		i := bytes.Index(data[at:], frameMagicBytes)
		if i < 0 {
			break
		}
		at += i
		payload, d, ok := frameAt(data, at, salt)
		if !ok {
			at++
			continue
		}
		durable = max(durable, d)
		at += frameHeadSize + len(payload)
	}
	return durable
}

// arena copies values into pieces of memory that several share: a start with very many records spends its time on
// allocations otherwise. A piece stays as long as one value of it.
type arena []byte

const arenaSize = 4 << 10

func (a *arena) copy(p []byte) []byte {
	if len(p) > arenaSize/8 {
		return append([]byte{}, p...)
	}
	if len(p) > cap(*a)-len(*a) {
		*a = make([]byte, 0, arenaSize)
	}
	from := len(*a)
	*a = append(*a, p...)
	return (*a)[from:len(*a):len(*a)]
}

// replay applies a payload to live; false if it is malformed.
func replay(live map[string][]byte, p []byte, values *arena) bool {
	for len(p) > 0 {
		code := p[0]
		key, rest, ok := cutBytes(p[1:])
		if !ok {
			return false
		}
		switch code {
		case opDelete:
			delete(live, string(key))
		case opPut:
			var value []byte
			if value, rest, ok = cutBytes(rest); !ok {
				return false
			}
			live[string(key)] = values.copy(value)
		default:
			return false
		}
		p = rest
	}
	return true
}

func cutBytes(p []byte) (head, rest []byte, ok bool) {
	n, used := binary.Uvarint(p)
	if used <= 0 || n > uint64(len(p)-used) {
		return nil, nil, false
	}
	return p[used : used+int(n)], p[used+int(n):], true
}

func corrupt(offset int, what string) error {
	return fault.DataLoss.Errorf("JOURNAL_DAMAGED", "%s at byte %d is damaged", what, offset).
		Hint("restore the file from a backup, or move it away to start empty")
}
