package pull

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"syscall"
	"time"

	"berth/internal/fault"
	"berth/internal/rest"
	"berth/services/imaged/gate"
	"berth/services/imaged/graph"
	"berth/services/imaged/images"
	"berth/services/imaged/registry"
	"berth/services/imaged/store"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// fetches are the blobs under way.
type fetches struct {
	mu        sync.Mutex
	running   map[wanted]*fetch
	ending    map[wanted]*fetch // given up by all, not yet tidied up
	downloads *gate.Gate
	unpacks   *gate.Gate
	work      sync.WaitGroup // what goes on in the background
}

// wanted is a blob, compressed as it is if it is a layer.
type wanted struct {
	digest digest.Digest
	layer  bool // to be unpacked
}

// fetch is one blob on its way, for everybody who wants it. It is cancelled
// when the last of them has left. Its lease keeps the result until each has
// taken hold of it.
type fetch struct {
	wanted
	cancel context.CancelFunc
	before *fetch // given up, but what it keeps of the blob is to be gone on with
	lease  *images.Lease
	done   chan struct{} // closed when the fields below are set
	diffID digest.Digest
	err    error

	fetched int64 // bytes that were not here before; set when done is closed

	mu    sync.Mutex
	last  Progress
	next  int                    // key of the next waiter
	watch map[int]func(Progress) // who waits
}

// layer makes sure that a layer is in the store and unpacked, and gives its
// diff id and the number of bytes that were fetched for it.
func (p *Puller) layer(ctx context.Context, r Request, lease *images.Lease, desc ocispec.Descriptor) (digest.Digest, int64, error) {
	if diffID, ok := p.have(lease, desc); ok {
		r.Progress(Progress{Layer: desc.Digest, State: Exists, Current: desc.Size, Total: desc.Size})
		return diffID, 0, nil
	}
	f, leave := p.join(r, desc, true)
	defer leave()
	if err := f.wait(ctx); err != nil {
		return "", 0, err
	}
	if _, ok := p.have(lease, desc); !ok {
		return "", 0, fault.Internal.Errorf("LAYER_VANISHED", "layer %s vanished while it was pulled", desc.Digest)
	}
	return f.diffID, f.fetched, nil
}

// blob makes sure that a blob is in the store, whatever it is, and gives the number of bytes that were fetched for it.
func (p *Puller) blob(ctx context.Context, r Request, lease *images.Lease, desc ocispec.Descriptor) (int64, error) {
	if b, ok := lease.Blob(desc.Digest); ok && b.Size == desc.Size {
		return 0, nil
	}
	f, leave := p.join(r, desc, false)
	defer leave()
	if err := f.wait(ctx); err != nil {
		return 0, err
	}
	if _, ok := lease.Blob(desc.Digest); !ok {
		return 0, fault.Internal.Errorf("BLOB_VANISHED", "blob %s vanished while it was pulled", desc.Digest)
	}
	return f.fetched, nil
}

func (f *fetch) wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-f.done:
		return f.err
	}
}

// have takes hold of a layer that is complete: blob and unpacked.
func (p *Puller) have(lease *images.Lease, desc ocispec.Descriptor) (digest.Digest, bool) {
	b, ok := lease.Blob(desc.Digest)
	if !ok || b.DiffID == "" || b.Size != desc.Size {
		return "", false
	}
	_, ok = lease.Layer(b.DiffID)
	return b.DiffID, ok
}

// join gives the fetch of a blob, as a layer or as it is, starting it if there is
// none. The caller calls leave when it has what it wants, or no longer wants it.
func (p *Puller) join(r Request, desc ocispec.Descriptor, layer bool) (f *fetch, leave func()) {
	p.fetches.mu.Lock()
	defer p.fetches.mu.Unlock()
	w := wanted{desc.Digest, layer}
	f = p.fetches.running[w]
	if f == nil {
		// Not the context of whoever happens to come first.
		ctx, cancel := context.WithCancel(context.Background())
		f = &fetch{wanted: w, cancel: cancel, before: p.fetches.ending[w], lease: p.Images.DownloadLease(), done: make(chan struct{}), watch: map[int]func(Progress){},
			last: Progress{Layer: desc.Digest, State: Waiting, Total: desc.Size}}
		p.fetches.running[w] = f
		p.fetches.work.Go(func() { p.run(ctx, f, r, desc) })
	}
	id := f.add(r.Progress)
	return f, func() { p.leave(f, id) }
}

func (f *fetch) add(progress func(Progress)) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	id := f.next
	f.next++
	f.watch[id] = progress
	progress(f.last)
	return id
}

func (p *Puller) leave(f *fetch, id int) {
	p.fetches.mu.Lock()
	defer p.fetches.mu.Unlock()
	f.mu.Lock()
	delete(f.watch, id)
	last := len(f.watch) == 0
	f.mu.Unlock()
	if !last {
		return
	}
	if p.fetches.running[f.wanted] == f {
		delete(p.fetches.running, f.wanted)
		p.fetches.ending[f.wanted] = f
	}
	f.cancel()
	p.fetches.work.Go(func() { // the fetching may take a moment to notice
		<-f.done
		p.fetches.mu.Lock()
		if p.fetches.ending[f.wanted] == f {
			delete(p.fetches.ending, f.wanted)
		}
		p.fetches.mu.Unlock()
		f.lease.Release()
		p.makeRoom(f.err)
	})
}

// makeRoom deletes what pulls have left to go on with if the disk is full, and
// for a while thereafter, when the layers of the same pull are given up.
func (p *Puller) makeRoom(err error) {
	now := time.Now()
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		p.full.Store(now.UnixNano())
	} else if now.UnixNano()-p.full.Load() > int64(time.Minute) {
		return
	}
	_, _, _ = p.Store.DropPartials(0)
}

// run does the work of f. One that failed is forgotten at once, so that who
// comes next tries again.
func (p *Puller) run(ctx context.Context, f *fetch, r Request, desc ocispec.Descriptor) {
	rest.Begin() // what was downloaded has left buffers behind
	defer rest.End()
	defer close(f.done)
	defer func() { // the archive comes from strangers: a bug in a parser must not end the daemon
		if v := recover(); v != nil {
			f.err = fault.Internal.Errorf("PANIC", "blob %s: %v", desc.Digest, v)
		}
		if f.err != nil {
			p.fetches.mu.Lock()
			defer p.fetches.mu.Unlock()
			if p.fetches.running[f.wanted] == f {
				delete(p.fetches.running, f.wanted)
			}
		}
	}()
	if f.before != nil {
		<-f.before.done
		f.before = nil
	}
	f.diffID, f.err = p.fetch(ctx, f, r, desc)
	if f.err != nil {
		what := "blob"
		if f.layer {
			what = "layer"
		}
		f.err = fmt.Errorf("%s %s: %w", what, desc.Digest.Encoded()[:12], f.err)
		return
	}
	f.report(Done, desc.Size)
}

// report tells all who wait.
func (f *fetch) report(s State, current int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.last.State, f.last.Current = s, current
	for _, progress := range f.watch {
		progress(f.last)
	}
}

// fetch makes a blob visible. If what an earlier pull left of it turns out to
// be damaged, it is fetched once more from the beginning.
func (p *Puller) fetch(ctx context.Context, f *fetch, r Request, desc ocispec.Descriptor) (digest.Digest, error) {
	diffID, resumed, err := p.fetchOnce(ctx, f, r, desc)
	if resumed && errors.Is(err, fault.DataLoss) {
		diffID, _, err = p.fetchOnce(ctx, f, r, desc)
	}
	return diffID, err
}

// fetchOnce downloads a blob, unpacks it at the same time if it is a layer, and makes
// it visible: both to disk, blob, layer, record. It reports whether it went on
// with what an earlier pull left.
func (p *Puller) fetchOnce(ctx context.Context, f *fetch, r Request, desc ocispec.Descriptor) (_ digest.Digest, resumed bool, err error) {
	blob, err := p.Store.Resume(desc.Digest, desc.Size)
	if err != nil {
		return "", false, err
	}
	resumed = blob.Size() > 0
	f.fetched = desc.Size - blob.Size()
	defer func() {
		if worthKeeping(err) {
			blob.Keep()
		} else {
			blob.Discard()
		}
	}()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)

	spool, err := store.NewSpool(blob)
	if err != nil {
		return "", resumed, err
	}
	defer spool.Free()
	unpacked := make(chan unpackedLayer, 1)
	go func() {
		if !f.layer {
			unpacked <- unpackedLayer{}
			return
		}
		u := p.unpack(ctx, spool.Reader())
		if u.err != nil {
			cancel(u.err) // no use in downloading the rest
		}
		unpacked <- u
	}()
	err = p.download(ctx, f, r, desc, spool)
	if err == nil {
		err = blob.Verify()
	}
	spool.End(err)
	if err == nil {
		f.report(Extracting, desc.Size)
		err = blob.Sync() // while the rest is being unpacked
	}
	if err != nil {
		cancel(err)
	}
	u := <-unpacked
	if u.staged != nil {
		defer u.staged.Discard()
	}
	if err != nil || u.err != nil {
		return "", resumed, context.Cause(ctx) // whichever failed first; the other is its echo
	}
	if !f.layer {
		return "", resumed, f.lease.AddBlob(blob)
	}
	if err := u.staged.Sync(); err != nil {
		return "", resumed, err
	}
	return u.diffID, resumed, f.lease.AddLayer(blob, u.diffID, u.staged)
}

// worthKeeping tells failures after which the next pull can go on with what is
// there: whoever waited has left, or the registry is away.
func worthKeeping(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, fault.Unavailable)
}

// unpackedLayer is what unpacking came to.
type unpackedLayer struct {
	staged graph.Staged
	diffID digest.Digest
	err    error
}

// unpack has the compressed stream r inflated, hashed and unpacked.
func (p *Puller) unpack(ctx context.Context, r io.Reader) (u unpackedLayer) {
	if err := p.fetches.unpacks.Enter(ctx); err != nil {
		return unpackedLayer{err: err}
	}
	defer p.fetches.unpacks.Leave()
	u.staged, u.diffID, u.err = p.Workers.Unpack(ctx, p.Driver, r)
	return u
}

const (
	// attempts is how often a broken transfer is taken up again without
	// having moved on.
	attempts = 4
	// reportEvery is the pause between two reports of one layer.
	reportEvery = 100 * time.Millisecond
)

// download writes the blob to out, taking it up again where it broke off.
func (p *Puller) download(ctx context.Context, f *fetch, r Request, desc ocispec.Descriptor, out *store.Spool) error {
	if err := p.fetches.downloads.Enter(ctx); err != nil {
		return err
	}
	defer p.fetches.downloads.Leave()
	ctx = registry.WithNotice(ctx, func(text string) { f.report(State(text), out.Blob.Size()) })
	f.report(Downloading, out.Blob.Size())
	failures := 0
	for {
		before := out.Blob.Size()
		err := p.downloadFrom(ctx, f, r, desc, out)
		var broken *registry.InterruptedError
		if !errors.As(err, &broken) || ctx.Err() != nil {
			return err
		}
		if failures++; out.Blob.Size() > before {
			failures = 0
		}
		if failures >= attempts {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(time.Duration(failures) * time.Second):
		}
	}
}

func (p *Puller) downloadFrom(ctx context.Context, f *fetch, r Request, desc ocispec.Descriptor, out *store.Spool) error {
	body, err := p.Registry.Blob(ctx, reference.TrimNamed(r.Name), desc, out.Blob.Size(), r.Auth)
	if err != nil {
		return err
	}
	defer body.Close()
	buf := make([]byte, 256<<10)
	var reported time.Time
	for {
		n, err := body.Read(buf)
		if n > 0 {
			if _, werr := out.Write(buf[:n]); werr != nil {
				return diskError(werr)
			}
			if now := time.Now(); now.Sub(reported) >= reportEvery {
				reported = now
				f.report(Downloading, out.Blob.Size())
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// diskError keeps a mismatch as it is and says of the rest what failed.
func diskError(err error) error {
	if errors.Is(err, fault.DataLoss) {
		return err
	}
	return fmt.Errorf("write blob: %w", err)
}

var _ Registry = (*registry.Client)(nil)
var _ io.Writer = (*store.Staged)(nil)
