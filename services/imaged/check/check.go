// Package check looks for damage in what imaged keeps, and mends it: every blob
// is hashed again, every unpacked layer is compared with its blob unpacked anew.
// What is damaged, and only that, is fetched from where the image came from; a
// layer whose blob is right needs no network.
package check

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"berth/internal/fault"
	"berth/services/imaged/graph"
	"berth/services/imaged/images"
	"berth/services/imaged/manifest"
	"berth/services/imaged/pull"
	"berth/services/imaged/registry"
	"berth/services/imaged/store"
	"berth/services/imaged/worker"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Checker checks images. Its methods may be called from any goroutine.
type Checker struct {
	Store    *store.Store
	Driver   graph.Driver
	Images   *images.Images
	Registry pull.Registry
	Workers  *worker.Workers
}

// Request says what to check.
type Request struct {
	Images []string // names or ids; none: all
	Repair bool
	Auth   func(host string) registry.Auth // credentials for repairs; may be nil
	// Progress and Found are called from one goroutine.
	Progress func(part digest.Digest, state string, size int64)
	Found    func(Finding)
}

// Finding is one damaged part.
type Finding struct {
	Image   digest.Digest // the first image found to need it
	Part    digest.Digest // of the blob, or diff id of the layer
	Layer   bool          // the unpacked layer, not the blob
	Problem string
	// Mended: it is right now. Otherwise Err says why it could not be mended, if
	// that was asked for.
	Mended bool
	Err    error
}

// Result adds up what was looked at.
type Result struct {
	Images, Blobs, Layers int
	Bytes                 int64 // of blobs
	Damaged, Mended       int
}

// Check looks at the images' parts, each once. An error is one of the check
// itself: damage is told by Found.
func (c *Checker) Check(ctx context.Context, r Request) (Result, error) {
	ids, err := c.ids(r.Images)
	if err != nil {
		return Result{}, err
	}
	w := &work{Checker: c, ctx: ctx, Request: r, bad: map[part]bool{}}
	for _, id := range ids {
		info, err := c.Images.Inspect(id)
		if errors.Is(err, fault.NotFound) { // removed meanwhile
			continue
		}
		if err != nil {
			return w.result, err
		}
		if err := w.image(info.Image); err != nil {
			return w.result, err
		}
		w.result.Images++
	}
	return w.result, nil
}

func (c *Checker) ids(names []string) (all []digest.Digest, err error) {
	for _, n := range names {
		found, err := c.Images.Find(n)
		if err != nil {
			return nil, err
		}
		all = append(all, found.ID)
	}
	if len(names) == 0 {
		for _, i := range c.Images.List() {
			all = append(all, i.ID)
		}
	}
	return all, nil
}

type part struct {
	digest digest.Digest
	layer  bool
}

// work is one Check.
type work struct {
	*Checker
	Request
	ctx    context.Context
	bad    map[part]bool // whether it is, of parts that were looked at
	result Result
}

// image checks the parts of an image: the manifest, which says how large the
// others are, the configuration, and each layer's blob and unpacked form.
func (w *work) image(i images.Image) error {
	sizes := map[digest.Digest]int64{}
	ok, err := w.blob(i, blob{digest: i.Manifest, size: -1, manifest: true})
	if err != nil {
		return err
	}
	if ok {
		raw, err := w.Store.ReadAll(i.Manifest, manifest.MaxBytes)
		if err != nil {
			return err
		}
		m, err := manifest.Parse(raw, i.MediaType)
		if err != nil {
			return err
		}
		for _, d := range append(m.Layers, m.Config) {
			sizes[d.Digest] = d.Size
		}
	}
	size := func(d digest.Digest) int64 {
		if n, ok := sizes[d]; ok {
			return n
		}
		return -1
	}
	if _, err := w.blob(i, blob{digest: i.ID, size: size(i.ID)}); err != nil {
		return err
	}
	for _, l := range i.Layers {
		ok, err := w.blob(i, blob{digest: l.Blob, diffID: l.DiffID, size: size(l.Blob)})
		if err != nil {
			return err
		}
		if err := w.layer(i, l, ok); err != nil {
			return err
		}
	}
	for _, ref := range w.Checker.Images.Wholes(i.ID) {
		if err := w.beside(i, ref); err != nil {
			return err
		}
	}
	return nil
}

// beside checks the index that is kept with a name of an image, and what it leads to.
func (w *work) beside(i images.Image, ref images.Ref) error {
	ok, err := w.blob(i, blob{digest: ref.Index, size: -1, manifest: true})
	if err != nil {
		return err
	}
	if ok {
		tree, err := w.Checker.Images.Tree(ref, func(d ocispec.Descriptor) (bool, error) {
			return w.blob(i, blob{digest: d.Digest, size: d.Size, manifest: manifest.Readable(d.MediaType)})
		})
		if err != nil {
			return err
		}
		for _, d := range tree.Blobs {
			if _, err := w.blob(i, blob{digest: d.Digest, size: d.Size}); err != nil {
				return err
			}
		}
	}
	for _, d := range ref.Tree { // what was not come by, as what lists it is bad
		if _, err := w.blob(i, blob{digest: d, size: -1}); err != nil {
			return err
		}
	}
	return nil
}

// blob is what is known of one.
type blob struct {
	digest, diffID digest.Digest // the latter of a layer
	size           int64         // -1: not known
	manifest       bool          // registries have it among their manifests
}

// blob checks a blob and reports whether it is right now.
func (w *work) blob(i images.Image, b blob) (bool, error) {
	d := b.digest
	if bad, ok := w.bad[part{d, false}]; ok {
		return !bad, nil
	}
	n, _ := w.Store.Size(d)
	w.Progress(d, "hashing", n)
	err := w.Store.Verify(d)
	if ctxErr := w.ctx.Err(); ctxErr != nil {
		return false, context.Cause(w.ctx)
	}
	w.result.Blobs++
	w.result.Bytes += n
	w.bad[part{d, false}] = err != nil
	if err == nil {
		w.Progress(d, "right", n)
		return true, nil
	}
	f := Finding{Image: i.ID, Part: d, Problem: err.Error()}
	if w.Repair {
		f.Err = w.fetch(i, b)
		f.Mended = f.Err == nil
		w.bad[part{d, false}] = !f.Mended
	}
	w.found(f)
	return f.Mended, nil
}

func (w *work) found(f Finding) {
	w.result.Damaged++
	if f.Mended {
		w.result.Mended++
	}
	w.Found(f)
}

// fetch gets a blob from one of the registries that had the image.
func (w *work) fetch(i images.Image, b blob) error {
	sources := w.Checker.Images.Sources(i.ID)
	if len(sources) == 0 {
		return fault.FailedPrecondition.Errorf("NO_SOURCE", "the image came from no registry").Hint("load, import or build it again")
	}
	var errs []error
	for _, repo := range sources {
		err := w.fetchFrom(repo, b)
		if err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (w *work) fetchFrom(repo reference.Named, b blob) error {
	w.Progress(b.digest, "fetching", max(b.size, 0))
	var auth registry.Auth
	if w.Auth != nil {
		auth = w.Auth(reference.Domain(repo))
	}
	body, size, err := w.open(repo, b, auth)
	if err != nil {
		return err
	}
	defer body.Close()
	staged, err := w.Store.Stage(b.digest, size)
	if err != nil {
		return err
	}
	defer staged.Discard()
	if _, err := io.Copy(staged, body); err != nil {
		return fmt.Errorf("fetch from %s: %w", repo, err)
	}
	if err := errors.Join(staged.Verify(), staged.Sync()); err != nil {
		return err
	}
	return w.Checker.Images.MendBlob(staged, b.diffID)
}

// open begins to read a blob or manifest from a registry.
func (w *work) open(repo reference.Named, b blob, auth registry.Auth) (io.ReadCloser, int64, error) {
	if !b.manifest {
		if b.size < 0 {
			return nil, 0, fault.DataLoss.Errorf("IMAGE_DAMAGED", "its size is not known, as the manifest is missing")
		}
		body, err := w.Registry.Blob(w.ctx, repo, ocispec.Descriptor{Digest: b.digest, Size: b.size}, 0, auth)
		return body, b.size, err
	}
	ref, err := reference.WithDigest(repo, b.digest)
	if err != nil {
		return nil, 0, err
	}
	raw, _, err := w.Registry.Manifest(w.ctx, ref, auth)
	return io.NopCloser(strings.NewReader(string(raw))), int64(len(raw)), err
}

// layer checks an unpacked layer, if its blob is right.
func (w *work) layer(i images.Image, l images.Layer, blobOK bool) error {
	key := part{l.DiffID, true}
	if _, ok := w.bad[key]; ok {
		return nil
	}
	w.bad[key] = false
	w.result.Layers++
	have, there := w.Checker.Images.LayerNamed(l.DiffID)
	comparer, ok := w.Driver.(graph.Comparer)
	if there && (!ok || !blobOK) {
		return nil // nothing to compare it with
	}
	f := Finding{Image: i.ID, Part: l.DiffID, Layer: true, Problem: fmt.Sprintf("layer %s is missing", l.DiffID)}
	if !blobOK {
		f.Err = fault.FailedPrecondition.Errorf("NO_SOURCE", "its blob is damaged as well")
		w.found(f)
		return nil
	}
	w.Progress(l.DiffID, "comparing", have.Bytes)
	staged, err := w.unpack(l)
	if err != nil {
		return err
	}
	defer staged.Discard()
	if there {
		diff, err := comparer.Compare(w.ctx, have.Name, staged)
		if err != nil && w.ctx.Err() == nil {
			diff, err = err.Error(), nil // it cannot be read: damage too
		}
		if diff == "" || err != nil {
			return err
		}
		f.Problem = fmt.Sprintf("layer %s is damaged: %s", l.DiffID, diff)
	}
	if w.Repair {
		f.Err = staged.Sync()
		if f.Err == nil {
			f.Err = w.Checker.Images.MendLayer(l.DiffID, staged)
		}
		f.Mended = f.Err == nil
	}
	w.bad[key] = !f.Mended
	w.found(f)
	return nil
}

func (w *work) unpack(l images.Layer) (graph.Staged, error) {
	blob, err := w.Store.Open(l.Blob)
	if err != nil {
		return nil, err
	}
	defer blob.Close()
	staged, diffID, err := w.Workers.Unpack(w.ctx, w.Driver, blob)
	if err != nil {
		return nil, err
	}
	if diffID != l.DiffID {
		staged.Discard()
		return nil, fault.DataLoss.Errorf("DIGEST_MISMATCH", "layer %s contains %s, but the image says %s", l.Blob, diffID, l.DiffID)
	}
	return staged, nil
}
