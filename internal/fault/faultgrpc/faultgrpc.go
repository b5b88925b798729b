// Package faultgrpc carries faults over gRPC without loss: the kind as the
// status code, the sentence as the message, reason and metadata as a
// google.rpc.ErrorInfo of domain "berth", the hint as that ErrorInfo's metadata
// "hint". Clients in other languages read the same.
package faultgrpc

import (
	"context"
	"errors"
	"maps"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"

	"berth/internal/fault"
)

// Domain is the ErrorInfo domain of every Berth error.
const Domain = "berth"

// HintKey is the ErrorInfo metadata key of the hint.
const HintKey = "hint"

var codeOf = map[fault.Kind]codes.Code{
	fault.None:               codes.OK,
	fault.Internal:           codes.Internal,
	fault.NotFound:           codes.NotFound,
	fault.AlreadyExists:      codes.AlreadyExists,
	fault.InvalidArgument:    codes.InvalidArgument,
	fault.FailedPrecondition: codes.FailedPrecondition,
	fault.PermissionDenied:   codes.PermissionDenied,
	fault.Unauthenticated:    codes.Unauthenticated,
	fault.Unavailable:        codes.Unavailable,
	fault.ResourceExhausted:  codes.ResourceExhausted,
	fault.DeadlineExceeded:   codes.DeadlineExceeded,
	fault.Cancelled:          codes.Canceled,
	fault.Aborted:            codes.Aborted,
	fault.Unimplemented:      codes.Unimplemented,
	fault.DataLoss:           codes.DataLoss,
}

var kindOf = func() map[codes.Code]fault.Kind {
	m := make(map[codes.Code]fault.Kind, len(codeOf)+2)
	for k, c := range codeOf {
		m[c] = k
	}
	m[codes.Unknown] = fault.Internal
	m[codes.OutOfRange] = fault.InvalidArgument
	return m
}()

// Code is the status code of err: that of a status it already is, else that of its kind.
func Code(err error) codes.Code { return ToStatus(err).Code() }

// ToStatus is err as it goes over the wire. An error that came from the wire
// keeps the details this package does not know. nil is nil.
func ToStatus(err error) *status.Status {
	if err == nil {
		return nil
	}
	var known *fault.Error
	var remote *remoteError
	if !errors.As(err, &known) && !errors.As(err, &remote) {
		if st, ok := status.FromError(err); ok {
			return st
		}
	}
	st := status.New(codeOf[fault.KindOf(err)], err.Error())
	if st.Code() == codes.OK { // a kind this build does not know
		st = status.New(codes.Internal, err.Error())
	}
	details := make([]protoadapt.MessageV1, 0, 4)
	reason, meta, hint := fault.ReasonOf(err), maps.Clone(fault.MetadataOf(err)), fault.HintOf(err)
	if hint != "" {
		if meta == nil {
			meta = make(map[string]string, 1)
		}
		meta[HintKey] = hint
	}
	if reason != "" || len(meta) > 0 {
		details = append(details, &errdetails.ErrorInfo{Reason: reason, Domain: Domain, Metadata: meta})
	}
	if errors.As(err, &remote) {
		for _, d := range remote.st.Details() {
			switch m := d.(type) {
			case *errdetails.ErrorInfo:
			case protoadapt.MessageV1:
				details = append(details, m)
			}
		}
	}
	if len(details) == 0 {
		return st
	}
	if with, err := st.WithDetails(details...); err == nil {
		return with
	}
	return st
}

// ToError is ToStatus as an error, for the return statement of a handler.
func ToError(err error) error {
	if err == nil {
		return nil
	}
	return ToStatus(err).Err()
}

// FromError turns what a gRPC call returned into a fault. io.EOF, faults and
// other errors that are no status come back as they are; nil is nil.
func FromError(err error) error {
	if err == nil {
		return nil
	}
	var known *fault.Error
	if errors.As(err, &known) {
		return err
	}
	st, ok := status.FromError(err)
	if !ok || st.Code() == codes.OK {
		return err
	}
	kind, ok := kindOf[st.Code()]
	if !ok {
		kind = fault.Internal
	}
	var reason, hint string
	var meta map[string]string
	for _, d := range st.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			reason, hint, meta = info.Reason, info.Metadata[HintKey], info.Metadata
		}
	}
	e := kind.Errorf(reason, "%w", &remoteError{st})
	for k, v := range meta {
		if k != HintKey {
			e = e.With(k, v)
		}
	}
	if hint != "" {
		e = e.Hint("%s", hint)
	}
	return e
}

// remoteError keeps the status that a fault was made from.
type remoteError struct{ st *status.Status }

func (e *remoteError) Error() string { return e.st.Message() }

// UnaryServer maps the errors of unary handlers to statuses.
func UnaryServer(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	resp, err := next(ctx, req)
	return resp, ToError(err)
}

// StreamServer maps the errors of streaming handlers to statuses.
func StreamServer(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	return ToError(next(srv, ss))
}

// UnaryClient maps the statuses of unary calls back to faults.
func UnaryClient(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, next grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	return FromError(next(ctx, method, req, reply, cc, opts...))
}

// StreamClient maps the statuses of streams back to faults.
func StreamClient(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, next grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	s, err := next(ctx, desc, cc, method, opts...)
	if err != nil {
		return nil, FromError(err)
	}
	return &clientStream{s}, nil
}

type clientStream struct{ grpc.ClientStream }

func (s *clientStream) Header() (metadata.MD, error) {
	md, err := s.ClientStream.Header()
	return md, FromError(err)
}

func (s *clientStream) CloseSend() error    { return FromError(s.ClientStream.CloseSend()) }
func (s *clientStream) SendMsg(m any) error { return FromError(s.ClientStream.SendMsg(m)) }
func (s *clientStream) RecvMsg(m any) error { return FromError(s.ClientStream.RecvMsg(m)) }
