package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"

	"berth/bench/machine"
)

// peer is a program under test: its commands, and how to end it.
type peer struct {
	name       string
	version    string
	required   bool // without it there is nothing to compare
	charge     machine.Account
	contenders []*contender
	stop       []func() error // in reverse order
}

func newPeer(name string) (*peer, error) {
	charge, err := machine.NewAccount(name)
	return &peer{name: name, charge: charge}, err
}

// add gives the peer a contender.
func (p *peer) add(group, name string, env []string, args ...string) {
	p.contenders = append(p.contenders, &contender{group: group, name: name, args: args, env: env, charge: p.charge})
}

func (p *peer) atEnd(f func() error) { p.stop = append(p.stop, f) }

func (p *peer) close() (err error) {
	for i := len(p.stop) - 1; i >= 0; i-- {
		err = errors.Join(err, p.stop[i]())
	}
	return errors.Join(err, p.charge.Close())
}

// do runs a command of the peer to its end, and gives its output.
func (p *peer) do(env []string, args ...string) (string, error) {
	out, err := os.CreateTemp("", "bench-launch")
	if err != nil {
		return "", err
	}
	defer os.Remove(out.Name())
	defer out.Close()
	c := contender{args: args, env: env, charge: p.charge}
	_, err = c.once(out)
	text, _ := os.ReadFile(out.Name())
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(text)))
	}
	return strings.TrimSpace(string(text)), nil
}

// all runs several, up to the first that fails.
func (p *peer) all(env []string, commands ...[]string) error {
	for _, c := range commands {
		if _, err := p.do(env, c...); err != nil {
			return err
		}
	}
	return nil
}

// The groups of contenders, each timed for itself. Ratios are to the reference.
var groups = []group{
	{"run", "Run `true` in a new container and remove it", "crun, bare bundle"},
	{"exec", "Run `true` in a running container", "crun exec"},
	{"client", "Ask", "berth version"},
}

type group struct{ name, title, reference string }

// background starts a daemon in the peer's account, to be stopped at the end.
func (p *peer) background(cmd *exec.Cmd) error {
	started := make(chan error)
	go func() { started <- p.start(cmd) }()
	if err := <-started; err != nil {
		return err
	}
	p.atEnd(func() error {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		late := time.AfterFunc(20*time.Second, func() { _ = cmd.Process.Kill() })
		defer late.Stop()
		_ = cmd.Wait()
		return nil
	})
	return nil
}

// start starts a command in the peer's account. The thread may join a control group, so it ends with its goroutine.
func (p *peer) start(cmd *exec.Cmd) error {
	runtime.LockOSThread()
	if err := p.charge.Enter(cmd); err != nil {
		return err
	}
	return cmd.Start()
}
