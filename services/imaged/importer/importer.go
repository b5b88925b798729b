// Package importer makes images of archives of files: of one layer, such as
// "tar -C rootfs -c ." gives, or of a layer on top of an image, such as what a
// container changed.
package importer

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"sync"
	"time"

	"berth/services/imaged/graph"
	"berth/services/imaged/images"
	"berth/services/imaged/manifest"
	"berth/services/imaged/store"
	"berth/services/imaged/worker"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Importer imports archives.
type Importer struct {
	Store   *store.Store
	Driver  graph.Driver
	Images  *images.Images
	Workers *worker.Workers
}

// Request says what to make of an archive.
type Request struct {
	Archive  io.Reader       // tar, plain or compressed with gzip or zstd
	Name     reference.Named // may be nil
	Platform string          // "os/arch[/variant]"; empty: the host's
	Changes  []string        // Dockerfile instructions, see apply
	Message  string          // for the history
	Progress func(read int64)
}

// Import makes the image. A failed one leaves nothing behind.
func (im *Importer) Import(ctx context.Context, r Request) (images.Image, error) {
	config, err := newConfig(r)
	if err != nil {
		return images.Image{}, err
	}
	lease := im.Images.Lease()
	defer lease.Release()
	layer, diffID, err := im.layer(ctx, r, lease)
	if err != nil {
		return images.Image{}, err
	}
	config.RootFS.DiffIDs = []digest.Digest{diffID}
	rawConfig, err := json.Marshal(config)
	if err != nil {
		return images.Image{}, err
	}
	return im.finish(lease, []images.Layer{{Blob: layer.Digest, DiffID: diffID}}, rawConfig, []ocispec.Descriptor{layer}, r.Name)
}

func newConfig(r Request) (manifest.Config, error) {
	platform, err := manifest.Platform(r.Platform)
	if err != nil {
		return manifest.Config{}, err
	}
	now := time.Now().UTC()
	c := manifest.Config{
		Created: &now, Architecture: platform.Architecture, OS: platform.OS, Variant: platform.Variant,
		History: []manifest.History{{Created: &now, CreatedBy: "import", Comment: r.Message}},
	}
	c.RootFS.Type = "layers"
	for _, change := range r.Changes {
		if err := apply(&c.Config, change); err != nil {
			return manifest.Config{}, err
		}
	}
	return c, nil
}

// layer stores the archive as a blob and as an unpacked layer, in one pass.
func (im *Importer) layer(ctx context.Context, r Request, lease *images.Lease) (ocispec.Descriptor, digest.Digest, error) {
	blob, err := im.Store.StageNew()
	if err != nil {
		return ocispec.Descriptor{}, "", err
	}
	defer blob.Discard()
	in := bufio.NewReaderSize(&counted{r: r.Archive, progress: r.Progress}, 256<<10)
	out, mediaType, err := sink(in, blob)
	if err != nil {
		return ocispec.Descriptor{}, "", err
	}
	gate := &gate{w: out}
	defer out.Close()
	defer gate.shut() // after a failure the archive may still be being read
	tee := io.TeeReader(in, gate)
	staged, diffID, err := im.Workers.Unpack(ctx, im.Driver, tee)
	if err != nil {
		return ocispec.Descriptor{}, "", fmt.Errorf("import: %w", err)
	}
	defer staged.Discard()
	if _, err := io.Copy(io.Discard, tee); err != nil { // what a decoder leaves behind its end belongs to the blob
		return ocispec.Descriptor{}, "", fmt.Errorf("import: %w", err)
	}
	if err := out.Close(); err != nil {
		return ocispec.Descriptor{}, "", fmt.Errorf("import: %w", err)
	}
	if err := blob.Verify(); err != nil {
		return ocispec.Descriptor{}, "", err
	}
	if err := staged.Sync(); err != nil {
		return ocispec.Descriptor{}, "", err
	}
	if err := blob.Sync(); err != nil {
		return ocispec.Descriptor{}, "", err
	}
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: blob.Digest(), Size: blob.Size()}
	return desc, diffID, lease.AddLayer(blob, diffID, staged)
}

// gate is a writer that can be taken away from a goroutine that still uses it.
type gate struct {
	mu sync.Mutex
	w  io.Writer // nil when shut
}

func (g *gate) Write(p []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.w == nil {
		return 0, io.ErrClosedPipe
	}
	return g.w.Write(p)
}

// shut returns when nothing is being written any more; nothing will be.
func (g *gate) shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.w = nil
}

// counted reports how much was read.
type counted struct {
	r        io.Reader
	n        int64
	progress func(int64)
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	if c.progress != nil && n > 0 {
		c.progress(c.n)
	}
	return n, err
}
