package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"berth/bench/machine"
)

// engine is one way to pull an image.
type engine struct {
	name     string
	required bool // without it there is nothing to compare
	version  string

	// start begins what must run before a pull, on an empty disk; commands have env added to their environment. What
	// it gives ends that, and may be nil.
	start func(e *engine, disk string) (stop func() error, err error)
	// pull is the command that is timed.
	pull func(e *engine, disk string, i image) []string
	// watch, if not nil, begins to look at memory; what it gives is called after a pull and says what it saw.
	watch func() (end func(m *measurement))
	// cli, if not empty, is the command line that knows Docker's words for what else is timed.
	cli string

	env     []string
	account machine.Account
}

// settle is how long after a pull a daemon counts as idle.
const settle = 3 * time.Second

// measurement is one pull.
type measurement struct {
	wall, cpu  time.Duration // CPU time of client and daemons, not of registry and kernel threads
	peak, idle int64         // bytes of the daemon that pulls and its workers: at most during the pull, and after settle; 0 if not known
}

func (m measurement) text(err error) string {
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("%.2f s, CPU %.2f s", m.wall.Seconds(), m.cpu.Seconds())
}

// measure lets clients, each with the same command, pull an image at the same time on a new disk.
func (e *engine) measure(o options, i image, r *registry, clients int) (m measurement, err error) {
	err = e.onNewDisk(o, func(disk string) error {
		end := func(*measurement) {}
		if e.watch != nil {
			end = e.watch()
		}
		syscall.Sync()
		before := e.account.Used()
		began := time.Now()
		errs := make([]error, clients)
		var all sync.WaitGroup
		for n := range clients {
			all.Go(func() { _, errs[n] = e.do(e.pull(e, disk, i)...) })
		}
		all.Wait()
		m.wall = time.Since(began)
		m.cpu = e.account.Used() - before
		end(&m)
		return errors.Join(errs...)
	})
	return m, err
}

// onNewDisk runs f with the engine just started on a disk of its own.
func (e *engine) onNewDisk(o options, f func(disk string) error) (err error) {
	d, err := newDisk(o.work)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.close()) }()
	if e.account, err = machine.NewAccount("pull"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.account.Close()) }()
	stop, err := e.start(e, d.dir)
	if stop != nil {
		defer func() { err = errors.Join(err, stop()) }()
	}
	if err != nil {
		return err
	}
	return f(d.dir)
}

// do runs a command of the engine, with its output going to a file: a pipe would stay open in helpers left behind.
func (e *engine) do(args ...string) (string, error) {
	out, err := os.CreateTemp("", "bench-pull")
	if err != nil {
		return "", err
	}
	defer os.Remove(out.Name())
	defer out.Close()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = out, out
	if err = e.begin(cmd); err == nil {
		err = cmd.Wait()
	}
	text, _ := os.ReadFile(out.Name())
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(text)))
	}
	return strings.TrimSpace(string(text)), nil
}

// begin starts a command in the engine's account. The thread may join a control group, so it ends with its goroutine.
func (e *engine) begin(cmd *exec.Cmd) error {
	cmd.Env = append(os.Environ(), e.env...)
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := e.account.Enter(cmd)
		if err == nil {
			err = cmd.Start()
		}
		started <- err
	}()
	return <-started
}

// daemon starts a program that runs until stop, and waits until probe succeeds.
func (e *engine) daemon(log string, args, probe []string) (stop func() error, err error) {
	f, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = f, f
	if err := e.begin(cmd); err != nil {
		return nil, err
	}
	stop = func() error {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		late := time.AfterFunc(20*time.Second, func() { _ = cmd.Process.Kill() })
		defer late.Stop()
		_ = cmd.Wait()
		return nil
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if e.version, err = e.do(probe...); err == nil {
			return stop, nil
		}
		if time.Now().After(deadline) {
			text, _ := os.ReadFile(log)
			return stop, fmt.Errorf("%s does not answer: %w\n%s", args[0], err, text)
		}
	}
}
