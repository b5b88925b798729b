// Package apid is the engine's gateway: the one daemon that clients talk to. It
// knows its callers from the socket, passes calls that concern one daemon on to
// it undecoded (router.go), and runs those that span daemons as jobs (packages
// engine and job). It has its own user, no capability, and keeps nothing but the
// history of its jobs: what is, the other daemons know.
package apid

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"path/filepath"
	"time"

	"google.golang.org/grpc"

	"berth/internal/account"
	"berth/internal/daemon"
	"berth/internal/journal"
	"berth/internal/warm"
	apiv1 "berth/proto/berth/api/v1"
	execv1 "berth/proto/berth/exec/v1"
	imagev1 "berth/proto/berth/image/v1"
	networkv1 "berth/proto/berth/network/v1"
	"berth/services/apid/backend"
	"berth/services/apid/engine"
	"berth/services/apid/job"
)

// Spec is what apid may do, and how it begins.
func Spec() daemon.Spec {
	return daemon.Spec{
		Name:    "apid",
		User:    account.Apid,
		Sockets: []daemon.Socket{{Name: daemon.ApidSocket}},
		Run:     run,
	}
}

func run(ctx context.Context, env *daemon.Env) error {
	records, err := journal.Open(filepath.Join(env.StateDir, "jobs"), journal.Options{})
	if err != nil {
		return err
	}
	defer records.Close()
	id, err := engineID(records)
	if err != nil {
		return err
	}
	events := engine.NewJobEvents()
	jobs, err := job.Open(records, env.Config.Apid.JobHistory, env.Log.Named("job"), events.Notify)
	if err != nil {
		return err
	}
	backends, err := backend.Dial(env.Config.Run)
	if err != nil {
		return err
	}
	defer backends.Close()

	e := engine.New(engine.Needs{
		ID:       id,
		Config:   env.Config,
		Log:      env.Log.Named("engine"),
		Backends: backends,
		Jobs:     jobs,
		Events:   events,
	})
	order, stop := context.WithCancel(context.Background())
	kept := make(chan struct{})
	go func() { defer close(kept); e.Run(order) }()
	defer func() { <-kept }()
	defer stop()
	// Before the engine: jobs undo with its help.
	defer jobs.Close(3 * time.Second)

	warm.Messages(
		new(apiv1.RunRequest), new(apiv1.RunResponse), new(apiv1.Job), new(apiv1.Event), new(execv1.RunRequest), new(execv1.RunResponse),
		new(imagev1.PrepareRequest), new(imagev1.PrepareResponse), new(networkv1.AttachRequest), new(networkv1.AttachResponse),
	)
	return env.Serve(ctx, daemon.ApidSocket, serverOptions(backends, e), func(s *grpc.Server) {
		registerAll(s, e, jobs)
	})
}

// serverOptions are what apid's server has beyond other daemons': the router for
// methods that are not its own, no deadline for jobs, which have their own, and
// that calls which are not calm find no spares.
func serverOptions(backends *backend.Set, e *engine.Engine) daemon.ServerOptions {
	timeouts := map[string]time.Duration{}
	for method, to := range table {
		if to == self {
			timeouts[method] = 0
		}
	}
	return daemon.ServerOptions{
		Timeouts: timeouts,
		GRPC: []grpc.ServerOption{
			grpc.ForceServerCodecV2(newPassCodec()),
			grpc.UnknownServiceHandler((&router{backends}).forward),
			grpc.ChainUnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
				if !engine.Calm(info.FullMethod) {
					defer e.HoldStandby(ctx)()
				}
				return handle(ctx, req)
			}),
			grpc.ChainStreamInterceptor(func(srv any, s grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
				if !engine.Calm(info.FullMethod) {
					defer e.HoldStandby(s.Context())()
				}
				return handle(srv, s)
			}),
		},
	}
}

func registerAll(s *grpc.Server, e *engine.Engine, jobs *job.Table) {
	register(s, &apiv1.ContainerService_ServiceDesc, &engine.Containers{Engine: e})
	register(s, &apiv1.ImageService_ServiceDesc, &engine.Images{Engine: e})
	register(s, &apiv1.NetworkService_ServiceDesc, &engine.Networks{Engine: e})
	register(s, &apiv1.RegistryService_ServiceDesc, &engine.Registries{Engine: e})
	register(s, &apiv1.VolumeService_ServiceDesc, nil)
	register(s, &apiv1.SystemService_ServiceDesc, &engine.System{Engine: e})
	register(s, &apiv1.EventService_ServiceDesc, &engine.Events{Engine: e})
	register(s, &apiv1.JobService_ServiceDesc, &job.Service{Table: jobs})
}

// engineID is made at the first start and kept: 32 hex digits.
func engineID(records *journal.Journal) (string, error) {
	const key = "engine/id"
	if id, ok := records.Get(key); ok {
		return string(id), nil
	}
	var b [16]byte
	rand.Read(b[:])
	id := hex.EncodeToString(b[:])
	return id, records.Put(key, []byte(id), true)
}
