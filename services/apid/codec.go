package apid

import (
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // registers "proto"
	"google.golang.org/grpc/mem"
)

// frame is a message that apid passes on without looking into it.
type frame struct{ data mem.BufferSlice }

// passCodec leaves frames as they are and does everything else as protobuf. It
// carries protobuf's name, so that neither side sees a difference.
type passCodec struct{ proto encoding.CodecV2 }

func newPassCodec() passCodec { return passCodec{encoding.GetCodecV2("proto")} }

func (c passCodec) Name() string { return c.proto.Name() }

// Marshal hands the frame's reference over to gRPC: a frame is sent once.
func (c passCodec) Marshal(v any) (mem.BufferSlice, error) {
	if f, ok := v.(*frame); ok {
		return f.data, nil
	}
	return c.proto.Marshal(v)
}

// Unmarshal takes a reference of its own: gRPC frees data afterwards.
func (c passCodec) Unmarshal(data mem.BufferSlice, v any) error {
	if f, ok := v.(*frame); ok {
		data.Ref()
		f.data = data
		return nil
	}
	return c.proto.Unmarshal(data, v)
}
