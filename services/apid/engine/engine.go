// Package engine does the work that spans daemons: it makes, runs, starts,
// stops and removes containers out of what imaged, netd and execd each know how
// to do, as jobs, and puts back in order what crashes leave.
//
// Who keeps what decides how things are undone. A container exists if execd has
// a record of it. A root file system (imaged) or an endpoint (netd) of an id
// that execd does not know belongs to nobody, unless a job is just making that
// container. So whatever fails half-way is undone in the order execd, then netd
// and imaged; and if execd cannot be asked nothing is taken away, for the
// container may be running. Everything left over is found by the reconciler,
// which compares the three whenever one of them comes back.
package engine

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"berth/internal/config"
	"berth/internal/daemon"
	"berth/internal/fault"
	"berth/internal/faultpoint"
	apiv1 "berth/proto/berth/api/v1"
	"berth/services/apid/backend"
	"berth/services/apid/job"
)

var (
	pointAllocated = faultpoint.Declare("apid.allocated", "a container has its root file system and endpoint, execd knows nothing of it")
	pointSynced    = faultpoint.Declare("apid.synced", "a container runs and its root file system is on the disk, its record may be not")
	pointLaunched  = faultpoint.Declare("apid.launched", "execd has started a container, the client is not told")
	pointExitSeen  = faultpoint.Declare("apid.exit-seen", "a container has exited, its endpoint is still there")
	pointForgotten = faultpoint.Declare("apid.record-removed", "execd has removed a container's record, imaged and netd still have its parts")
)

// JobIDHeader is the response header with the id of the call's job.
const JobIDHeader = "berth-job-id"

// Needs is what an Engine is made from.
type Needs struct {
	ID       string // of this engine, for `info`
	Config   *config.Config
	Log      hclog.Logger
	Backends *backend.Set
	Jobs     *job.Table
	Events   *JobEvents
}

// Engine has a method set per public service, see Containers, Images, Networks,
// System and Events.
type Engine struct {
	Needs
	begun time.Time

	locks  locks // one per container: start, stop, settling take turns
	making idSet // containers that jobs are making
	doomed idSet // half-made containers that execd could not be asked to remove
	// attended containers have a client waiting for their exit: their run settles them.
	attended idSet
	standby  standby
	gone     *recent
	kick     chan struct{} // wakes the reconciler

	tasks sync.WaitGroup // background work begun by calls
}

// New makes an engine; Run must be running for it to keep order.
func New(n Needs) *Engine {
	return &Engine{Needs: n, begun: time.Now(), gone: newRecent(4096), kick: make(chan struct{}, 1)}
}

// Run watches over the daemons and keeps order until ctx is done, and then
// waits for what runs in the background.
func (e *Engine) Run(ctx context.Context) error {
	var parts sync.WaitGroup
	parts.Go(func() {
		e.Backends.Watch(ctx, func(b *backend.Backend) {
			e.Log.Info("connected", "daemon", b.Name)
			e.background(ctx, e.DropStandby) // a new process may not have what the old one handed out
			e.wake()
		})
	})
	parts.Go(func() { e.reconcileLoop(ctx) })
	parts.Go(func() { e.janitor(ctx) })
	parts.Wait()
	e.HoldStandby(context.WithoutCancel(ctx)) // for good
	e.tasks.Wait()
	return nil
}

// wake makes the reconciler look soon.
func (e *Engine) wake() {
	select {
	case e.kick <- struct{}{}:
	default:
	}
}

const (
	// undoTime bounds undoing and cleaning up, which go on when a job's own
	// context has ended.
	undoTime = 20 * time.Second
	// callTime bounds the quick calls a job makes.
	callTime = 30 * time.Second
	// launchTime bounds execd's part of a start: a cold host reads an image.
	launchTime = 2 * time.Minute
)

// lasting is a context for undoing, with ctx's values and its own deadline.
func lasting(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), undoTime)
}

// unbroken is a context for a quick call that makes something: it does not end
// with the job. A cancelled call may still be carried out, and then after the
// call that undoes it.
func unbroken(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), limit)
}

// background does work after the reply.
func (e *Engine) background(ctx context.Context, work func(ctx context.Context)) {
	e.tasks.Go(func() {
		ctx, cancel := lasting(ctx)
		defer cancel()
		work(ctx)
	})
}

func spec(ctx context.Context, kind, target string) job.Spec {
	return job.Spec{Kind: kind, Target: target, Caller: caller(ctx), RequestID: daemon.RequestID(ctx)}
}

func caller(ctx context.Context) *apiv1.JobCaller {
	p, ok := daemon.PeerOf(ctx)
	if !ok {
		return nil
	}
	return &apiv1.JobCaller{Uid: uint32(p.UID), Gid: uint32(p.GID), Pid: int32(p.PID)}
}

// createdBy is who asked, as records have it.
func createdBy(ctx context.Context) string {
	p, _ := daemon.PeerOf(ctx)
	return "uid=" + strconv.Itoa(p.UID)
}

// detachedJob runs work as a job that outlives the call, waits for it, and
// answers with what it made.
func detachedJob[T any](ctx context.Context, e *Engine, s job.Spec, work func(ctx context.Context, j *job.Job) (T, string, error)) (T, error) {
	var made, nothing T
	j, err := e.Jobs.Go(ctx, s, func(ctx context.Context, j *job.Job) (string, error) {
		var result string
		var err error
		made, result, err = work(ctx, j)
		return result, because(ctx, err)
	})
	if err != nil {
		return nothing, err
	}
	grpc.SetHeader(ctx, metadata.Pairs(JobIDHeader, j.ID()))
	if err := j.Wait(ctx); err != nil {
		return nothing, err
	}
	return made, nil
}

// because prefers the reason why ctx ended to the error that this caused.
func because(ctx context.Context, err error) error {
	if err == nil || ctx.Err() == nil {
		return err
	}
	if cause := context.Cause(ctx); fault.ReasonOf(cause) != "" {
		return cause
	}
	return err
}

// newID makes a container's id: 64 hex digits.
func newID() string {
	var b [32]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// locks is a mutex per container id.
type locks struct {
	mu       sync.Mutex
	held     map[string]*lock
	unlocked atomic.Uint64
}

// ended is how many times a lock was given back: while it is the same, nobody who had one has finished anything.
func (l *locks) ended() uint64 { return l.unlocked.Load() }

type lock struct {
	sync.Mutex
	users int
}

func (l *locks) lock(id string) (unlock func()) {
	l.mu.Lock()
	if l.held == nil {
		l.held = map[string]*lock{}
	}
	k := l.held[id]
	if k == nil {
		k = new(lock)
		l.held[id] = k
	}
	k.users++
	l.mu.Unlock()
	k.Lock()
	return func() {
		l.unlocked.Add(1)
		k.Unlock()
		l.mu.Lock()
		defer l.mu.Unlock()
		if k.users--; k.users == 0 {
			delete(l.held, id)
		}
	}
}

// idSet is a set of ids.
type idSet struct {
	mu  sync.Mutex
	ids map[string]bool
}

func (s *idSet) add(id string) (remove func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ids == nil {
		s.ids = map[string]bool{}
	}
	s.ids[id] = true
	return func() { s.remove(id) }
}

func (s *idSet) remove(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.ids, id)
}

func (s *idSet) has(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ids[id]
}

func (s *idSet) snapshot() map[string]bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make(map[string]bool, len(s.ids))
	for id := range s.ids {
		all[id] = true
	}
	return all
}

// recent remembers the last ids that were removed for good. An id never comes
// back, so the many ways to learn of an exit need not all ask the daemons.
type recent struct {
	mu   sync.Mutex
	ids  map[string]bool
	ring []string // grows up to size
	size int
	next int // the oldest of a full ring
}

func newRecent(size int) *recent {
	return &recent{ids: make(map[string]bool), size: size}
}

func (r *recent) add(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ids[id] {
		return
	}
	r.ids[id] = true
	if len(r.ring) < r.size {
		r.ring = append(r.ring, id)
		return
	}
	delete(r.ids, r.ring[r.next])
	r.ring[r.next] = id
	r.next = (r.next + 1) % r.size
}

func (r *recent) has(id string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ids[id]
}
