package monitor

import (
	"os"

	"berth/services/execd/monitor/wire"
)

// Process is one that a Launcher started.
type Process struct {
	Pid int
	// PidFD is negative before Linux 5.3. The monitor closes it.
	PidFD int
	// Terminal is the master, when one was asked for.
	Terminal *os.File
	// Mounts is the mount namespace, if the plan keeps it.
	Mounts *os.File
	// Trace is empty unless asked for; its offsets count from Begun, by
	// clock.Now.
	Begun    int64
	Trace    []wire.Step
	Warnings []string
	// Cgroup is the name of the process's group below the parent, Cgroups are
	// its paths.
	Cgroup  string
	Cgroups []string
}

// Files are a new process's standard streams; nil with a terminal, which the
// launcher makes. They stay the caller's.
type Files struct {
	Stdin, Stdout, Stderr *os.File
}

// Standing is a container that has been built, and waits for its command.
type Standing interface {
	// Start runs it. On failure nothing is left.
	Start(req *wire.Launch, f Files) (*Process, error)
	// Discard ends it. It does nothing after Start.
	Discard()
}

// Launcher makes processes children of this one. It returns once the command
// runs (execve has succeeded) or cannot.
type Launcher interface {
	// Start runs the first process of a container. netns may be nil.
	Start(req *wire.Launch, f Files, netns *os.File) (*Process, error)
	// StandBy builds a container whose command is to come. netns may be nil.
	StandBy(req *wire.Launch, netns *os.File) (Standing, error)
	// Exec runs a further process in the container whose first process is pid;
	// pidfd may be nil.
	Exec(req *wire.Exec, f Files, pid int, pidfd *os.File) (*Process, error)
	// Kill ends all processes in a cgroup.
	Kill(parent, name string) error
	// Ended is told that the first process of the container in a cgroup has ended, and
	// reports whether the kernel killed a process there for memory.
	Ended(parent, name string) (oomKilled bool)
}
