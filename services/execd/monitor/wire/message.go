package wire

import (
	"encoding/json"
	"time"
)

// Version of the protocol. A monitor outlives upgrades of execd, so both sides
// ignore fields they do not know, and a change that this cannot carry gets a
// new number.
const Version = 2

// Op names what a message asks or tells.
type Op string

// Requests of execd; each is answered by a message with the same Op and Seq.
const (
	OpHello      Op = "hello"       // Hello, first message of both sides
	OpLaunch     Op = "launch"      // Launch → Launched with Held's descriptors
	OpStandBy    Op = "stand-by"    // Launch: build the container, and start its command when it is launched
	OpStandDown  Op = "stand-down"  // Target: undo stand-by
	OpExec       Op = "exec"        // Exec → Launched
	OpAttach     Op = "attach"      // Attach, with the stream socket
	OpResize     Op = "resize"      // Resize
	OpSignal     Op = "signal"      // Signal
	OpCloseStdin Op = "close-stdin" // Target
	OpForget     Op = "forget"      // Target: the exit is recorded, drop it
	OpAdopt      Op = "adopt"       // Adopt, with Held's descriptors
	OpReaped     Op = "reaped"      // Reaped: execd waited for an adopted process
	OpQuit       Op = "quit"        // ends a monitor without containers
)

// Events of the monitor, without Seq.
const (
	OpState       Op = "state"        // State, with Held's descriptors: one per container after hello
	OpReady       Op = "ready"        // all states have been sent
	OpExit        Op = "exit"         // Exit
	OpStdinClosed Op = "stdin-closed" // Target: execd must close its copy too
)

// Message is what travels: at most one of the pointers is set, by Op.
type Message struct {
	Op    Op     `json:"op"`
	Seq   uint64 `json:"seq,omitempty"`
	Error *Error `json:"error,omitempty"`

	Hello    *Hello    `json:"hello,omitempty"`
	Launch   *Launch   `json:"launch,omitempty"`
	Exec     *Exec     `json:"exec,omitempty"`
	Launched *Launched `json:"launched,omitempty"`
	Attach   *Attach   `json:"attach,omitempty"`
	Resize   *Resize   `json:"resize,omitempty"`
	Signal   *Signal   `json:"signal,omitempty"`
	Target   *Target   `json:"target,omitempty"`
	State    *State    `json:"state,omitempty"`
	Exit     *Exit     `json:"exit,omitempty"`
	// Position answers Attach: where in the log the client's output begins.
	Position *Position `json:"position,omitempty"`
}

// Error is a failed request.
type Error struct {
	// Code is one of the Code constants.
	Code string `json:"code"`
	Text string `json:"text"`
}

func (e *Error) Error() string { return e.Text }

// What an Error can be.
const (
	CodeInternal      = "internal"
	CodeInvalid       = "invalid"
	CodeNotFound      = "not-found"       // no such container, or it has ended
	CodeNoCommand     = "no-command"      // the command does not exist: 127
	CodeNotExecutable = "not-executable"  // the command cannot be executed: 126
	CodeNoMemory      = "exhausted"       // processes, memory or descriptors ran out
	CodeUnsupported   = "unsupported"     // the kernel cannot
	CodeBusy          = "already-running" // the id runs
	CodeNotStanding   = "not-standing"    // it was not built ahead, or that was given up; nothing happened
)

// Hello opens a connection.
type Hello struct {
	Version int `json:"version"`
	Pid     int `json:"pid"`
	// Build of the binary. Of the same build messages have a compact form.
	Build string `json:"build,omitempty"`
}

// Target names a container, or one of its exec sessions.
type Target struct {
	ID   string `json:"id"`
	Exec string `json:"exec,omitempty"`
}

// Held tells which descriptors accompany a message, in this order: pidfd,
// stdin (write end), stdout, stderr (read ends), terminal (its master). execd
// keeps them as the second copy with which containers survive a monitor.
type Held struct {
	PidFD    bool `json:"pidfd,omitempty"`
	Stdin    bool `json:"stdin,omitempty"`
	Stdout   bool `json:"stdout,omitempty"`
	Stderr   bool `json:"stderr,omitempty"`
	Terminal bool `json:"terminal,omitempty"`
}

// Stdio is how a process's standard streams are connected.
type Stdio struct {
	// Terminal replaces the three pipes by a pseudo-terminal.
	Terminal bool `json:"terminal,omitempty"`
	// Stdin is a pipe that stays open; otherwise /dev/null.
	Stdin bool `json:"stdin,omitempty"`
	// StdinOnce closes stdin when the first client that had it leaves.
	StdinOnce bool `json:"stdin_once,omitempty"`
	// Discard connects stdout and stderr with /dev/null (detached exec).
	Discard bool   `json:"discard,omitempty"`
	Rows    uint16 `json:"rows,omitempty"`
	Columns uint16 `json:"columns,omitempty"`
}

// Log is where a container's output is kept.
type Log struct {
	// Dir is the folder of the log files "log.1", "log.2", …; empty: no log.
	Dir string `json:"dir,omitempty"`
	// MaxBytes after which the next file is begun, and MaxFiles to keep.
	MaxBytes int64 `json:"max_bytes,omitempty"`
	MaxFiles int   `json:"max_files,omitempty"`
}

// Launch starts a container's first process.
type Launch struct {
	ID string `json:"id"`
	// Config is a starter.Plan without the seccomp filter, which is Filter.
	Config json.RawMessage `json:"config,omitempty"`
	Filter []byte          `json:"filter,omitempty"`
	Stdio  Stdio           `json:"stdio"`
	Log    Log             `json:"log"`
	// Dir gets the file "exit" when the container has ended.
	Dir string `json:"dir"`
	// Parent is the cgroup below which the container's own will be.
	Parent string `json:"parent"`
	// Attach connects a client before the process starts; its socket is the
	// last descriptor of the message.
	Attach *Streams `json:"attach,omitempty"`
	// KillAll: the end of the first process does not end the others, because
	// the container has no PID namespace of its own; kill them.
	KillAll bool `json:"kill_all,omitempty"`
	// NetNS says that the first descriptor is the network namespace.
	NetNS bool `json:"netns,omitempty"`
	// Trace asks for the steps of the start.
	Trace bool `json:"trace,omitempty"`
	// Stands says that the container was built ahead (OpStandBy): Config is
	// what is left to do, from starter.Plan.EncodeRest.
	Stands bool `json:"stands,omitempty"`
}

// Exec starts a further process in a container.
type Exec struct {
	ID     string   `json:"id"`
	Exec   string   `json:"exec"`
	Config []byte   `json:"config,omitempty"` // a starter.ExecPlan
	Filter []byte   `json:"filter,omitempty"` // its seccomp filter
	Stdio  Stdio    `json:"stdio"`
	Attach *Streams `json:"attach,omitempty"`
}

// Launched answers Launch and Exec.
type Launched struct {
	Pid       int       `json:"pid"`
	StartedAt time.Time `json:"started_at"`
	// Begun is what the offsets in Trace count from, in nanoseconds of
	// CLOCK_MONOTONIC.
	Begun    int64    `json:"begun,omitempty"`
	Trace    []Step   `json:"-"`
	Warnings []string `json:"warnings,omitempty"`
	// Cgroup is the name of the container's group below the parent, Cgroups are its paths.
	Cgroup  string   `json:"cgroup"`
	Cgroups []string `json:"cgroups,omitempty"`
	Held
}

// Step is one stage of a start.
type Step struct {
	Name     string        `json:"name"`
	Offset   time.Duration `json:"offset"`
	Duration time.Duration `json:"duration"`
}

// Streams are those a client wants.
type Streams struct {
	Stdin  bool `json:"stdin,omitempty"`
	Stdout bool `json:"stdout,omitempty"`
	Stderr bool `json:"stderr,omitempty"`
}

// Attach connects a client to a running container.
type Attach struct {
	Target
	Streams Streams `json:"streams"`
}

// Resize sets the size of a terminal.
type Resize struct {
	Target
	Rows    uint16 `json:"rows"`
	Columns uint16 `json:"columns"`
}

// Signal goes to the first process, or to that of an exec session.
type Signal struct {
	Target
	Number int `json:"number"`
}

// State describes a container to an execd that connects, and to a monitor that
// adopts.
type State struct {
	ID        string    `json:"id"`
	Pid       int       `json:"pid"`
	StartedAt time.Time `json:"started_at"`
	Stdio     Stdio     `json:"stdio"`
	Log       Log       `json:"log"`
	Dir       string    `json:"dir"`
	KillAll   bool      `json:"kill_all,omitempty"`
	Parent    string    `json:"parent"`
	Cgroup    string    `json:"cgroup"`
	Cgroups   []string  `json:"cgroups,omitempty"`
	// Exit is set when it has ended and nobody has asked to forget it.
	Exit  *Exit       `json:"exit,omitempty"`
	Execs []ExecState `json:"execs,omitempty"`
	Held
}

// ExecState is a running exec session.
type ExecState struct {
	Exec string `json:"exec"`
	Pid  int    `json:"pid"`
}

// Exit is how a process ended. It is also the content of the file "exit".
type Exit struct {
	ID   string `json:"id"`
	Exec string `json:"exec,omitempty"`
	// Pid tells one run of a container from another.
	Pid int `json:"pid,omitempty"`
	// Code is 0…255, 128+n after signal n.
	Code   int       `json:"code"`
	OOM    bool      `json:"oom,omitempty"`
	Error  string    `json:"error,omitempty"`
	At     time.Time `json:"at"`
	Status *int      `json:"status,omitempty"`
	// Ran is the time since StartedAt, FirstByte that from there to the first
	// output; 0: there was none, or before a monitor adopted the container.
	Ran       time.Duration `json:"ran,omitempty"`
	FirstByte time.Duration `json:"first_byte,omitempty"`
	// LogDropped counts bytes of output that could not be written to the log.
	LogDropped int64 `json:"log_dropped,omitempty"`
}
