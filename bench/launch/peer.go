package main

import (
	"context"
	"errors"
	"os/exec"
	"syscall"
	"time"

	"berth/bench/machine"
)

// peer is a program under test: its contenders, and how to end it.
type peer struct {
	name       string
	version    string
	charge     machine.Account
	contenders []*contender
	loads      []*load
	stop       []func() error // in reverse order
}

func newPeer(name string) (*peer, error) {
	charge, err := machine.NewAccount(name)
	return &peer{name: name, charge: charge}, err
}

func (p *peer) atEnd(f func() error) { p.stop = append(p.stop, f) }

func (p *peer) close() (err error) {
	for i := len(p.stop) - 1; i >= 0; i-- {
		err = errors.Join(err, p.stop[i]())
	}
	p.stop = nil
	return errors.Join(err, p.charge.Close())
}

// do runs a command of the peer to its end, and gives its output. Cleaning up goes this way too, so that an interrupt
// does not keep it from running.
func (p *peer) do(env []string, args ...string) (string, error) {
	_, out, err := command{args, env, p.charge}.once(context.Background())
	return out, err
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

// background starts a daemon in the peer's account, to be stopped at the end. It is in a process group of its own: an
// interrupt from the terminal is for the bench, which still needs the daemon to clean up.
func (p *peer) background(cmd *exec.Cmd) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.charge.Start(cmd); err != nil {
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
