// Package version says which build this is. The linker fills it in:
//
//	go build -ldflags "-X berth/internal/version.number=1.2.3 -X berth/internal/version.commit=0123abcd"
package version

import (
	"fmt"
	"runtime"
)

var (
	number = "dev"
	commit = ""
)

// Number is the release, such as "1.2.3", or "dev".
func Number() string { return number }

// Commit is the revision the build was made from, or empty.
func Commit() string { return commit }

// String is one line for people: number, commit, Go version, platform.
func String() string {
	s := number
	if commit != "" {
		s += " (" + commit + ")"
	}
	return fmt.Sprintf("%s %s %s/%s", s, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}
