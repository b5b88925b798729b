package libcontainer

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"berth/libcontainer/initproc"
)

// What callers branch on, by errors.Is.
var (
	ErrNotFound      = errors.New("command not found")      // exit status 127 by convention
	ErrNotExecutable = errors.New("command not executable") // exit status 126
	ErrUser          = errors.New("unusable user")          // user or group does not exist in the container
	ErrConfig        = errors.New("invalid configuration")  // refused before anything was made
	ErrUnsupported   = errors.New("not supported by this kernel")
)

// StepError is the error of one step of a launch: "mount proc: permission
// denied".
type StepError struct {
	Step string
	Err  error
}

func (e *StepError) Error() string { return e.Step + ": " + e.Err.Error() }
func (e *StepError) Unwrap() error { return e.Err }

// remote is an error that init had: its text, the errno under it, and the kind
// callers ask for.
type remote struct {
	text  string
	errno unix.Errno
	kind  error
}

func (e *remote) Error() string { return e.text }

func (e *remote) Is(target error) bool {
	return e.kind != nil && target == e.kind
}

func (e *remote) Unwrap() error {
	if e.errno == 0 {
		return nil
	}
	return e.errno
}

func fromFailure(f *initproc.Failure) error {
	err := &remote{text: f.Text, errno: f.Errno}
	switch f.Kind {
	case initproc.KindNotFound:
		err.kind = ErrNotFound
	case initproc.KindNotExecutable:
		err.kind = ErrNotExecutable
	case initproc.KindUser:
		err.kind = ErrUser
	}
	return &StepError{Step: f.Step, Err: err}
}

// fieldError says which field of a Config cannot be.
type fieldError struct {
	field, why string
}

func (e *fieldError) Error() string        { return e.field + ": " + e.why }
func (e *fieldError) Is(target error) bool { return target == ErrConfig }

func refuse(field, format string, args ...any) error {
	return &StepError{Step: "check configuration", Err: &fieldError{field, fmt.Sprintf(format, args...)}}
}
