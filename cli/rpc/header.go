package rpc

import (
	"context"
	"errors"
	"strconv"
	"time"
)

// Metadata is what came with a response besides its messages, by lower-case key. Of a key sent more than once the last
// value is kept: the engine sends none twice.
type Metadata map[string]string

// Get is the value of a key, "" when it was not sent.
func (m Metadata) Get(key string) string { return m[key] }

// appendRequestHeader encodes the header of a call. It uses neither the dynamic table nor Huffman codes: a connection
// carries one call or a few.
func appendRequestHeader(b []byte, method string, deadline time.Time) []byte {
	b = append(b, 0x80|3, 0x80|6) // RFC 7541, appendix A: ":method: POST", ":scheme: http"
	b = appendIndexedName(b, 4, method)
	b = appendIndexedName(b, 1, "localhost") // ":authority"
	b = appendIndexedName(b, 31, "application/grpc")
	b = appendField(b, "te", "trailers")
	b = appendIndexedName(b, 58, "berth") // "user-agent"
	if !deadline.IsZero() {
		b = appendField(b, "grpc-timeout", timeout(time.Until(deadline)))
	}
	return b
}

// appendIndexedName encodes a field, not to be indexed, whose name is in the static table.
func appendIndexedName(b []byte, name uint64, value string) []byte {
	return appendString(appendInteger(b, 0, 4, name), value)
}

func appendField(b []byte, name, value string) []byte {
	return appendString(appendString(append(b, 0), name), value)
}

func appendString(b []byte, s string) []byte {
	return append(appendInteger(b, 0, 7, uint64(len(s))), s...)
}

// appendInteger is the integer of RFC 7541, section 5.1, with a prefix of that many bits below the bits of first.
func appendInteger(b []byte, first byte, bits int, v uint64) []byte {
	limit := uint64(1)<<bits - 1
	if v < limit {
		return append(b, first|byte(v))
	}
	b = append(b, first|byte(limit))
	for v -= limit; v >= 0x80; v >>= 7 {
		b = append(b, byte(v)|0x80)
	}
	return append(b, byte(v))
}

// timeout is a grpc-timeout: at most 8 digits and a unit, rounded up so that the server does not give up first.
func timeout(d time.Duration) string {
	for _, u := range []struct {
		unit time.Duration
		name string
	}{{time.Microsecond, "u"}, {time.Millisecond, "m"}, {time.Second, "S"}, {time.Minute, "M"}} {
		if n := (max(d, 1) + u.unit - 1) / u.unit; n < 1e8 {
			return strconv.FormatInt(int64(n), 10) + u.name
		}
	}
	return "99999999H"
}

// contextStatus is the status of a call whose context has ended.
func contextStatus(ctx context.Context) *Status {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return &Status{Code: DeadlineExceeded, Message: "no answer in time"}
	}
	return &Status{Code: Canceled, Message: "cancelled"}
}
