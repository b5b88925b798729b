package backend

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// pulse is what can be seen at one moment of a daemon's process and of our own.
// Another user's process may be hidden from us (hidepid in proc(5), ProtectProc=
// in systemd.exec(5)).
type pulse struct {
	at     time.Time
	waited time.Duration // our threads, for a processor; 0 on kernels without CONFIG_SCHED_INFO

	seen     bool // the daemon's process
	stopped  bool // by a signal
	runnable bool // a thread runs or could run
	used     time.Duration
}

const (
	// lateness is by how much our own timer may be late before we are starved
	// ourselves.
	lateness = 50 * time.Millisecond
	// busy is how long a daemon's threads must have run and waited for a
	// processor, in one window, to be taken for alive. Answering takes less than
	// a millisecond.
	busy = 20 * time.Millisecond
	// crowd is how long our own threads must have waited, in one window, for the
	// machine to be taken for overloaded where the daemon cannot be seen.
	crowd = 100 * time.Millisecond
)

// starved reports whether a daemon that was silent between two looks may have
// lacked processor time rather than hang: it, or we, who could not send the
// question or read the answer.
func starved(before, now pulse) bool {
	if now.stopped {
		return false
	}
	if now.at.Sub(before.at) > window+lateness {
		return true
	}
	if now.seen && before.seen {
		return now.runnable || now.used-before.used >= busy
	}
	return now.waited-before.waited >= crowd
}

// look looks at the process pid, 0 for one that is not known, and at ours.
func look(pid int) pulse {
	p := pulse{at: time.Now()}
	for _, t := range threads("self") {
		_, waited := schedstat(t)
		p.waited += waited
	}
	if pid <= 0 {
		return p
	}
	for _, t := range threads(strconv.Itoa(pid)) {
		ran, waited := schedstat(t)
		p.used += ran + waited
		switch state(t) {
		case 0:
			continue
		case 'R':
			p.runnable = true
		case 'T':
			p.stopped = true // a signal stops all threads
		}
		p.seen = true
	}
	return p
}

func threads(process string) []string {
	paths, _ := filepath.Glob("/proc/" + process + "/task/*")
	return paths
}

// schedstat is how long a thread has run and has waited to run.
func schedstat(thread string) (ran, waited time.Duration) {
	text, err := os.ReadFile(thread + "/schedstat")
	if err == nil {
		fmt.Sscan(string(text), &ran, &waited)
	}
	return ran, waited
}

// state is the letter that proc_pid_stat(5) gives a thread, 0 if it cannot be
// seen.
func state(thread string) byte {
	text, err := os.ReadFile(thread + "/stat")
	if err != nil {
		return 0
	}
	// The name before it, in parentheses, may contain anything.
	if i := bytes.LastIndexByte(text, ')'); i >= 0 && i+2 < len(text) {
		return text[i+2]
	}
	return 0
}
