package rpc

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"berth/cli/wire"
)

// Code is a gRPC status code, https://grpc.io/docs/guides/status-codes/.
type Code uint32

// The codes.
const (
	OK Code = iota
	Canceled
	Unknown
	InvalidArgument
	DeadlineExceeded
	NotFound
	AlreadyExists
	PermissionDenied
	ResourceExhausted
	FailedPrecondition
	Aborted
	OutOfRange
	Unimplemented
	Internal
	Unavailable
	DataLoss
	Unauthenticated
)

// Status is how a call failed. Every error of a call is one, save io.EOF, the end of a stream.
type Status struct {
	Code    Code
	Message string
	// Reason, Domain and Metadata are those of the google.rpc.ErrorInfo among the status's details, if there is one.
	Reason   string
	Domain   string
	Metadata map[string]string
	// Cause is the error of the connection, when that is why the call failed.
	Cause error
}

// Error implements error.
func (s *Status) Error() string { return fmt.Sprintf("rpc: code %d: %s", s.Code, s.Message) }

// Unwrap returns Cause.
func (s *Status) Unwrap() error { return s.Cause }

func statusf(code Code, format string, args ...any) *Status {
	return &Status{Code: code, Message: fmt.Sprintf(format, args...)}
}

// CodeOf is the code of the Status in err, OK for nil, Unknown for another error.
func CodeOf(err error) Code {
	if err == nil {
		return OK
	}
	var s *Status
	if errors.As(err, &s) {
		return s.Code
	}
	return Unknown
}

// statusFromTrailer reads grpc-status, grpc-message and grpc-status-details-bin; nil means OK.
func statusFromTrailer(md Metadata) *Status {
	text := md.Get("grpc-status")
	n, err := strconv.ParseUint(text, 10, 32)
	if err != nil {
		return statusf(Internal, "the call ended with grpc-status %q", text)
	}
	if n == 0 {
		return nil
	}
	s := &Status{Code: Code(n), Message: percentDecoded(md.Get("grpc-message"))}
	if d := md.Get("grpc-status-details-bin"); d != "" {
		// Details that cannot be read are left out: the code and the sentence tell enough.
		if b, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(d, "=")); err == nil {
			_ = s.mergeDetails(b)
		}
	}
	return s
}

// mergeDetails reads what the encoding of a google.rpc.Status adds to the trailer's other fields: its ErrorInfo.
func (s *Status) mergeDetails(b []byte) error {
	d := wire.NewDecoder(b)
	for d.Next() {
		if d.Key == 3<<3|wire.Bytes { // repeated google.protobuf.Any details
			var any anyMessage
			d.Message(&any)
			if strings.HasSuffix(any.url, "/google.rpc.ErrorInfo") {
				d.Fail((*errorInfo)(s).merge(any.value))
			}
		}
	}
	return d.Err()
}

// anyMessage is google.protobuf.Any.
type anyMessage struct {
	url   string
	value []byte
}

func (a *anyMessage) AppendTo(b []byte) []byte {
	return wire.AppendBytes(wire.AppendBytes(b, 1, a.url), 2, a.value)
}

func (a *anyMessage) Merge(b []byte) error {
	d := wire.NewDecoder(b)
	for d.Next() {
		switch d.Key {
		case 1<<3 | wire.Bytes:
			a.url = d.String()
		case 2<<3 | wire.Bytes:
			a.value = d.Bytes()
		}
	}
	return d.Err()
}

// errorInfo decodes google.rpc.ErrorInfo into a Status.
type errorInfo Status

func (e *errorInfo) merge(b []byte) error {
	d := wire.NewDecoder(b)
	for d.Next() {
		switch d.Key {
		case 1<<3 | wire.Bytes:
			e.Reason = d.String()
		case 2<<3 | wire.Bytes:
			e.Domain = d.String()
		case 3<<3 | wire.Bytes:
			var key, value string
			entry := d.Entry()
			for entry.Next() {
				switch entry.Key {
				case 1<<3 | wire.Bytes:
					key = entry.String()
				case 2<<3 | wire.Bytes:
					value = entry.String()
				}
			}
			d.Fail(entry.Err())
			if e.Metadata == nil {
				e.Metadata = map[string]string{}
			}
			e.Metadata[key] = value
		}
	}
	return d.Err()
}

// percentDecoded undoes the encoding of grpc-message; what is not well encoded stays as it is.
func percentDecoded(s string) string {
	if !strings.Contains(s, "%") {
		return s
	}
	var out strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+3], 16, 8); err == nil {
				out.WriteByte(byte(n))
				i += 2
				continue
			}
		}
		out.WriteByte(s[i])
	}
	return out.String()
}

// statusFromReset is what a RST_STREAM of the server means to the caller.
func statusFromReset(code uint32) *Status {
	c := Internal
	switch code {
	case codeRefusedStream:
		c = Unavailable
	case codeCancel:
		c = Canceled
	case codeEnhanceYour:
		c = ResourceExhausted
	case codeInadequateSafe:
		c = PermissionDenied
	}
	return statusf(c, "the engine ended the call with HTTP/2 error code %d", code)
}
