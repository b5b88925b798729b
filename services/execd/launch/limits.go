package launch

import (
	"slices"

	"golang.org/x/sys/unix"

	"berth/libcontainer"
	apiv1 "berth/proto/berth/api/v1"
)

// rlimits by the names that ulimit and Docker use.
var rlimits = map[string]int{
	"core": unix.RLIMIT_CORE, "cpu": unix.RLIMIT_CPU, "data": unix.RLIMIT_DATA, "fsize": unix.RLIMIT_FSIZE,
	"locks": unix.RLIMIT_LOCKS, "memlock": unix.RLIMIT_MEMLOCK, "msgqueue": unix.RLIMIT_MSGQUEUE,
	"nice": unix.RLIMIT_NICE, "nofile": unix.RLIMIT_NOFILE, "nproc": unix.RLIMIT_NPROC, "rss": unix.RLIMIT_RSS,
	"rtprio": unix.RLIMIT_RTPRIO, "rttime": unix.RLIMIT_RTTIME, "sigpending": unix.RLIMIT_SIGPENDING,
	"stack": unix.RLIMIT_STACK,
}

// infinity is RLIM_INFINITY.
const infinity = ^uint64(0)

// Rlimits are the defaults and the user's on top. The defaults keep within what
// this process may hand on: 1024 descriptors, of which a program may make more
// for itself, and no core files.
func Rlimits(ulimits []*apiv1.Ulimit) ([]libcontainer.Rlimit, error) {
	var own unix.Rlimit
	nofile := libcontainer.Rlimit{Resource: unix.RLIMIT_NOFILE, Soft: 1024, Hard: 524288}
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &own) == nil {
		nofile.Hard = min(nofile.Hard, own.Max)
		nofile.Soft = min(nofile.Soft, nofile.Hard)
	}
	core := libcontainer.Rlimit{Resource: unix.RLIMIT_CORE, Hard: infinity}
	if unix.Getrlimit(unix.RLIMIT_CORE, &own) == nil {
		core.Hard = own.Max
	}
	out := []libcontainer.Rlimit{nofile, core}
	for _, u := range ulimits {
		resource, ok := rlimits[u.Name]
		if !ok {
			return nil, refuse("ULIMIT", "ulimit %q is not known", u.Name)
		}
		if u.Soft < -1 || u.Hard < -1 {
			return nil, refuse("ULIMIT", "ulimit %s: %d:%d is negative", u.Name, u.Soft, u.Hard)
		}
		l := libcontainer.Rlimit{Resource: resource, Soft: uint64(u.Soft), Hard: uint64(u.Hard)} // -1 is infinity
		if l.Soft > l.Hard {
			return nil, refuse("ULIMIT", "ulimit %s: soft limit %d is above the hard one, %d", u.Name, u.Soft, u.Hard)
		}
		out = slices.DeleteFunc(out, func(o libcontainer.Rlimit) bool { return o.Resource == resource })
		out = append(out, l)
	}
	return out, nil
}
