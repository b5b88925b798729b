package keeper

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"berth/internal/faultpoint"
	"berth/internal/version"
	"berth/services/execd/monitor/wire"
)

// Socket is the monitor's socket in Config.Dir.
const Socket = "monitor.sock"

// FaultsEnv arms fault points of the monitors that execd starts, as
// faultpoint.Env does its own.
const FaultsEnv = "BERTH_MONITOR_FAULTS"

// greetTimeout bounds the hello of a monitor, its states included.
const greetTimeout = 10 * time.Second

// link is a connection to a monitor that said hello.
type link struct {
	conn   *wire.Conn
	hello  wire.Hello
	states map[string]*second
}

// connect dials the monitor that runs, or starts one.
func (k *Keeper) connect(ctx context.Context) (*link, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	path := filepath.Join(k.cfg.Dir, Socket)
	c, err := dial(path)
	if err != nil {
		if err := k.spawn(path); err != nil {
			return nil, err
		}
		if c, err = dial(path); err != nil {
			return nil, fmt.Errorf("connect to the monitor: %w", err)
		}
	}
	l := &link{conn: wire.NewConn(c), states: make(map[string]*second)}
	c.SetDeadline(time.Now().Add(greetTimeout))
	if err := l.greet(); err != nil {
		l.conn.Close()
		for _, s := range l.states {
			s.close()
		}
		return nil, fmt.Errorf("greet the monitor: %w", err)
	}
	c.SetDeadline(time.Time{})
	return l, nil
}

func dial(path string) (*net.UnixConn, error) {
	return net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
}

func (l *link) greet() error {
	hello := &wire.Hello{Version: wire.Version, Pid: os.Getpid(), Build: version.String()}
	if err := l.conn.Send(&wire.Message{Op: wire.OpHello, Hello: hello}); err != nil {
		return err
	}
	for {
		msg, fds, err := l.conn.Recv()
		if err != nil {
			return err
		}
		switch {
		case msg.Op == wire.OpHello && msg.Hello != nil:
			l.hello = *msg.Hello
			if l.hello.Version != wire.Version {
				return fmt.Errorf("it speaks version %d, this is %d", l.hello.Version, wire.Version)
			}
			if l.hello.Build == hello.Build {
				l.conn.SameBuild()
			}
		case msg.Op == wire.OpState && msg.State != nil:
			l.states[msg.State.ID] = &second{state: *msg.State, fds: fds}
			continue
		case msg.Op == wire.OpExit && msg.Exit != nil:
			// It ended while the states were told.
			if s := l.states[msg.Exit.ID]; s != nil && msg.Exit.Exec == "" {
				s.state.Exit = msg.Exit
			}
		case msg.Op == wire.OpReady:
			wire.CloseAll(fds)
			return nil
		}
		wire.CloseAll(fds)
	}
}

// spawn starts a monitor. It gets the listening socket, so that it can be dialled
// at once; a session of its own, so that no terminal's signal reaches it; and
// the root as working folder.
func (k *Keeper) spawn(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove stale socket: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return fmt.Errorf("listen for the monitor: %w", err)
	}
	l.SetUnlinkOnClose(false)
	defer l.Close()
	if err := os.Chmod(path, 0o600); err != nil {
		return err
	}
	f, err := l.File()
	if err != nil {
		return err
	}
	defer f.Close()
	logFile, err := os.OpenFile(filepath.Join(k.cfg.Dir, "monitor.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer logFile.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer null.Close()
	p, err := os.StartProcess(k.cfg.Monitor, append([]string{k.cfg.Monitor}, k.cfg.Args...), &os.ProcAttr{
		Dir:   "/",
		Env:   []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", faultpoint.Env + "=" + os.Getenv(FaultsEnv)},
		Files: []*os.File{null, logFile, logFile, f},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return fmt.Errorf("start the monitor: %w", err)
	}
	k.kin.expect(p.Pid, nil)
	return p.Release()
}
