package initproc

import (
	"golang.org/x/sys/unix"

	"berth/libcontainer/caps"
	"berth/libcontainer/internal/wire"
	"berth/libcontainer/mount"
)

// Socket is the number of the descriptor that init talks over; the three
// before it are the command's.
const Socket = 3

// runner is the state of one setup.
type runner struct {
	setup    *Setup
	fds      []int // that came with the setup
	proc     procfs
	builder  *mount.Builder
	report   Report
	root     *mount.Tree         // the container's root, until pivot_root
	early    map[int]*mount.Tree // mounts that were copied before propagation ended, by index
	slave    bool                // copies of the host's mounts follow the host
	rootFD   int                 // O_PATH of it, to the end
	devpts   int                 // O_PATH of the container's devpts, -1 if it has none
	null     int                 // O_PATH of the engine's own null device
	dirMask  *mount.Tree         // the read-only tmpfs that hides directories
	master   int                 // of the terminal, -1 without
	std      [3]int              // the command's descriptors
	apart    bool                // by a thread of the launcher, for a child of it (Program)
	identity identity
	bounding caps.Set // what the launcher can hand on
	stock    *stocked // what was made ahead, nil: nothing
	stocking *stocked // while it is being made
	resident int      // file for the program of a resident init
	confined bool     // the session keyring is made, the bounding set lowered and the filter loaded
}

// Main is the whole program. It returns only by the end of the process.
//
// Namespaces, credentials and seccomp filters belong to threads, and the first
// thread is the one to keep: it is the process in the eyes of /proc/self, and
// its cgroup is the container's. So Main is to be called from an init function:
// while a program initialises, its first goroutine is locked to the first
// thread (package runtime, LockOSThread), without the further thread that
// locking it later would cost.
func Main() {
	r := &runner{rootFD: -1, devpts: -1, null: -1, master: -1, std: [3]int{0, 1, 2}, proc: procfs{-1}}
	err := r.run()
	r.report.Failure = failure(err)
	r.report.Console, r.report.Mounts = false, false
	Send(Socket, r.report.encode())
	unix.Exit(exitFailed)
}

// exitFailed is the exit status of an init that did not become the command.
// The launcher has the report and does not look at it.
const exitFailed = 125

func (r *runner) run() error {
	if err := r.begin(); err != nil {
		return err
	}
	if r.setup.Exec {
		if err := r.enter(); err != nil {
			return err
		}
	} else if err := r.build(); err != nil {
		return err
	}
	if r.setup.Hold {
		if err := r.hold(); err != nil {
			return err
		}
	}
	return r.become()
}

// hold says that the container stands, and waits for the command.
func (r *runner) hold() error {
	built := r.setup
	if built.ConfineEarly {
		if err := r.confineEarly(); err != nil {
			return err
		}
	}
	if err := Send(Socket, new(Report).encode()); err != nil {
		return &stepError{step: "report", err: err}
	}
	if err := r.step("receive setup", r.receive); err != nil {
		return err
	}
	built.Command, r.setup = r.setup.Command, built
	return nil
}

// begin makes the process unobservable and reads what it is to do. An init that
// waits may first be told what to make ahead.
func (r *runner) begin() error {
	started := now()
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return &stepError{step: "make undumpable", err: err}
	}
	if err := closeOnExec(Socket, false); err != nil {
		return &stepError{step: "close descriptors at exec", err: err}
	}
	unix.Umask(0) // modes below are meant as written
	if err := heedSignals(); err != nil {
		return &stepError{step: "reset signals", err: err}
	}
	r.report.Steps = append(make([]Step, 0, 64), Step{"shut off", started, now()})
	if err := r.step("receive setup", r.receive); err != nil {
		return err
	}
	if r.setup.Force&ForceCloseRange != 0 {
		if err := closeOnExec(Socket, true); err != nil {
			return &stepError{step: "close descriptors at exec", err: err}
		}
	}
	r.builder = mount.NewBuilder(r.setup.Force&ForceMount != 0)
	err := r.step("open proc", func() (err error) {
		r.proc, err = openProcfs()
		return err
	})
	if err != nil || !r.setup.Ahead {
		return err
	}
	r.stockUp()
	if r.setup.Pinned {
		AllProcessors() // its own may be busy when the container comes
	}
	return r.step("receive setup", r.receive)
}

// receive reads the setup and takes its descriptors.
func (r *runner) receive() error {
	message, fds, err := Receive(Socket)
	if err != nil {
		return err
	}
	if message == nil {
		unix.Exit(exitFailed) // the launcher changed its mind
	}
	if r.setup, err = DecodeSetup(message); err != nil || r.setup.Ahead {
		return err
	}
	r.fds = fds
	if len(fds) < 3 {
		return wire.ErrMalformed
	}
	for fd, from := range fds[:3] {
		if err := unix.Dup3(from, fd, 0); err != nil {
			return err
		}
	}
	return nil
}

// fd is a descriptor of the setup, by its place in the list; -1 if it has none.
func (r *runner) fd(i int) int {
	if i < 0 || i >= len(r.fds) {
		return -1
	}
	return r.fds[i]
}

// step runs one step, notes how long it took, and gives its error a name.
func (r *runner) step(name string, do func() error) error {
	start := now()
	err := do()
	r.report.Steps = append(r.report.Steps, Step{name, start, now()})
	if err != nil {
		return named(name, err)
	}
	return nil
}

// named makes err the error of a step, unless it has a more precise name.
func named(step string, err error) error {
	if _, ok := err.(*stepError); ok {
		return err
	}
	return &stepError{step: step, err: err}
}

func (r *runner) warn(text string) { r.report.Warnings = append(r.report.Warnings, text) }

func now() int64 {
	var t unix.Timespec
	unix.ClockGettime(unix.CLOCK_MONOTONIC, &t)
	return t.Nano()
}
