package wire

import (
	"math"
	"time"
)

// Timestamp is google.protobuf.Timestamp: a point in time since 1970 in UTC. nil is 1970 itself.
type Timestamp struct {
	Seconds int64
	Nanos   int32 // 0 to 999 999 999, counting forward also before 1970
}

// NewTimestamp converts t.
func NewTimestamp(t time.Time) *Timestamp {
	return &Timestamp{Seconds: t.Unix(), Nanos: int32(t.Nanosecond())}
}

// AsTime converts to UTC.
func (x *Timestamp) AsTime() time.Time {
	if x == nil {
		return time.Unix(0, 0).UTC()
	}
	return time.Unix(x.Seconds, int64(x.Nanos)).UTC()
}

// AppendTo implements Message.
func (x *Timestamp) AppendTo(b []byte) []byte {
	if x == nil {
		return b
	}
	return appendSpan(b, x.Seconds, x.Nanos)
}

// Merge implements Message.
func (x *Timestamp) Merge(b []byte) error { return mergeSpan(b, &x.Seconds, &x.Nanos) }

// Duration is google.protobuf.Duration. nil is 0.
type Duration struct {
	Seconds int64
	Nanos   int32 // of the same sign as Seconds
}

// NewDuration converts d.
func NewDuration(d time.Duration) *Duration {
	return &Duration{Seconds: int64(d / time.Second), Nanos: int32(d % time.Second)}
}

// AsDuration converts to Go's, whose range of 292 years is the smaller one: what lies outside becomes its end.
func (x *Duration) AsDuration() time.Duration {
	if x == nil {
		return 0
	}
	whole := time.Duration(x.Seconds) * time.Second
	d := whole + time.Duration(x.Nanos)
	if int64(whole/time.Second) != x.Seconds || x.Seconds > 0 && x.Nanos > 0 && d < 0 || x.Seconds < 0 && x.Nanos < 0 && d > 0 {
		if x.Seconds < 0 {
			return math.MinInt64
		}
		return math.MaxInt64
	}
	return d
}

// AppendTo implements Message.
func (x *Duration) AppendTo(b []byte) []byte {
	if x == nil {
		return b
	}
	return appendSpan(b, x.Seconds, x.Nanos)
}

// Merge implements Message.
func (x *Duration) Merge(b []byte) error { return mergeSpan(b, &x.Seconds, &x.Nanos) }

// The two types have the same fields.
func appendSpan(b []byte, seconds int64, nanos int32) []byte {
	if seconds != 0 {
		b = AppendUint(b, 1, uint64(seconds))
	}
	if nanos != 0 {
		b = AppendUint(b, 2, uint64(nanos))
	}
	return b
}

func mergeSpan(b []byte, seconds *int64, nanos *int32) error {
	d := NewDecoder(b)
	for d.Next() {
		switch d.Key {
		case 1<<3 | Varint:
			*seconds = int64(d.Uint())
		case 2<<3 | Varint:
			*nanos = int32(d.Uint())
		}
	}
	return d.Err()
}
