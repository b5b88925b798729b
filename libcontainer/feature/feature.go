// Package feature finds out what the host's kernel can do for containers, by trying.
//
// A version number says little: distributions carry features back by years and switch others off. So each
// [Feature] is tried where a try leaves no trace: with arguments that a kernel which knows the call refuses in
// another way than one that does not, with file systems that are set up and never attached, with a child that
// never comes to life, in a namespace that dies with its thread. The answer is yes, no, or unknown where the
// caller's privileges do not suffice to try; as root nothing should be unknown.
//
// [Probe] takes some ten milliseconds, and importing the package nothing.
package feature

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"berth/libcontainer/cgroup"
)

// State is an answer.
type State int

const (
	Unknown State = iota // could not be tried; Detail says why
	No
	Yes
)

func (s State) String() string { return [...]string{"unknown", "no", "yes"}[s] }

// Feature is one thing a kernel has or has not.
type Feature struct {
	Name   string
	Have   State
	Needed bool   // no container runs without it
	Since  string // the kernel release that brought it; distributions may have it earlier
	Detail string // what was found, or the error that was met
	Lost   string // what one goes without if it is missing
	Do     string // what to do about it
}

// probe tries one feature.
type probe struct {
	Feature
	try func(*host) (State, string)
}

// host is what several probes ask for, found out once.
type host struct {
	dir     string // where file systems are tried
	layout  cgroup.Layout
	layoutE error
	root    bool // effective CAP_SYS_ADMIN
}

// Probe tries everything. dir is the directory the engine keeps its data in, or will: overlays and idmapped
// mounts depend on its file system. As long as it does not exist, the directory it will be made in is taken.
func Probe(dir string) []Feature {
	for dir = filepath.Join("/", dir); !isDir(dir); {
		dir = filepath.Dir(dir)
	}
	h := &host{dir: dir, root: hasCapability(unix.CAP_SYS_ADMIN)}
	h.layout, h.layoutE = cgroup.Detect()
	var all []Feature
	for _, group := range [][]probe{basics(), namespaces(), filesystems(), processes(), cgroups(), network(), security()} {
		for _, p := range group {
			p.Have, p.Detail = p.try(h)
			all = append(all, p.Feature)
		}
	}
	return all
}

// verdict reads the outcome of a try that ought to have worked.
func verdict(err error) (State, string) {
	switch {
	case err == nil:
		return Yes, ""
	case errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES):
		return Unknown, asRoot(err)
	case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE), errors.Is(err, unix.ENOMEM), errors.Is(err, unix.EAGAIN):
		return Unknown, err.Error()
	}
	return No, err.Error()
}

// known reads the outcome of a call made with arguments that cannot work: whatever the complaint, a kernel
// that complains knows the call. A seccomp filter around us may answer in its stead, mostly with EPERM.
func known(err error) (State, string) {
	switch {
	case errors.Is(err, unix.ENOSYS):
		return No, err.Error()
	case errors.Is(err, unix.EPERM):
		return Unknown, asRoot(err)
	}
	return Yes, ""
}

// asRoot adds a hint to an error that root might not have met.
func asRoot(err error) string {
	if os.Geteuid() == 0 {
		return err.Error()
	}
	return err.Error() + "; ask again as root"
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// exists answers by a path.
func exists(path string) (State, string) {
	_, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return No, "no " + path
	}
	return verdict(err)
}

// firstLine reads a small file of proc or sys; "" if it cannot.
func firstLine(path string) string {
	b, _ := os.ReadFile(path)
	line, _, _ := strings.Cut(string(b), "\n")
	return strings.TrimSpace(line)
}

// elsewhere runs f on a thread that is thrown away afterwards, with the namespaces that f has unshared.
func elsewhere(f func() error) error {
	var result error
	_ = cgroup.OnThread(func() error {
		result = f()
		return errThrowAway
	})
	return result
}

var errThrowAway = errors.New("thread is not used again")
