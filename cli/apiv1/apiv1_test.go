package apiv1_test

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"berth/cli/apiv1"
	"berth/cli/rpc"
	"berth/cli/wire"
	pb "berth/proto/berth/api/v1"
)

var files = []protoreflect.FileDescriptor{
	pb.File_berth_api_v1_container_proto, pb.File_berth_api_v1_event_proto, pb.File_berth_api_v1_image_proto, pb.File_berth_api_v1_job_proto,
	pb.File_berth_api_v1_network_proto, pb.File_berth_api_v1_registry_proto, pb.File_berth_api_v1_system_proto, pb.File_berth_api_v1_volume_proto,
}

// clients are the generated ones, by the name of their service.
func clients(c *rpc.Conn) map[string]any {
	return map[string]any{
		"ContainerService": apiv1.NewContainerServiceClient(c), "ImageService": apiv1.NewImageServiceClient(c), "NetworkService": apiv1.NewNetworkServiceClient(c),
		"VolumeService": apiv1.NewVolumeServiceClient(c), "JobService": apiv1.NewJobServiceClient(c), "EventService": apiv1.NewEventServiceClient(c),
		"RegistryService": apiv1.NewRegistryServiceClient(c), "SystemService": apiv1.NewSystemServiceClient(c),
	}
}

// eachMethod goes through all methods of the API with the method of the client that calls it.
func eachMethod(t *testing.T, c *rpc.Conn, f func(m protoreflect.MethodDescriptor, call reflect.Value)) {
	t.Helper()
	all := clients(c)
	n := 0
	for _, file := range files {
		for i := range file.Services().Len() {
			s := file.Services().Get(i)
			client, ok := all[string(s.Name())]
			if !ok {
				t.Errorf("no client for %s", s.FullName())
				continue
			}
			for j := range s.Methods().Len() {
				m := s.Methods().Get(j)
				call := reflect.ValueOf(client).MethodByName(string(m.Name()))
				if !call.IsValid() {
					t.Errorf("the client of %s has no method %s", s.Name(), m.Name())
					continue
				}
				f(m, call)
				n++
			}
		}
	}
	if n < 50 {
		t.Fatalf("only %d methods found", n)
	}
}

// types are the messages that a client's method takes and gives.
func types(m protoreflect.MethodDescriptor, call reflect.Value) (in, out reflect.Type) {
	method := func(stream reflect.Type, name string) reflect.Type { m, _ := stream.MethodByName(name); return m.Type }
	t := call.Type()
	if m.IsStreamingClient() {
		return method(t.Out(0), "Send").In(1).Elem(), method(t.Out(0), "Recv").Out(0).Elem()
	}
	if m.IsStreamingServer() {
		return t.In(1).Elem(), method(t.Out(0), "Recv").Out(0).Elem()
	}
	return t.In(1).Elem(), t.Out(0).Elem()
}

// TestMessages fills every message that is sent or received at random, and compares with what
// google.golang.org/protobuf makes of the same bytes.
func TestMessages(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	eachMethod(t, rpc.NewConn("/"), func(m protoreflect.MethodDescriptor, call reflect.Value) {
		in, out := types(m, call)
		for _, c := range []struct {
			lite reflect.Type
			desc protoreflect.MessageDescriptor
		}{{in, m.Input()}, {out, m.Output()}} {
			if c.lite.Name() != string(c.desc.Name()) {
				t.Errorf("%s: the client's message is %s, the contract's %s", m.FullName(), c.lite.Name(), c.desc.Name())
			}
			for range 40 {
				same(t, r, c.lite, c.desc)
			}
		}
	})
}

func same(t *testing.T, r *rand.Rand, lite reflect.Type, desc protoreflect.MessageDescriptor) {
	t.Helper()
	kind, err := protoregistry.GlobalTypes.FindMessageByName(desc.FullName())
	if err != nil {
		t.Fatal(err)
	}
	want := kind.New()
	fill(r, want, 4)
	encoded, err := proto.Marshal(want.Interface())
	if err != nil {
		t.Fatal(err)
	}
	m := reflect.New(lite)
	if err := m.Interface().(wire.Message).Merge(encoded); err != nil {
		t.Errorf("%s: decode: %v", desc.FullName(), err)
		return
	}
	compareGetters(t, m, reflect.ValueOf(want.Interface()))
	again := kind.New().Interface()
	if err := proto.Unmarshal(m.Interface().(wire.Message).AppendTo(nil), again); err != nil {
		t.Errorf("%s: what was encoded cannot be decoded: %v", desc.FullName(), err)
		return
	}
	if !proto.Equal(want.Interface(), again) {
		t.Errorf("%s: decoded and encoded again\n%v\ndiffers from\n%v", desc.FullName(), again, want)
	}
}

// compareGetters holds what the getters of both say against each other, messages inside included.
func compareGetters(t *testing.T, a, b reflect.Value) {
	t.Helper()
	for i := range a.Type().NumMethod() {
		name := a.Type().Method(i).Name
		if !strings.HasPrefix(name, "Get") {
			continue
		}
		other := b.MethodByName(name)
		if !other.IsValid() {
			t.Errorf("%s.%s: protoc-gen-go makes no such method", a.Type(), name)
			continue
		}
		x, y := a.Method(i).Call(nil)[0], other.Call(nil)[0]
		switch v := x.Interface().(type) {
		case *wire.Timestamp:
			if y := y.Interface().(*timestamppb.Timestamp); !v.AsTime().Equal(y.AsTime()) || (v == nil) != (y == nil) {
				t.Errorf("%s.%s: %v, want %v", a.Type(), name, v, y)
			}
			continue
		case *wire.Duration:
			if y := y.Interface().(*durationpb.Duration); v.AsDuration() != y.AsDuration() || (v == nil) != (y == nil) {
				t.Errorf("%s.%s: %v, want %v", a.Type(), name, v, y)
			}
			continue
		}
		switch {
		case x.Kind() == reflect.Pointer:
			if x.IsNil() != y.IsNil() {
				t.Errorf("%s.%s: nil %v, want %v", a.Type(), name, x.IsNil(), y.IsNil())
			} else {
				compareGetters(t, x, y) // of nil too
			}
		case x.Kind() == reflect.Slice && x.Type().Elem().Kind() == reflect.Pointer, x.Kind() == reflect.Map && x.Type().Elem().Kind() == reflect.Pointer:
			if x.Len() != y.Len() {
				t.Errorf("%s.%s: %d messages, want %d", a.Type(), name, x.Len(), y.Len())
			}
		case fmt.Sprint(x) != fmt.Sprint(y):
			t.Errorf("%s.%s: %v, want %v", a.Type(), name, x, y)
		}
	}
}

// fill sets about half of a message's fields.
func fill(r *rand.Rand, m protoreflect.Message, depth int) {
	if name := m.Descriptor().FullName(); name == "google.protobuf.Timestamp" || name == "google.protobuf.Duration" {
		sign := int64(1)
		if name == "google.protobuf.Duration" && r.IntN(2) == 0 {
			sign = -1
		}
		m.Set(m.Descriptor().Fields().ByName("seconds"), protoreflect.ValueOfInt64(sign*r.Int64N(1<<37)))
		m.Set(m.Descriptor().Fields().ByName("nanos"), protoreflect.ValueOfInt32(int32(sign)*r.Int32N(1e9)))
		return
	}
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		if r.IntN(2) == 0 || depth == 0 && (f.Message() != nil || f.IsMap()) {
			continue
		}
		switch {
		case f.IsMap():
			for range r.IntN(4) {
				v := m.Mutable(f).Map().NewValue()
				if f.MapValue().Message() != nil {
					fill(r, v.Message(), depth-1)
				} else {
					v = scalar(r, f.MapValue())
				}
				m.Mutable(f).Map().Set(scalar(r, f.MapKey()).MapKey(), v)
			}
		case f.IsList():
			for range r.IntN(4) {
				if f.Message() != nil {
					fill(r, m.Mutable(f).List().AppendMutable().Message(), depth-1)
				} else {
					m.Mutable(f).List().Append(scalar(r, f))
				}
			}
		case f.Message() != nil:
			fill(r, m.Mutable(f).Message(), depth-1)
		default:
			m.Set(f, scalar(r, f))
		}
	}
}

func scalar(r *rand.Rand, f protoreflect.FieldDescriptor) protoreflect.Value {
	n := []int64{0, 1, -1, math.MaxInt64, math.MinInt64, r.Int64N(1000)}[r.IntN(6)]
	switch f.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(n&1 == 0)
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(int32(n))
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(n)
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(uint32(n))
	case protoreflect.Uint64Kind:
		return protoreflect.ValueOfUint64(uint64(n))
	case protoreflect.DoubleKind:
		return protoreflect.ValueOfFloat64(float64(n) / 3)
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(f.Enum().Values().Get(r.IntN(f.Enum().Values().Len())).Number())
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes(bytes.Repeat([]byte{0xff}, r.IntN(300)))
	}
	return protoreflect.ValueOfString(strings.Repeat("é", r.IntN(200)))
}

// FuzzMerge: no bytes make a decoder panic; what both decoders accept means the same to both.
func FuzzMerge(f *testing.F) {
	spec := &pb.ContainerSpec{Image: "i", Args: []string{"a", "b"}, Labels: map[string]string{"k": "v"}, OomScoreAdj: proto.Int32(-5), Resources: &pb.Resources{MemoryBytes: 1 << 40}}
	for _, m := range []proto.Message{
		&pb.RunRequest{Message: &pb.RunRequest_Open_{Open: &pb.RunRequest_Open{Spec: spec}}},
		&pb.RunRequest{Message: &pb.RunRequest_Stdin{Stdin: []byte("x")}},
	} {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var lite apiv1.RunRequest
		var want, got pb.RunRequest
		failed := lite.Merge(b)
		if err := (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(b, &want); err != nil || failed != nil {
			return // groups, which only protobuf can skip, and what one checks a field earlier than the other
		}
		if err := proto.Unmarshal(lite.AppendTo(nil), &got); err != nil || !proto.Equal(&got, &want) {
			t.Errorf("%x: %v\n%v\nwant\n%v", b, err, &got, &want)
		}
	})
}

// TestNames asks a real server with every method of every client, and looks at which method it was asked for.
func TestNames(t *testing.T) {
	asked := make(chan string, 1)
	server := grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, s grpc.ServerStream) error {
		name, _ := grpc.MethodFromServerStream(s)
		asked <- name
		return status.Error(codes.Unimplemented, "no")
	}))
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(server.Stop)
	conn := rpc.NewConn(path)
	t.Cleanup(conn.Close)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	eachMethod(t, conn, func(m protoreflect.MethodDescriptor, call reflect.Value) {
		in, _ := types(m, call)
		args := []reflect.Value{reflect.ValueOf(ctx)}
		if !m.IsStreamingClient() {
			args = append(args, reflect.New(in))
		}
		res := call.Call(args)
		err, _ := res[1].Interface().(error)
		if m.IsStreamingClient() || m.IsStreamingServer() {
			err, _ = res[0].MethodByName("Recv").Call(nil)[1].Interface().(error)
		}
		if rpc.CodeOf(err) != rpc.Unimplemented {
			t.Errorf("%s: %v", m.FullName(), err)
		}
		if got, want := <-asked, fmt.Sprintf("/%s/%s", m.Parent().FullName(), m.Name()); got != want {
			t.Errorf("the client of %s calls %s", want, got)
		}
	})
}
