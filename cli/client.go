package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"berth/cli/apiv1"
	"berth/cli/rpc"
)

// engine is the connection to apid and its services.
type engine struct {
	conn       *rpc.Conn
	containers apiv1.ContainerServiceClient
	images     apiv1.ImageServiceClient
	networks   apiv1.NetworkServiceClient
	registries apiv1.RegistryServiceClient
	volumes    apiv1.VolumeServiceClient
	jobs       apiv1.JobServiceClient
	events     apiv1.EventServiceClient
	system     apiv1.SystemServiceClient
}

func (e *engine) Close() { e.conn.Close() }

// target is the address of apid: --host, $BERTH_HOST, or the socket of the instance under --run.
func (a *app) target() string {
	if a.host != "" {
		return a.host
	}
	if h := os.Getenv("BERTH_HOST"); h != "" {
		return h
	}
	return "unix://" + a.run + "/apid.sock"
}

// connectEarly begins the connection that a command will want: the server gets ready on another processor while
// this one makes the command and reads its flags. Those may name another engine yet; then it is not used.
func (a *app) connectEarly(where app) {
	if where.run == "" {
		where.run = defaultRun()
	}
	if path, ok := strings.CutPrefix(where.target(), "unix://"); ok {
		a.early = rpc.NewConn(path)
		a.early.Begin()
	}
}

// connect prepares the connection; the first call dials. Only unix sockets are served in clear text.
func (a *app) connect() (*engine, error) {
	path, ok := strings.CutPrefix(a.target(), "unix://")
	if !ok || !strings.HasPrefix(path, "/") {
		return nil, usagef("give a socket: -H unix:///run/berth/apid.sock", "engine address %q is not unix:///absolute/path", a.target())
	}
	conn := a.early
	if a.early = nil; conn == nil || conn.Path() != path {
		if conn != nil {
			conn.Close()
		}
		conn = rpc.NewConn(path)
	}
	return &engine{
		conn:       conn,
		containers: apiv1.NewContainerServiceClient(conn),
		images:     apiv1.NewImageServiceClient(conn),
		networks:   apiv1.NewNetworkServiceClient(conn),
		registries: apiv1.NewRegistryServiceClient(conn),
		volumes:    apiv1.NewVolumeServiceClient(conn),
		jobs:       apiv1.NewJobServiceClient(conn),
		events:     apiv1.NewEventServiceClient(conn),
		system:     apiv1.NewSystemServiceClient(conn),
	}, nil
}

// unreachable is the sentence and the next step for a failure of the connection itself.
func unreachable(s *rpc.Status) (text, hint string, ok bool) {
	var lost *rpc.LostError
	if errors.As(s, &lost) {
		return "the engine closed the connection", "it may be restarting: try again, or see `berth version`", true
	}
	var dial *rpc.DialError
	if !errors.As(s, &dial) {
		return "", "", false
	}
	switch {
	case errors.Is(dial, fs.ErrPermission):
		hint = "join the group berth (usermod -aG berth USER, then log in again), or use sudo"
	case errors.Is(dial, fs.ErrNotExist), errors.Is(dial, syscall.ECONNREFUSED):
		hint = "start it with `berth up --detach`, or `systemctl start berth-apid.socket`"
	}
	return fmt.Sprintf("cannot reach the engine at unix://%s: %v", dial.Path, rootCause(dial)), hint, true
}

func rootCause(err error) error {
	for {
		u := errors.Unwrap(err)
		if u == nil {
			return err
		}
		err = u
	}
}
