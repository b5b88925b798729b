package cgroup

import (
	"errors"
	"fmt"
)

// The kinds of failure a caller may branch on, with errors.Is.
var (
	// ErrNotAvailable: this host has no means to do what was asked; see [NotAvailableError].
	ErrNotAvailable = errors.New("not available on this host")
	// ErrInvalid: a limit that no kernel would accept; see [FieldError].
	ErrInvalid = errors.New("invalid limit")
	// ErrExists: a group of this name is there already. Nothing was changed.
	ErrExists = errors.New("group exists")
	// ErrNotFound: there is no group of this name.
	ErrNotFound = errors.New("no such group")
	// ErrBusy: processes are in the way, or use more than the new limit.
	ErrBusy = errors.New("group is busy")
)

// NotAvailableError says which controller a request would have needed, and what to do about it.
type NotAvailableError struct {
	Controller string // "memory", "devices", ...; "cgroup" for all of it
	Field      string // the request, as in [FieldError]; may be empty
	Reason     string // what is wrong, and what to do
}

func (e *NotAvailableError) Error() string {
	if e.Field == "" {
		return fmt.Sprintf("cgroup controller %s: %s", e.Controller, e.Reason)
	}
	return fmt.Sprintf("%s needs the cgroup controller %s: %s", e.Field, e.Controller, e.Reason)
}

func (e *NotAvailableError) Is(target error) bool { return target == ErrNotAvailable }

// FieldError names a field of [Resources] whose value cannot be.
type FieldError struct {
	Field  string // "memory.limit", "cpu.quota", ...
	Value  string
	Reason string
}

func (e *FieldError) Error() string { return fmt.Sprintf("%s %s: %s", e.Field, e.Value, e.Reason) }

func (e *FieldError) Is(target error) bool { return target == ErrInvalid }

// wrapped pairs one of the kinds above with the failed call.
type wrapped struct {
	kind error
	what string
	err  error
}

func (e *wrapped) Error() string {
	if e.err == nil {
		return e.what
	}
	return e.what + ": " + e.err.Error()
}

func (e *wrapped) Is(target error) bool { return target == e.kind }
func (e *wrapped) Unwrap() error        { return e.err }
