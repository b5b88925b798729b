package hosted

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"berth/internal/fault"
	"berth/internal/faultpoint"
	"berth/internal/journal"
	"berth/services/imaged/images"
	"berth/services/imaged/manifest"
	"berth/services/imaged/registry"
	"berth/services/imaged/store"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

var manifestHosted = faultpoint.Declare("imaged.manifest-hosted", "a pushed manifest is recorded, its tags and its image are not")

const (
	maxManifests = 100_000 // over all repositories
	maxParts     = 1000    // configuration, layers or manifests of one manifest
)

// Push is a manifest on its way in.
type Push struct {
	Repository string
	Tags       []string      // to be pointed to it; none: it goes by its digest alone
	Digest     digest.Digest // what it must come to; empty: whatever it is
	MediaType  string        // it came as
	Raw        []byte
}

// Pushed is what became of a Push.
type Pushed struct {
	Digest  digest.Digest
	Subject digest.Digest // what it is about; empty for nothing
	Image   digest.Digest // id of the image it is here; empty: none
	// Reason says why it is no image.
	Reason string
}

// document is what is read of a manifest or index.
type document struct {
	Config       *ocispec.Descriptor  `json:"config"`
	Layers       []ocispec.Descriptor `json:"layers"`
	Manifests    []ocispec.Descriptor `json:"manifests"`
	Subject      *ocispec.Descriptor  `json:"subject"`
	ArtifactType string               `json:"artifactType"`
}

// parse reads a manifest, refusing what two readers could understand in two ways.
func (p *Push) parse() (doc document, err error) {
	if p.MediaType, err = registry.CheckManifest(p.Raw, p.MediaType); err != nil {
		return doc, err
	}
	if err := json.Unmarshal(p.Raw, &doc); err != nil {
		return doc, bad("%v", err)
	}
	algorithm := digest.Canonical
	if p.Digest != "" {
		algorithm = p.Digest.Algorithm()
	}
	is := algorithm.FromBytes(p.Raw)
	if p.Digest != "" && p.Digest != is {
		return doc, fault.DataLoss.Errorf("DIGEST_MISMATCH", "manifest %s came as %s", p.Digest, is)
	}
	p.Digest = is
	parts := slices.Concat(doc.Layers, doc.Manifests)
	if doc.Config != nil {
		parts = append(parts, *doc.Config)
	}
	if doc.Subject != nil {
		parts = append(parts, *doc.Subject)
	}
	if len(parts) > maxParts+2 {
		return doc, bad("it has %d parts, more than %d", len(parts), maxParts)
	}
	for _, d := range parts {
		if err := store.Check(d.Digest); err != nil {
			return doc, bad("%v", err)
		}
		if d.Size < 0 {
			return doc, bad("%s has a size of %d bytes", d.Digest, d.Size)
		}
	}
	return doc, nil
}

func bad(format string, args ...any) error {
	return fault.DataLoss.Errorf("BAD_MANIFEST", "manifest refused: "+format, args...)
}

// Put takes a manifest in. When it returns it is on the disk, served, and an image if it can run here.
func (h *Hosted) Put(ctx context.Context, p Push) (Pushed, error) {
	doc, err := p.parse()
	if err != nil {
		return Pushed{}, err
	}
	lease := h.Images.Lease()
	defer lease.Release()
	record, err := h.record(lease, p, doc)
	if err != nil {
		return Pushed{}, err
	}
	pushed := Pushed{Digest: p.Digest, Subject: record.Subject}
	image, err := h.image(ctx, lease, p)
	switch fault.KindOf(err) {
	case fault.None:
		pushed.Image = image.ID
	case fault.DataLoss, fault.Unimplemented, fault.NotFound:
		pushed.Reason = err.Error() // a registry takes what it cannot run as well
	default:
		return Pushed{}, err
	}
	if err := lease.AddDocument(p.Raw, p.Digest); err != nil {
		return Pushed{}, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	defer h.tidy(p.Repository)
	if err := h.enter(p, record); err != nil {
		return Pushed{}, err
	}
	if err := manifestHosted.Hit(); err != nil {
		return Pushed{}, err
	}
	ref := images.Ref{Image: pushed.Image, Target: p.Digest, Since: time.Now()}
	if pushed.Image == "" {
		h.choose(&ref, lease, p, doc)
		pushed.Image = ref.Image
		if ref.Image == "" {
			return pushed, h.keepTags(p)
		}
		err = h.Images.Point(h.refs(p, ref))
	} else {
		err = lease.AddImage(image, h.refs(p, ref))
	}
	if err == nil {
		err = h.leaveTags(p)
	}
	return pushed, err
}

// record takes hold of the parts of a manifest, which must be here.
func (h *Hosted) record(lease *images.Lease, p Push, doc document) (*Manifest, error) {
	m := &Manifest{MediaType: p.MediaType, Size: int64(len(p.Raw)), Blobs: []digest.Digest{p.Digest}, Since: time.Now()}
	if m.Type = doc.ArtifactType; m.Type == "" && doc.Config != nil {
		m.Type = doc.Config.MediaType
	}
	if doc.Subject != nil {
		m.Subject = doc.Subject.Digest
	}
	blobs := doc.Layers
	if doc.Config != nil {
		blobs = append(blobs, *doc.Config)
	}
	for _, d := range blobs {
		b, ok := lease.Blob(d.Digest)
		if !ok && elsewhere(d.MediaType) {
			continue
		}
		if !ok {
			return nil, missing(p, d.Digest)
		}
		if b.Size != d.Size {
			return nil, bad("%s has %d bytes, not %d", d.Digest, b.Size, d.Size)
		}
		m.Blobs = append(m.Blobs, d.Digest)
	}
	slices.Sort(m.Blobs)
	m.Blobs = slices.Compact(m.Blobs)
	for _, d := range doc.Manifests {
		if _, _, ok := h.Manifest(p.Repository, d.Digest); !ok {
			return nil, missing(p, d.Digest)
		}
		m.Children = append(m.Children, d.Digest)
	}
	return m, nil
}

// elsewhere is for layers that are not to be pushed.
func elsewhere(mediaType string) bool {
	return strings.Contains(mediaType, ".nondistributable.") || strings.Contains(mediaType, ".foreign.")
}

func missing(p Push, d digest.Digest) error {
	return fault.FailedPrecondition.Errorf("PART_UNKNOWN", "manifest refused: repository %s lacks %s", p.Repository, d).With("digest", d.String())
}

// enter records the manifest. The caller holds mu, and the blobs.
func (h *Hosted) enter(p Push, m *Manifest) error {
	r := h.repo(p.Repository)
	if r.manifests[p.Digest] != nil {
		return nil
	}
	sum := 0
	for _, r := range h.repos {
		sum += len(r.manifests)
	}
	if sum >= maxManifests {
		return fault.ResourceExhausted.Errorf("TOO_MANY_MANIFESTS", "this registry has %d manifests and takes no more", sum)
	}
	var batch journal.Batch
	if err := put(&batch, manifestKey(p.Repository, p.Digest), m); err != nil {
		return err
	}
	if err := h.Images.Keep(&batch, m.Blobs); err != nil {
		return err
	}
	r.add(p.Digest, m)
	return nil
}

// refs are the names that an image gets by a push.
func (h *Hosted) refs(p Push, r images.Ref) map[string]images.Ref {
	refs := map[string]images.Ref{h.Canonical(p.Repository) + "@" + p.Digest.String(): r}
	for _, t := range p.Tags {
		refs[h.Canonical(p.Repository)+":"+t] = r
	}
	return refs
}

// choose completes what a name means that is given to an index: the image for this host, or if there is none the first,
// with the index and all it leads to, provided that this can be followed and is here. No image if the index lists none.
// The caller holds mu.
func (h *Hosted) choose(ref *images.Ref, lease *images.Lease, p Push, doc document) {
	best, _ := manifest.Select(doc.Manifests, platforms.DefaultSpec())
	for _, d := range doc.Manifests {
		one, _, ok := h.Images.RefOf(h.Canonical(p.Repository) + "@" + d.Digest.String())
		if ok && (ref.Image == "" || d.Digest == best.Digest) {
			ref.Image = one.Image
		}
	}
	listed, err := manifest.ParseIndex(p.Raw, p.MediaType)
	if err != nil || ref.Image == "" {
		return
	}
	tree, err := manifest.ReadTree(listed, func(d ocispec.Descriptor) ([]byte, error) { return h.Store.ReadAll(d.Digest, manifest.MaxBytes) })
	if err != nil {
		return
	}
	all := tree.Digests()
	for _, d := range all {
		if _, ok := lease.Blob(d); !ok {
			return
		}
	}
	ref.Index, ref.Tree = p.Digest, all
}

// leaveTags drops the records of tags that are names of an image from now on. The caller holds mu.
func (h *Hosted) leaveTags(p Push) error {
	r := h.repo(p.Repository)
	var batch journal.Batch
	for _, t := range p.Tags {
		if _, ok := r.tags[t]; ok {
			batch.Delete(tagKey(p.Repository, t))
		}
	}
	if batch.Len() == 0 {
		return nil
	}
	if err := h.journal.Commit(&batch, true); err != nil {
		return err
	}
	for _, t := range p.Tags {
		delete(r.tags, t)
	}
	return nil
}

// keepTags records tags of what is no image, and takes them from images. The caller holds mu.
func (h *Hosted) keepTags(p Push) error {
	if len(p.Tags) == 0 {
		return nil
	}
	tag := Tag{Digest: p.Digest, Since: time.Now()}
	var batch journal.Batch
	var names []string
	for _, t := range p.Tags {
		if err := put(&batch, tagKey(p.Repository, t), tag); err != nil {
			return err
		}
		names = append(names, h.Canonical(p.Repository)+":"+t)
	}
	if err := h.journal.Commit(&batch, true); err != nil {
		return err
	}
	r := h.repo(p.Repository)
	for _, t := range p.Tags {
		r.tags[t] = tag
	}
	_, err := h.Images.Unname(names...)
	return err
}
