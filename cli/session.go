package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"berth/cli/apiv1"
	"berth/cli/term"
)

// sender is the client's half of Run, Attach or Exec.
type sender interface {
	stdin([]byte) error
	resize(*apiv1.TerminalSize) error
	signal(name string) error
}

// session connects this process's stdio, terminal and signals with a container's.
type session struct {
	mu       sync.Mutex // gRPC streams allow one sender at a time
	to       sender
	tty      bool
	takeIn   bool
	keys     []byte
	begun    atomic.Bool
	undo     []func()
	detached chan struct{}
}

func newSession(to sender, tty, stdin bool, keys []byte) *session {
	return &session{to: to, tty: tty, takeIn: stdin, keys: keys, detached: make(chan struct{})}
}

// begin starts to pass on input and terminal size, and what [session.catchSignals] caught.
func (s *session) begin() error {
	s.begun.Store(true)
	isTerminal := term.IsTerminal(os.Stdin)
	if s.tty && s.takeIn && isTerminal {
		restore, err := term.Raw(os.Stdin)
		if err != nil {
			return err
		}
		s.undo = append(s.undo, restore)
		s.restoreWhenKilled()
	}
	if s.tty && term.IsTerminal(os.Stdout) {
		s.resize(term.Size(os.Stdout))
		term.Resizes(os.Stdout, s.resize)
	}
	if s.takeIn {
		go s.copyInput()
	}
	return nil
}

func (s *session) copyInput() {
	var keys []byte
	if s.tty {
		keys = s.keys
	}
	in := term.NewDetachReader(os.Stdin, keys)
	buf := make([]byte, 32<<10)
	for {
		n, err := in.Read(buf)
		if n > 0 && s.send(func() error { return s.to.stdin(buf[:n]) }) != nil {
			return
		}
		if errors.Is(err, term.ErrDetached) {
			close(s.detached)
			s.close()
			fmt.Fprintln(os.Stderr, "read escape sequence")
			os.Exit(0)
		}
		if err != nil {
			_ = s.send(func() error { return s.to.stdin(nil) })
			return
		}
	}
}

func (s *session) resize(rows, columns uint32) {
	if rows == 0 || columns == 0 {
		return
	}
	_ = s.send(func() error { return s.to.resize(&apiv1.TerminalSize{Rows: rows, Columns: columns}) })
}

// restoreWhenKilled gives the terminal back its mode when this process is asked to end. In raw mode the keyboard sends
// no signals; what comes is from elsewhere and means this process, as with Docker.
func (s *session) restoreWhenKilled() {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGHUP, syscall.SIGTERM)
	go func() {
		sig := <-c
		s.close()
		if n, ok := sig.(syscall.Signal); ok {
			os.Exit(128 + int(n))
		}
	}()
}

// catchSignals passes on what a user or a supervisor sends to this process. SIGCHLD, SIGPIPE, SIGURG (Go's own) and
// the terminal's job control stay here, and all of them if there is a terminal: its keyboard sends bytes. Until
// [session.begin] there is nobody to pass them on to: they do to this process what they would without us.
//
// Go takes up to 0.1 ms for each signal, in a thread of its own. Call it while the engine works on the request. They are
// never given back, which would take as long again: the process ends with the session.
func (s *session) catchSignals() {
	if s.tty {
		return
	}
	c := make(chan os.Signal, 16)
	signal.Notify(c, syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGALRM, syscall.SIGCONT)
	go func() {
		for sig := range c {
			n, ok := sig.(syscall.Signal)
			switch {
			case !ok:
			case s.begun.Load():
				_ = s.send(func() error { return s.to.signal(unix.SignalName(n)) })
			case n != syscall.SIGCONT:
				signal.Reset(n)
				_ = syscall.Kill(os.Getpid(), n)
			}
		}
	}()
}

func (s *session) send(f func() error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return f()
}

func (s *session) output(o *apiv1.OutputChunk) {
	w := os.Stdout
	if o.GetStream() == apiv1.OutputChunk_STREAM_STDERR {
		w = os.Stderr
	}
	_, _ = w.Write(o.GetData())
}

// exited turns the container's status into this process's.
func (s *session) exited(x *apiv1.ExitStatus) error {
	s.close()
	if x.GetError() != "" {
		return &userError{text: x.GetError(), code: int(x.GetCode())}
	}
	if x.GetCode() != 0 {
		return exitCode(x.GetCode())
	}
	return nil
}

// end is for a stream that ended without an exit status.
func (s *session) end(err error) error {
	s.close()
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

func (s *session) close() {
	for i := len(s.undo) - 1; i >= 0; i-- {
		s.undo[i]()
	}
	s.undo = nil
}
