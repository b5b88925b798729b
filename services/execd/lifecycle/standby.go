package lifecycle

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"reflect"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"berth/internal/fault"
	apiv1 "berth/proto/berth/api/v1"
	execv1 "berth/proto/berth/exec/v1"
	networkv1 "berth/proto/berth/network/v1"
	"berth/services/execd/container"
	"berth/services/execd/launch"
	"berth/services/execd/monitor/wire"
)

// A container can be built before anybody has asked for it, all but its command: apid has one
// built of what it keeps at hand for the next `run` of an image. When that run comes and
// its plan turns out to be the one that was carried out, only the command is left to start.
// Otherwise what was built is ended, and the container built from scratch.
//
// Nobody knows of such a container: it has no record and no name. What it is made of is with the
// monitor, and ends with it, or after a while by itself.

// standing is a container that was built ahead, as planned.
type standing struct {
	spec      *apiv1.ContainerSpec // with the command of the one before it
	plan      *launch.Plan
	launch    *wire.Launch // of that command
	namespace *networkv1.Namespace
	expiry    *time.Timer
}

// standingTime is after apid has given it up, unless it died.
const standingTime = 15 * time.Second

// standby are those there are, by id; nil is one that is being built.
type standby struct {
	mu  sync.Mutex
	all map[string]*standing
}

// StandBy builds a container ahead of the Run of the same id, root file system and network. It
// reports whether there is one now: what is not usual is built when it is run.
func (m *Manager) StandBy(ctx context.Context, req *execv1.CreateRequest, network *networkv1.AttachResponse) (bool, error) {
	spec := req.GetSpec()
	if err := container.CheckID(req.GetId()); err != nil {
		return false, err
	}
	// What is bound from the host is copied as it is: mounts made there later would not be seen.
	if spec.GetTty() || spec.Init || len(spec.Mounts) > 0 || len(req.GetRootfs().GetVolumes()) > 0 {
		return false, nil
	}
	if private, err := m.Builder.PrivateUsers(spec); private || err != nil {
		return false, err
	}
	if _, err := m.Containers.Find(req.Id); err == nil {
		return false, fault.FailedPrecondition.Errorf("CONTAINER_EXISTS", "container %s exists already", req.Id)
	}
	if err := m.check(spec, req.GetRootfs().GetConfig()); err != nil {
		return false, err
	}
	m.standby.put(req.Id, nil) // so that nobody takes its folder for a leftover
	plan, launch, err := m.plan(newInfo(req, ""), Given{Rootfs: req.Rootfs, Network: network}, nil)
	var stands *wire.Launch
	if err == nil {
		stands, err = restOf(launch, plan)
	}
	if err == nil {
		launch.Config, launch.Filter, err = plan.Start.Encode()
	}
	if err == nil {
		// Not to be broken off: it is built, or it is not.
		building := context.WithoutCancel(ctx)
		err = m.withNamespace(network.GetNamespace(), func(netns int) error { return m.keeper.StandBy(building, launch, netns) })
	}
	if err != nil {
		m.standby.take(req.Id)
		m.dropFolder(req.Id)
		return false, commandError(err)
	}
	expiry := time.AfterFunc(standingTime, func() {
		if m.life.Err() == nil {
			m.StandDown(m.life, req.Id)
		}
	})
	m.standby.put(req.Id, &standing{spec, plan, stands, network.GetNamespace(), expiry})
	return true, nil
}

// StandDown ends what StandBy has built. It returns when nothing is left of it.
func (m *Manager) StandDown(ctx context.Context, id string) error {
	if m.standby.take(id) == nil {
		return nil
	}
	defer m.dropFolder(id)
	return m.keeper.StandDown(ctx, id)
}

// dropFolder removes the folder of what was built ahead, unless a container has it by now.
func (m *Manager) dropFolder(id string) {
	if _, err := m.Containers.Find(id); err == nil {
		return
	}
	if err := removeFolder(m.runDir(id)); err != nil {
		m.Log.Warn("remove run folder", "container", id, "error", err)
	}
}

// standAllDown ends all of them.
func (m *Manager) standAllDown() {
	ctx, cancel := context.WithTimeout(context.Background(), retireTime)
	defer cancel()
	m.standby.mu.Lock()
	ids := slices.Collect(maps.Keys(m.standby.all))
	m.standby.mu.Unlock()
	for _, id := range ids {
		if err := m.StandDown(ctx, id); err != nil {
			m.Log.Warn("end what was built ahead", "container", id, "error", err)
		}
	}
}

func (s *standby) put(id string, one *standing) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all == nil {
		s.all = make(map[string]*standing)
	}
	s.all[id] = one
}

// take gives what was built to its start, or to who ends it.
func (s *standby) take(id string) *standing {
	s.mu.Lock()
	defer s.mu.Unlock()
	taken := s.all[id]
	delete(s.all, id)
	if taken != nil {
		taken.expiry.Stop() // an idle execd is not to wake up for nothing
	}
	return taken
}

// peek leaves it.
func (s *standby) peek(id string) *standing {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.all[id]
}

func (s *standby) has(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.all[id]
	return ok
}

// suits reports whether a plan differs from the one carried out in its command and limits only.
func (s *standing) suits(p *launch.Plan, namespace *networkv1.Namespace) bool {
	have, want := s.plan.Start, p.Start
	command := &want.Container.Command
	if command.Terminal != nil || command.Init || command.Cwd != have.Container.Command.Cwd {
		return false
	}
	early := &have.Container.Command
	if have.Container.ConfineEarly && (early.Caps != command.Caps || !bytes.Equal(early.Seccomp, command.Seccomp)) {
		return false
	}
	have.Container.Command, have.Resources = *command, want.Resources
	return maps.EqualFunc(s.plan.Etc, p.Etc, bytes.Equal) && reflect.DeepEqual(have, want) && proto.Equal(s.namespace, namespace)
}

// repeats reports whether the run asks for exactly what was planned, its command included. The
// root file system and the endpoint of an id are the same for as long as they exist; what comes
// from the host's files may have changed.
func (s *standing) repeats(spec *apiv1.ContainerSpec, network *networkv1.AttachResponse) bool {
	return s != nil && network.GetNamespace().GetKind() != networkv1.Namespace_KIND_HOST &&
		proto.Equal(s.namespace, network.GetNamespace()) && proto.Equal(s.spec, spec)
}

// restOf is a launch of a container that was built ahead.
func restOf(req *wire.Launch, p *launch.Plan) (*wire.Launch, error) {
	now := *req
	now.Stands, now.NetNS = true, false
	var err error
	now.Config, now.Filter, err = p.Start.EncodeRest()
	if p.Start.Container.ConfineEarly {
		now.Filter = nil // it is loaded
	}
	return &now, err
}

// launchStanding starts the command of a container that was built ahead. Neither answer nor
// error: it is to be built now, which package mount knows to do over an upper directory that was
// mounted as "volatile" before.
func (m *Manager) launchStanding(ctx context.Context, s *standing, plan *launch.Plan, req *wire.Launch, g Given, client *Client) (*wire.Launched, error) {
	if s == nil {
		return nil, nil
	}
	err := errors.New("the plan differs")
	if plan == s.plan || s.suits(plan, g.Network.GetNamespace()) {
		now := s.launch
		if plan != s.plan {
			if now, err = restOf(req, plan); err != nil {
				return nil, err
			}
		}
		now.Trace = req.Trace
		var got *wire.Launched
		if got, err = m.ask(ctx, now, -1, client); err == nil {
			return got, nil
		}
		if w := new(wire.Error); !errors.As(err, &w) || w.Code != wire.CodeNotStanding {
			return nil, commandError(err)
		}
	} else if down := m.keeper.StandDown(ctx, req.ID); down != nil {
		return nil, down
	}
	m.Log.Debug("built ahead in vain", "container", req.ID, "why", err)
	return nil, nil
}
