// Package remote works on what registries hold, without the local store: it copies images from one registry to another,
// makes indexes, pushes and fetches artifacts. Nothing of it is kept on the disk.
package remote

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"

	"berth/internal/fault"
	"berth/services/imaged/manifest"
	"berth/services/imaged/registry"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// Remote does the work. Its methods may be called from any goroutine.
type Remote struct {
	Registry *registry.Client
	Copies   int // blobs copied at once by one call; at least one
}

// Place is a name in a registry and who asks for it.
type Place struct {
	Name reference.Named
	Auth registry.Auth
}

// at is the manifest d in p's repository.
func (p Place) at(d digest.Digest) (Place, error) {
	named, err := reference.WithDigest(reference.TrimNamed(p.Name), d)
	return Place{named, p.Auth}, err
}

func (p Place) repository() reference.Named { return reference.TrimNamed(p.Name) }

// State is how far a blob is.
type State string

const (
	Waiting State = "waiting"
	Copying State = "copying"
	Done    State = "done"
	Exists  State = "exists" // the target had it, or took it from another of its repositories
)

// Progress is the state of one blob.
type Progress struct {
	Blob    digest.Digest
	State   State
	Current int64 // bytes
	Total   int64
}

// CopyRequest says what to copy.
type CopyRequest struct {
	From, To  Place
	Platform  string // of an index only this; empty: all of it
	Referrers bool
	Progress  func(Progress) // from several goroutines; may be nil
}

// Copied is what a copy did.
type Copied struct {
	Digest    digest.Digest
	Bytes     int64 // sent
	Manifests int
	Blobs     int
}

// Copy copies what From names to To. Blobs come before the manifests that name them, and the tag is last.
func (m *Remote) Copy(ctx context.Context, r CopyRequest) (Copied, error) {
	doc, err := m.fetch(ctx, r.From)
	if err != nil {
		return Copied{}, err
	}
	if r.Platform != "" && registry.IsIndex(doc.MediaType) {
		if doc, err = m.pick(ctx, r.From, doc, r.Platform); err != nil {
			return Copied{}, err
		}
	}
	c := m.newCopier(r)
	if err := c.manifest(ctx, doc, r.To, 0); err != nil {
		return Copied{}, err
	}
	if r.Referrers {
		if err := c.referrers(ctx, doc.Digest); err != nil {
			return Copied{}, err
		}
	}
	c.done.Digest = doc.Digest
	return c.done, nil
}

// document is a manifest or index.
type document struct {
	Raw []byte
	ocispec.Descriptor
}

func (m *Remote) fetch(ctx context.Context, p Place) (document, error) {
	raw, desc, err := m.Registry.Manifest(ctx, p.Name, p.Auth)
	return document{raw, desc}, err
}

// pick fetches the manifest for a platform.
func (m *Remote) pick(ctx context.Context, from Place, index document, platform string) (document, error) {
	want, err := manifest.Platform(platform)
	if err != nil {
		return document{}, err
	}
	all, err := manifest.ParseIndex(index.Raw, index.MediaType)
	if err != nil {
		return document{}, err
	}
	chosen, err := manifest.Select(all, want)
	if err != nil {
		return document{}, err
	}
	at, err := from.at(chosen.Digest)
	if err != nil {
		return document{}, err
	}
	return m.fetch(ctx, at)
}

// Manifest fetches what p names; of an index, if platform is not empty, the manifest for that.
func (m *Remote) Manifest(ctx context.Context, p Place, platform string) ([]byte, ocispec.Descriptor, error) {
	doc, err := m.fetch(ctx, p)
	if err == nil && platform != "" && registry.IsIndex(doc.MediaType) {
		doc, err = m.pick(ctx, p, doc, platform)
	}
	return doc.Raw, doc.Descriptor, err
}

// copier is one copy on its way.
type copier struct {
	*Remote
	CopyRequest
	mountFrom string

	mu    sync.Mutex
	seen  map[digest.Digest]bool
	done  Copied
	limit chan struct{}
}

func (m *Remote) newCopier(r CopyRequest) *copier {
	if r.Progress == nil {
		r.Progress = func(Progress) {}
	}
	c := &copier{Remote: m, CopyRequest: r, seen: map[digest.Digest]bool{}, limit: make(chan struct{}, max(m.Copies, 1))}
	if reference.Domain(r.From.Name) == reference.Domain(r.To.Name) && reference.Path(r.From.Name) != reference.Path(r.To.Name) {
		c.mountFrom = reference.Path(r.From.Name)
	}
	return c
}

// first reports whether d has not been seen yet: manifests of an index share blobs.
func (c *copier) first(d digest.Digest) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	was := c.seen[d]
	c.seen[d] = true
	return !was
}

// manifest copies doc with all it names and stores it as to.
func (c *copier) manifest(ctx context.Context, doc document, to Place, depth int) error {
	if depth > manifest.MaxNested {
		return fault.DataLoss.Errorf("BAD_IMAGE", "image refused: indexes in indexes in indexes")
	}
	var err error
	if registry.IsIndex(doc.MediaType) {
		err = c.index(ctx, doc, depth)
	} else {
		err = c.blobs(ctx, doc)
	}
	if err != nil {
		return err
	}
	if _, err := c.Registry.PushManifest(ctx, to.Name, doc.MediaType, doc.Raw, to.Auth); err != nil {
		return err
	}
	c.mu.Lock()
	c.done.Manifests++
	c.mu.Unlock()
	return nil
}

func (c *copier) index(ctx context.Context, doc document, depth int) error {
	all, err := manifest.ParseIndex(doc.Raw, doc.MediaType)
	if err != nil {
		return err
	}
	for _, d := range all {
		if err := c.byDigest(ctx, d.Digest, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// byDigest copies the manifest d, by digest only.
func (c *copier) byDigest(ctx context.Context, d digest.Digest, depth int) error {
	if !c.first(d) {
		return nil
	}
	from, err := c.From.at(d)
	if err != nil {
		return err
	}
	to, err := c.To.at(d)
	if err != nil {
		return err
	}
	doc, err := c.fetch(ctx, from)
	if err != nil {
		return err
	}
	return c.manifest(ctx, doc, to, depth)
}

// blobs copies what a manifest names. Any manifest will do, an artifact's as well as an image's.
func (c *copier) blobs(ctx context.Context, doc document) error {
	var named struct {
		Config ocispec.Descriptor   `json:"config"`
		Layers []ocispec.Descriptor `json:"layers"`
	}
	if err := json.Unmarshal(doc.Raw, &named); err != nil {
		return fault.DataLoss.Errorf("BAD_IMAGE", "image refused: manifest: %v", err)
	}
	if len(named.Layers) > manifest.MaxLayers {
		return fault.DataLoss.Errorf("BAD_IMAGE", "image refused: %d layers are more than %d", len(named.Layers), manifest.MaxLayers)
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, d := range append(named.Layers, named.Config) {
		if !c.first(d.Digest) {
			continue
		}
		c.Progress(Progress{d.Digest, Waiting, 0, d.Size})
		g.Go(func() error { return c.blob(ctx, d) })
	}
	return g.Wait()
}

func (c *copier) blob(ctx context.Context, d ocispec.Descriptor) error {
	select {
	case c.limit <- struct{}{}:
		defer func() { <-c.limit }()
	case <-ctx.Done():
		return ctx.Err()
	}
	open := func() (io.ReadCloser, error) { return c.source(ctx, d) }
	skipped, err := c.Registry.PushBlob(ctx, c.To.repository(), d, open, c.mountFrom, c.To.Auth, func(sent int64) {
		c.Progress(Progress{d.Digest, Copying, sent, d.Size})
	})
	if err != nil {
		return err
	}
	state := Done
	c.mu.Lock()
	c.done.Blobs++
	if skipped {
		state = Exists
	} else {
		c.done.Bytes += d.Size
	}
	c.mu.Unlock()
	c.Progress(Progress{d.Digest, state, d.Size, d.Size})
	return nil
}

// referrers copies what refers to d, and what refers to that.
func (c *copier) referrers(ctx context.Context, d digest.Digest) error {
	all, err := c.Registry.Referrers(ctx, c.From.repository(), d, "", c.From.Auth)
	if err != nil {
		return err
	}
	for _, r := range all {
		if !c.first(r.Digest) {
			continue
		}
		from, err := c.From.at(r.Digest)
		if err != nil {
			return err
		}
		to, err := c.To.at(r.Digest)
		if err != nil {
			return err
		}
		doc, err := c.fetch(ctx, from)
		if err != nil {
			return err
		}
		if err := c.blobs(ctx, doc); err != nil {
			return err
		}
		if err := c.Registry.PushReferrer(ctx, to.Name, doc.Raw, d, r, to.Auth); err != nil {
			return err
		}
		c.done.Manifests++
		if err := c.referrers(ctx, r.Digest); err != nil {
			return err
		}
	}
	return nil
}

// source reads a blob of the source, taking it up again where it breaks off, and fails at the last byte if the digest is
// wrong: the target would notice too, but blame nobody. Of a blob whose beginning the target has from an earlier copy only
// the rest is read, and the target alone compares the digest.
func (c *copier) source(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	s := &sourceBlob{from: c.From, desc: d, registry: c.Registry, verifier: d.Digest.Verifier()}
	s.ctx, s.stop = registry.Lingering(ctx)
	if err := s.open(); err != nil {
		s.stop()
		return nil, err
	}
	return s, nil
}

type sourceBlob struct {
	ctx      context.Context
	stop     func()
	registry *registry.Client
	from     Place
	desc     ocispec.Descriptor
	body     io.ReadCloser
	at       int64
	broken   int             // times in a row without a byte in between
	verifier digest.Verifier // nil: read from somewhere in the middle
}

const maxBroken = 4

func (s *sourceBlob) open() (err error) {
	s.body, err = s.registry.Blob(s.ctx, s.from.repository(), s.desc, s.at, s.from.Auth)
	return err
}

func (s *sourceBlob) Read(p []byte) (int, error) {
	for {
		n, err := s.body.Read(p)
		s.at += int64(n)
		if n > 0 {
			s.broken = 0
		}
		if s.verifier != nil {
			s.verifier.Write(p[:n])
		}
		if s.verifier != nil && (err == io.EOF || err == nil && s.at == s.desc.Size) && !s.verifier.Verified() {
			return 0, fault.DataLoss.Errorf("DIGEST_MISMATCH", "blob %s in %s is damaged", s.desc.Digest, s.from.Name.Name()).With("digest", s.desc.Digest.String())
		}
		var broken *registry.InterruptedError
		if !errors.As(err, &broken) {
			return n, err
		}
		if s.broken++; s.broken > maxBroken {
			return n, err
		}
		s.body.Close()
		if err := s.open(); err != nil {
			s.body = io.NopCloser(errReader{err})
			return n, err
		}
		if n > 0 {
			return n, nil
		}
	}
}

// Seek goes to an offset from the start, before anything has been read.
func (s *sourceBlob) Seek(offset int64, whence int) (int64, error) {
	if whence != io.SeekStart || s.at != 0 {
		return 0, errors.ErrUnsupported
	}
	if offset == 0 {
		return 0, nil
	}
	s.body.Close()
	s.at, s.verifier = offset, nil
	if err := s.open(); err != nil {
		s.body = io.NopCloser(errReader{err})
		return 0, err
	}
	return offset, nil
}

func (s *sourceBlob) Close() error {
	s.stop()
	return s.body.Close()
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, fmt.Errorf("read blob: %w", r.err) }
