package user

import (
	"errors"
	"strconv"
)

// The kinds of failure. Each error of this package is one of them by
// errors.Is, or an error of reading the files.
var (
	ErrSyntax  = errors.New("malformed user or group")      // the request itself is wrong
	ErrUnknown = errors.New("unknown user or group")        // no such name in the container
	ErrBadFile = errors.New("unusable user database")       // passwd or group cannot be trusted
	errNoID    = errors.New("not a decimal number")         // of parseID
	errRange   = errors.New("not between 0 and 2147483647") // of parseID
)

var (
	errLongLine      error = &Error{ErrBadFile, "a line is longer than " + strconv.Itoa(maxLine) + " bytes"}
	errTooManyGroups error = &Error{ErrBadFile, "the user is in more than " + strconv.Itoa(maxGroups) + " groups"}
	errTooLarge      error = &Error{ErrBadFile, "larger than " + strconv.Itoa(MaxFile) + " bytes"}
	errTooSlow       error = &Error{ErrBadFile, "not read within " + MaxTime.String()}
	errNotRegular    error = &Error{ErrBadFile, "not a regular file"}
)

// Error is a refusal: its kind and one line for the user.
type Error struct {
	Kind error
	Text string
}

func (e *Error) Error() string { return e.Text }
func (e *Error) Unwrap() error { return e.Kind }

func malformed(what, entry, id string) error {
	return &Error{ErrBadFile, "entry " + strconv.Quote(entry) + " has a malformed " + what + " ID " + strconv.Quote(clip(id))}
}

func syntax(what, s, why string) error {
	return &Error{ErrSyntax, what + " " + strconv.Quote(clip(s)) + " " + why}
}

func unknown(what, name string) error {
	return &Error{ErrUnknown, "no " + what + " " + strconv.Quote(name) + " in the container"}
}

// fileError puts the name of the file before what is wrong with it.
type fileError struct {
	path string
	err  error
}

func (e *fileError) Error() string { return "read " + e.path + " of the container: " + e.err.Error() }
func (e *fileError) Unwrap() error { return e.err }

// clip keeps a stranger's string from filling the terminal.
func clip(s string) string {
	if len(s) > 64 {
		return s[:64] + "…"
	}
	return s
}
