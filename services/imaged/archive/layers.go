package archive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"berth/internal/fault"
	"berth/services/imaged/graph"
	"berth/services/imaged/images"
	"berth/services/imaged/store"

	"github.com/opencontainers/go-digest"
)

// maxOpen is how many layers are held between being read and being committed:
// each is two open files. When there are as many, reading waits.
const maxOpen = 64

// reportEvery is the pause between two reports of one layer.
const reportEvery = 100 * time.Millisecond

// layer writes a layer into the store and unpacks it at the same time, in the
// background: while it is unpacked, the next one is read.
func (in *intake) layer(ctx context.Context, name string, e *entry, want digest.Digest, body io.Reader) error {
	label := labelOf(name, want)
	if in.have(e, want) {
		in.progress(Progress{label, Exists, e.size, e.size})
		return nil
	}
	select {
	case in.open <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	blob, err := in.stage(want, e.size)
	if err != nil {
		<-in.open
		return err
	}
	spool, err := store.NewSpool(blob)
	if err != nil {
		blob.Discard()
		<-in.open
		return err
	}
	ctx, stop := context.WithCancelCause(ctx)
	fed := make(chan struct{})
	in.layers.Go(func() error {
		defer func() {
			<-fed // whoever writes the blob is done with it
			stop(nil)
			spool.Free()
			blob.Discard()
			<-in.open
		}()
		diffID, err := in.unpackAndCommit(ctx, spool)
		if errors.Is(err, errKnown) {
			in.progress(Progress{label, Exists, e.size, e.size})
			return nil
		}
		if err != nil && want != "" && errors.Is(err, fault.DataLoss) { // it only looked like one, unless an image wants it
			<-fed
			e.notLayer = fmt.Errorf("layer %s: %w", label, err)
			if in.whole {
				return in.keep(e, blob)
			}
			return nil
		}
		if err != nil {
			err = fmt.Errorf("layer %s: %w", label, err)
			stop(err) // no use in reading the rest
			return err
		}
		e.diffID = diffID // read after layers.Wait
		in.progress(Progress{label, Done, e.size, e.size})
		return nil
	})
	defer close(fed)
	if err = in.feed(ctx, label, e.size, body, spool); err == nil {
		if err = blob.Verify(); err != nil {
			err = refused("%v", err)
		}
	}
	if err == nil {
		e.digest = blob.Digest()
		if want == "" && in.have(e, e.digest) {
			stop(errKnown)
			err = errKnown
		}
	}
	spool.End(err)
	if errors.Is(err, errKnown) {
		return nil
	}
	if err == nil {
		in.progress(Progress{label, Extracting, e.size, e.size})
	}
	return err
}

// blob writes a file that is no layer into the store: an SBOM, for instance, which an attestation is about.
func (in *intake) blob(ctx context.Context, e *entry, want digest.Digest, body io.Reader) error {
	if limit := in.Workers.Inflate.Largest(); e.size > limit {
		return refused("blob %s has more than %d bytes", want, limit)
	}
	if b, ok := in.lease.Blob(want); ok && b.Size == e.size {
		e.digest = want
		return nil
	}
	blob, err := in.Store.Stage(want, e.size)
	if err != nil {
		return err
	}
	defer blob.Discard()
	if err := in.feed(ctx, want.String(), e.size, body, blob); err != nil {
		return err
	}
	if err := blob.Verify(); err != nil {
		return refused("%v", err)
	}
	e.digest = want
	return in.keep(e, blob)
}

// keep makes a blob of what was read and verified, if it was.
func (in *intake) keep(e *entry, b *store.Staged) error {
	if e.digest == "" {
		return nil // reading it failed, which is told there
	}
	if err := b.Sync(); err != nil {
		return err
	}
	return in.lease.AddBlob(b)
}

// errKnown ends the unpacking of a layer that turned out to be here.
var errKnown = errors.New("layer is in the store")

func (in *intake) stage(want digest.Digest, size int64) (*store.Staged, error) {
	if want == "" {
		return in.Store.StageNew()
	}
	return in.Store.Stage(want, size)
}

// have takes hold of a layer that the store has whole, blob and unpacked.
func (in *intake) have(e *entry, d digest.Digest) bool {
	b, ok := in.lease.Blob(d)
	if !ok || b.DiffID == "" || b.Size != e.size {
		return false
	}
	if _, ok = in.lease.Layer(b.DiffID); ok {
		e.digest, e.diffID = d, b.DiffID
	}
	return ok
}

// feed copies the layer into the spool.
func (in *intake) feed(ctx context.Context, label string, size int64, body io.Reader, out io.Writer) error {
	buf := make([]byte, 256<<10)
	var n int64
	var reported time.Time
	for {
		k, err := body.Read(buf)
		if k > 0 {
			if _, werr := out.Write(buf[:k]); werr != nil {
				return fmt.Errorf("write blob: %w", werr)
			}
			n += int64(k)
			if now := time.Now(); now.Sub(reported) >= reportEvery {
				reported = now
				in.progress(Progress{label, Reading, n, size})
			}
		}
		switch {
		case err == io.EOF:
			return nil
		case err != nil:
			return streamError(err)
		case ctx.Err() != nil:
			return context.Cause(ctx)
		}
	}
}

// unpackAndCommit makes a layer of a spooled blob: unpack, sync, rename, record.
func (in *intake) unpackAndCommit(ctx context.Context, spool *store.Spool) (digest.Digest, error) {
	select {
	case <-ctx.Done():
		return "", context.Cause(ctx)
	case in.unpacks <- struct{}{}:
	}
	staged, diffID, err := in.Workers.Unpack(ctx, in.Driver, spool.Reader())
	<-in.unpacks
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause // of which err is the echo
		}
		return "", err
	}
	defer staged.Discard()
	return diffID, in.commit.add(&finished{blob: spool.Blob, diffID: diffID, staged: staged})
}

// labelOf is what progress calls a layer.
func labelOf(name string, want digest.Digest) string {
	if want != "" {
		return want.String()
	}
	return "file:" + name
}

// finished is a layer that is unpacked and not yet on the disk.
type finished struct {
	blob   *store.Staged
	diffID digest.Digest
	staged graph.Staged
	done   chan error
}

// committer commits layers in the order sync, rename, record. Writing a whole
// file system out takes as long for one layer as for many, so those that are
// finished while it is busy with others go together.
type committer struct {
	lease *images.Lease

	mu      sync.Mutex
	waiting []*finished
	busy    bool
}

// add returns when the layer is committed.
func (c *committer) add(f *finished) error {
	f.done = make(chan error, 1)
	c.mu.Lock()
	c.waiting = append(c.waiting, f)
	lead := !c.busy
	c.busy = true
	c.mu.Unlock()
	if lead {
		c.run()
	}
	return <-f.done
}

// run commits until nobody waits.
func (c *committer) run() {
	for {
		c.mu.Lock()
		batch := c.waiting
		c.waiting = nil
		c.busy = len(batch) > 0
		c.mu.Unlock()
		if len(batch) == 0 {
			return
		}
		err := batch[0].staged.Sync() // of the whole file system: all of them, and their blobs
		for _, f := range batch {
			f.done <- c.one(f, err)
		}
	}
}

func (c *committer) one(f *finished, err error) error {
	if err != nil {
		return err
	}
	if err := f.blob.Sync(); err != nil { // costs nothing if it was just synced
		return err
	}
	return c.lease.AddLayer(f.blob, f.diffID, f.staged)
}
