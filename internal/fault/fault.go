// Package fault gives every error that leaves a Berth daemon one of a few
// kinds, a sentence for the user and, where there is a next step, a hint.
//
// A [Kind] is itself an error, so callers branch with errors.Is and never on
// text:
//
//	err := fault.NotFound.Errorf("IMAGE_NOT_FOUND", "no such image: %s", ref).
//		With("image", ref).
//		Hint("pull it with: berth pull %s", ref)
//	...
//	if errors.Is(err, fault.NotFound) { ... }
//
// An error may be wrapped on its way up with fmt.Errorf("…: %w", err): the
// sentence the user reads is the text of the outermost error, the kind, the
// reason, the hint and the metadata are those of the outermost [Error] in the
// chain. Errors that carry no kind are Internal, with the few exceptions named
// at [KindOf].
//
// The package knows nothing of gRPC; its child faultgrpc does.
package fault

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"syscall"
)

// Kind says what sort of failure an error is, as far as a caller can act on it.
type Kind uint8

// The kinds. Their meaning is that of the gRPC code of the same name
// (google.aip.dev/193).
const (
	None               Kind = iota // no error
	Internal                       // a bug or a broken invariant; the kind of errors without one
	NotFound                       // the named thing does not exist
	AlreadyExists                  // the name is taken
	InvalidArgument                // the request is wrong in itself, whatever the state
	FailedPrecondition             // the state forbids it; changing the state first helps, retrying does not
	PermissionDenied               // the caller is known and may not
	Unauthenticated                // the caller (or the registry login) is not known
	Unavailable                    // a daemon or a remote is away; retrying later may help
	ResourceExhausted              // disk, addresses, ports, descriptors or a limit ran out
	DeadlineExceeded               // it took longer than allowed
	Cancelled                      // the caller gave up
	Aborted                        // a concurrent operation won; retrying from the start may help
	Unimplemented                  // this build or this host cannot
	DataLoss                       // stored data is damaged
)

var kindNames = [...]string{
	None:               "no error",
	Internal:           "internal error",
	NotFound:           "not found",
	AlreadyExists:      "already exists",
	InvalidArgument:    "invalid argument",
	FailedPrecondition: "failed precondition",
	PermissionDenied:   "permission denied",
	Unauthenticated:    "unauthenticated",
	Unavailable:        "unavailable",
	ResourceExhausted:  "resource exhausted",
	DeadlineExceeded:   "deadline exceeded",
	Cancelled:          "cancelled",
	Aborted:            "aborted",
	Unimplemented:      "unimplemented",
	DataLoss:           "data loss",
}

// Error makes a Kind usable as the target of errors.Is.
func (k Kind) Error() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Errorf makes an error of kind k. The reason is an UPPER_SNAKE word that
// programs may rely on; format and args, as for fmt.Errorf with %w, are the
// sentence the user reads.
func (k Kind) Errorf(reason, format string, args ...any) *Error {
	return &Error{kind: k, reason: reason, text: fmt.Errorf(format, args...)}
}

// Error is an error with a kind. It is immutable: With and Hint return copies.
type Error struct {
	kind   Kind
	reason string
	hint   string
	meta   map[string]string
	text   error
}

// Error is the sentence for the user.
func (e *Error) Error() string { return e.text.Error() }

// Unwrap leads to what the sentence wrapped with %w.
func (e *Error) Unwrap() error { return errors.Unwrap(e.text) }

// Is reports whether target is the error's kind.
func (e *Error) Is(target error) bool {
	k, ok := target.(Kind)
	return ok && k == e.kind
}

// Kind is never None.
func (e *Error) Kind() Kind { return e.kind }

// Reason is the UPPER_SNAKE word for programs; empty when nobody gave one.
func (e *Error) Reason() string { return e.reason }

// Metadata holds the names that occur in the sentence (key "image", "container", …).
// The caller must not change it.
func (e *Error) Metadata() map[string]string { return e.meta }

// With adds one of the names that occur in the sentence.
func (e *Error) With(key, value string) *Error {
	c := *e
	c.meta = maps.Clone(e.meta)
	if c.meta == nil {
		c.meta = make(map[string]string, 1)
	}
	c.meta[key] = value
	return &c
}

// Hint says what the user can do next, as one sentence in the imperative.
func (e *Error) Hint(format string, args ...any) *Error {
	c := *e
	c.hint = fmt.Sprintf(format, args...)
	return &c
}

// KindOf is the kind of the outermost Error in err's chain. Without one, a
// context's end and the kernel's "no room" answers keep their meaning
// (Cancelled, DeadlineExceeded, ResourceExhausted) and all else is Internal.
// nil is None.
func KindOf(err error) Kind {
	if err == nil {
		return None
	}
	var e *Error
	if errors.As(err, &e) {
		return e.kind
	}
	var k Kind
	if errors.As(err, &k) {
		return k
	}
	switch {
	case errors.Is(err, context.Canceled):
		return Cancelled
	case errors.Is(err, context.DeadlineExceeded):
		return DeadlineExceeded
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT),
		errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		return ResourceExhausted
	}
	return Internal
}

// Is reports whether err is of kind k, counting the kinds that [KindOf] infers.
func Is(err error, k Kind) bool { return KindOf(err) == k }

// ReasonOf is the reason of the outermost Error in err's chain, or empty.
func ReasonOf(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.reason
	}
	return ""
}

// HintOf is the hint nearest to the user in err's chain, or empty.
func HintOf(err error) string {
	for err != nil {
		var e *Error
		if !errors.As(err, &e) {
			return ""
		}
		if e.hint != "" {
			return e.hint
		}
		err = e.Unwrap()
	}
	return ""
}

// MetadataOf is the metadata of the outermost Error in err's chain, or nil.
func MetadataOf(err error) map[string]string {
	var e *Error
	if errors.As(err, &e) {
		return e.meta
	}
	return nil
}
