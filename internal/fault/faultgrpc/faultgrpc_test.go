package faultgrpc_test

import (
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"berth/internal/fault"
	"berth/internal/fault/faultgrpc"
)

func TestRoundTripKeepsEverything(t *testing.T) {
	for k := fault.Internal; k <= fault.DataLoss; k++ {
		in := fmt.Errorf("outer: %w", k.Errorf("SOME_REASON", "inner %d", 7).With("name", "web").Hint("do this"))
		out := faultgrpc.FromError(faultgrpc.ToError(in))
		if fault.KindOf(out) != k || out.Error() != "outer: inner 7" || fault.ReasonOf(out) != "SOME_REASON" ||
			fault.MetadataOf(out)["name"] != "web" || fault.HintOf(out) != "do this" {
			t.Errorf("%v came back as %v %q %q %v %q", k, fault.KindOf(out), out, fault.ReasonOf(out),
				fault.MetadataOf(out), fault.HintOf(out))
		}
		if !errors.Is(out, k) {
			t.Errorf("errors.Is(%v) lost", k)
		}
	}
}

func TestAnotherHopKeepsForeignDetails(t *testing.T) {
	st, err := status.New(codes.Unavailable, "busy").WithDetails(
		&errdetails.RetryInfo{RetryDelay: durationpb.New(time.Second)})
	if err != nil {
		t.Fatal(err)
	}
	wrapped := fmt.Errorf("pull: %w", faultgrpc.FromError(st.Err()))
	again := faultgrpc.ToStatus(wrapped)
	if again.Code() != codes.Unavailable || again.Message() != "pull: busy" {
		t.Errorf("got %v", again)
	}
	if len(again.Details()) != 1 {
		t.Fatalf("details = %v, want the RetryInfo", again.Details())
	}
	if _, ok := again.Details()[0].(*errdetails.RetryInfo); !ok {
		t.Errorf("detail = %T", again.Details()[0])
	}
}

func TestPlainErrors(t *testing.T) {
	if got := faultgrpc.Code(errors.New("x")); got != codes.Internal {
		t.Errorf("plain error = %v, want Internal", got)
	}
	if got := faultgrpc.FromError(io.EOF); got != io.EOF {
		t.Errorf("io.EOF came back as %v", got)
	}
	if faultgrpc.ToError(nil) != nil || faultgrpc.FromError(nil) != nil {
		t.Error("nil did not stay nil")
	}
}
