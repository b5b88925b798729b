package launch

import (
	"path"
	"strings"

	"berth/internal/fault"
	apiv1 "berth/proto/berth/api/v1"
)

// DefaultPath is the PATH of a command whose image does not set one.
const DefaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Args merges entrypoint and arguments as Docker does: arguments replace the
// image's command; an entrypoint replaces the image's and makes its command
// void; one empty string as entrypoint clears it.
func Args(spec *apiv1.ContainerSpec, image *apiv1.ImageConfig) ([]string, error) {
	entrypoint, cmd := image.GetEntrypoint(), image.GetCmd()
	if len(spec.Entrypoint) > 0 {
		entrypoint, cmd = spec.Entrypoint, nil
		if len(entrypoint) == 1 && entrypoint[0] == "" {
			entrypoint = nil
		}
	}
	if len(spec.Args) > 0 {
		cmd = spec.Args
	}
	args := append(append([]string{}, entrypoint...), cmd...)
	if len(args) == 0 {
		return nil, fault.InvalidArgument.Errorf("NO_COMMAND", "no command: neither the request nor the image names one").
			Hint("give a command after the image")
	}
	if args[0] == "" {
		return nil, fault.InvalidArgument.Errorf("NO_COMMAND", "the command is empty")
	}
	return args, nil
}

// Env merges the environment: Berth's own, then the image's, then the user's;
// the last value of a key wins, at the place of the first. A user's "KEY"
// without a value takes the variable away.
func Env(spec *apiv1.ContainerSpec, image *apiv1.ImageConfig, hostname string) ([]string, error) {
	e := newEnviron("PATH="+DefaultPath, "HOSTNAME="+hostname)
	if spec.Tty {
		e.set("TERM=xterm")
	}
	for _, v := range image.GetEnv() {
		if strings.Contains(v, "=") {
			e.set(v)
		}
	}
	if err := e.user(spec.Env); err != nil {
		return nil, err
	}
	return e.list(), nil
}

// ExecEnv is the environment of a further process: the container's, with the
// user's on top.
func ExecEnv(container, user []string, tty bool) ([]string, error) {
	e := newEnviron(container...)
	if tty && e.at["TERM"] == 0 {
		e.set("TERM=xterm")
	}
	if err := e.user(user); err != nil {
		return nil, err
	}
	return e.list(), nil
}

// environ is an ordered set of variables. at holds indices from 1 on.
type environ struct {
	vars []string
	at   map[string]int
}

func newEnviron(vars ...string) *environ {
	e := &environ{at: make(map[string]int)}
	for _, v := range vars {
		e.set(v)
	}
	return e
}

func (e *environ) set(v string) {
	key, _, _ := strings.Cut(v, "=")
	if i := e.at[key]; i > 0 {
		e.vars[i-1] = v
		return
	}
	e.vars = append(e.vars, v)
	e.at[key] = len(e.vars)
}

func (e *environ) user(vars []string) error {
	for _, v := range vars {
		key, _, hasValue := strings.Cut(v, "=")
		switch {
		case key == "" || strings.ContainsRune(v, 0):
			return fault.InvalidArgument.Errorf("ENV", "environment variable %.80q is malformed", v)
		case hasValue:
			e.set(v)
		case e.at[key] > 0:
			e.vars[e.at[key]-1] = ""
			delete(e.at, key)
		}
	}
	return nil
}

func (e *environ) list() []string {
	out := make([]string, 0, len(e.vars))
	for _, v := range e.vars {
		if v != "" {
			out = append(out, v)
		}
	}
	return out
}

// Cwd is the working directory: the user's, the image's, or the root.
func Cwd(spec *apiv1.ContainerSpec, image *apiv1.ImageConfig) (string, error) {
	dir := spec.WorkingDir
	if dir == "" {
		dir = image.GetWorkingDir()
		if dir != "" && !path.IsAbs(dir) {
			dir = "/" + dir // images may have "app"; Docker takes it as from the root
		}
	}
	if dir == "" {
		return "/", nil
	}
	if !path.IsAbs(dir) || strings.ContainsRune(dir, 0) {
		return "", fault.InvalidArgument.Errorf("WORKING_DIR", "working directory %q is not an absolute path", dir)
	}
	return path.Clean(dir), nil
}

// User is as whom the command runs, for libcontainer to resolve.
func User(spec *apiv1.ContainerSpec, image *apiv1.ImageConfig) string {
	if spec.User != "" {
		return spec.User
	}
	return image.GetUser()
}

// Hostname is the container's name for itself: 12 digits of its id, unless asked
// for. One that shares the host's network or UTS namespace has the host's.
func Hostname(spec *apiv1.ContainerSpec, id string) (string, error) {
	if spec.Hostname == "" {
		return id[:12], nil
	}
	const maxLen = 64 // __NEW_UTS_LEN, uname(2)
	if len(spec.Hostname) > maxLen || strings.ContainsAny(spec.Hostname, "\x00\n /") {
		return "", fault.InvalidArgument.Errorf("HOSTNAME", "hostname %.80q is longer than %d bytes or malformed", spec.Hostname, maxLen)
	}
	return spec.Hostname, nil
}
