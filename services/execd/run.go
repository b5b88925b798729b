package execd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"berth/internal/account"
	"berth/internal/daemon"
	"berth/internal/events"
	"berth/internal/warm"
	"berth/libcontainer/netns"
	apiv1 "berth/proto/berth/api/v1"
	execv1 "berth/proto/berth/exec/v1"
	"berth/services/execd/launch"
	"berth/services/execd/lifecycle"
	"berth/services/execd/records"
	"berth/services/execd/rpc"
)

// run finds the monitor's and init's binaries, and serves.
func run(ctx context.Context, env *daemon.Env) error {
	programs, err := findPrograms()
	if err != nil {
		return err
	}
	return serve(ctx, env, programs)
}

// serve builds the parts, takes care of the containers there are, and serves
// until ctx is done.
func serve(ctx context.Context, env *daemon.Env, p programs) error {
	parent, err := cgroupParent(env.Config)
	if err != nil {
		return err
	}
	store, err := records.Open(env.StateDir, env.RunDir)
	if err != nil {
		return err
	}
	defer store.Close()
	builder, err := launch.NewBuilder(parent, env.Config.Execd)
	if err != nil {
		return err
	}
	go func() { // while the monitor starts
		warm.Messages(
			new(execv1.RunRequest), new(execv1.RunResponse), new(execv1.StandByRequest), new(execv1.RemoveRequest),
			new(apiv1.ExecRequest), new(apiv1.ExecResponse), new(apiv1.Event),
		)
		if err := builder.Rehearse(); err != nil {
			env.Log.Warn("launch not rehearsed", "error", err)
		}
	}()
	ring := events.New("execd")
	namespaces := netns.NewServer(netns.Defaults, allowNetd())
	life, err := lifecycle.Open(ctx, lifecycle.Config{
		Log: env.Log, StateDir: env.StateDir, RunDir: env.RunDir, Records: store, Builder: builder, Events: ring,
		Netns: namespaces, Monitor: p.monitor, Init: p.init, Layers: filepath.Join(env.Config.Root, "imaged"),
	})
	if err != nil {
		return err
	}
	defer life.Close()
	server, err := rpc.New(life, ring, env.Log.Named("rpc"))
	if err != nil {
		return err
	}
	defer server.Close()

	// Namespaces of running containers are known by now, so that netd, which
	// asks for them when it connects, finds them.
	if l := env.Listeners[daemon.NetnsSocket]; l != nil {
		served := make(chan error, 1)
		go func() { served <- namespaces.Serve(l) }()
		defer func() { l.Close(); <-served }()
	}
	return env.Serve(ctx, daemon.ExecdSocket, daemon.ServerOptions{
		Timeouts: rpc.Timeouts(),
	}, server.Register)
}

// allowNetd admits netd's user, and root.
func allowNetd() func(uid uint32) bool {
	netd := -1
	if id, err := account.User(account.Netd); err == nil {
		netd = id.UID
	}
	return func(uid uint32) bool { return uid == 0 || int(uid) == netd }
}

// programs are the binaries that execd has started.
type programs struct{ monitor, init string }

// findPrograms looks beside execd's own binary.
func findPrograms() (programs, error) {
	self, err := os.Executable()
	if err != nil {
		return programs{}, fmt.Errorf("find own binary: %w", err)
	}
	dir := filepath.Dir(self)
	p := programs{monitor: filepath.Join(dir, "berth-monitor"), init: filepath.Join(dir, "berth-init")}
	for _, path := range []string{p.monitor, p.init} {
		if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
			return p, fmt.Errorf("%s is missing: it belongs beside execd", path)
		}
	}
	return p, nil
}
