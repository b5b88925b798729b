package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"berth/internal/fault"
	"berth/services/imaged/images"
	"berth/services/imaged/manifest"
	"berth/services/imaged/store"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Format is the form of an archive that is written.
type Format string

const (
	Docker Format = "docker" // both forms, as docker save writes
	OCI    Format = "oci"    // the OCI image layout alone
)

// ParseFormat reads the name of a format; empty is Docker.
func ParseFormat(text string) (Format, error) {
	switch text {
	case "", "docker", "docker-archive":
		return Docker, nil
	case "oci", "oci-archive":
		return OCI, nil
	}
	return "", fault.InvalidArgument.Errorf("BAD_FORMAT", "archive format %q is neither docker nor oci", text).With("format", text)
}

// Saver saves images. Its methods may be called from any goroutine.
type Saver struct {
	Store  *store.Store
	Images *images.Images
}

// SaveRequest says what to save.
type SaveRequest struct {
	// Images are names or ids. A name without a tag means all tags of the
	// repository; an image named by id or digest is saved without a name.
	Images   []string
	Format   Format
	Platform string // "os/arch[/variant]" that the images must be for; empty: any
	// AllPlatforms saves images with the index that they came from and all others in it. Only with format OCI.
	AllPlatforms bool
	// Size is told about how long the archive will be, before the first byte.
	Size func(bytes int64)
}

// saved is an image on its way into an archive.
type saved struct {
	images.Image
	raw    []byte // its manifest
	m      manifest.Manifest
	config []byte
	names  []reference.NamedTagged
	// family is what is saved under the names instead of the image alone; nil: the image alone.
	family *images.Family
}

// Save writes the images to w: the same bytes for the same images and names,
// whenever it is done. Every blob is verified on its way. After an error what
// was written is of no use.
func (s *Saver) Save(ctx context.Context, r SaveRequest, w io.Writer) error {
	if r.AllPlatforms && r.Format != OCI {
		return fault.InvalidArgument.Errorf("BAD_FORMAT", "a docker archive holds one platform of an image").With("format", string(r.Format)).
			Hint("ask for format oci")
	}
	lease := s.Images.Lease() // removing an image meanwhile must not take its blobs away
	defer lease.Release()
	all, err := s.collect(r)
	if err != nil {
		return err
	}
	for _, i := range all {
		if err := s.hold(lease, i); err != nil {
			return err
		}
	}
	if r.AllPlatforms {
		if err := s.families(lease, all); err != nil {
			return err
		}
	}
	files, err := s.files(all, r.Format)
	if err != nil {
		return err
	}
	if r.Size != nil {
		r.Size(sizeOf(files))
	}
	return s.write(ctx, w, files)
}

// collect finds the images, each once, in the order asked for.
func (s *Saver) collect(r SaveRequest) ([]*saved, error) {
	var all []*saved
	add := func(found images.Found, name reference.Named) {
		at := slices.IndexFunc(all, func(i *saved) bool { return i.ID == found.ID })
		if at < 0 {
			at = len(all)
			all = append(all, &saved{Image: found.Image})
		}
		if tagged, ok := name.(reference.NamedTagged); ok && !slices.ContainsFunc(all[at].names, func(n reference.NamedTagged) bool { return n.String() == tagged.String() }) {
			all[at].names = append(all[at].names, tagged)
		}
	}
	for _, text := range r.Images {
		tags, err := s.tagsOf(text)
		if err != nil {
			return nil, err
		}
		for _, t := range tags {
			found, err := s.Images.Find(t)
			if err != nil {
				return nil, err
			}
			if r.Platform != "" {
				if found.Image, err = s.Images.For(found, r.Platform); err != nil {
					return nil, err
				}
			}
			if found.Name == "" {
				add(found, nil)
				continue
			}
			name, err := images.ParseName(found.Name)
			if err != nil {
				return nil, err
			}
			if _, ok := name.(reference.Canonical); ok {
				name = nil
			}
			add(found, name)
		}
	}
	return all, nil
}

// tagsOf gives all tags of the repository that text is, if it is one; otherwise
// text alone.
func (s *Saver) tagsOf(text string) ([]string, error) {
	named, err := reference.ParseNormalizedNamed(text)
	if err != nil || !reference.IsNameOnly(named) {
		return []string{text}, nil
	}
	if tags := s.Images.TagsOf(named); len(tags) > 0 {
		return tags, nil
	}
	return []string{text}, nil
}

// families finds what the images' indexes lead to, and keeps that from being deleted.
func (s *Saver) families(lease *images.Lease, all []*saved) error {
	for _, i := range all {
		found := images.Found{Image: i.Image}
		if len(i.names) > 0 {
			found.Name = images.Key(i.names[0])
		}
		family, err := s.Images.Family(found)
		if err != nil {
			return err
		}
		if family.Index == "" {
			continue
		}
		for _, d := range append(family.Tree.Digests(), family.Index) {
			if _, ok := lease.Blob(d); !ok {
				return fault.DataLoss.Errorf("IMAGE_DAMAGED", "blob %s is missing, to which index %s leads", d, family.Index).Hint("pull it again")
			}
		}
		i.family = &family
	}
	return nil
}

// hold reads an image's documents and keeps its blobs from being deleted.
func (s *Saver) hold(lease *images.Lease, i *saved) error {
	missing := func(d digest.Digest) error {
		return fault.DataLoss.Errorf("IMAGE_DAMAGED", "blob %s of image %s is missing", d, i.ID).
			With("image", i.ID.String()).Hint("pull it again")
	}
	for _, d := range i.Blobs() {
		if _, ok := lease.Blob(d); !ok {
			return missing(d)
		}
	}
	var err error
	if i.raw, err = s.Store.ReadAll(i.Manifest, manifest.MaxBytes); err != nil {
		return err
	}
	if i.config, err = s.Store.ReadAll(i.ID, manifest.MaxBytes); err != nil {
		return err
	}
	i.m, err = manifest.Parse(i.raw, i.MediaType)
	return err
}

// file is an element of an archive: bytes, or a blob, or neither, a directory.
type file struct {
	name  string
	raw   []byte
	blob  digest.Digest
	size  int64
	isDir bool
}

// files lists what the archive will hold: what says what is in it comes first,
// so that a reader knows early, then the blobs, each once.
func (s *Saver) files(all []*saved, f Format) ([]file, error) {
	type document struct {
		name  string
		value any
	}
	docs := []document{{layoutFile, ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion}}, {indexFile, indexOf(all)}}
	if f == Docker {
		docs = append(docs, document{manifestFile, dockerManifestOf(all)}, document{repositoriesFile, repositoriesOf(all)})
	}
	var files []file
	for _, d := range docs {
		raw, err := json.Marshal(d.value)
		if err != nil {
			return nil, err
		}
		files = append(files, file{name: d.name, raw: raw, size: int64(len(raw))})
	}
	var blobs []file
	algorithms := map[string]bool{}
	seen := map[digest.Digest]bool{}
	add := func(d digest.Digest, raw []byte, size int64) {
		if !seen[d] {
			seen[d] = true
			algorithms[d.Algorithm().String()] = true
			blobs = append(blobs, file{name: blobName(d), raw: raw, blob: d, size: size})
		}
	}
	for _, i := range all {
		if i.family != nil {
			add(i.family.Index, i.family.Raw, int64(len(i.family.Raw)))
		}
	}
	for _, i := range all {
		add(i.Manifest, i.raw, int64(len(i.raw)))
		add(i.ID, i.config, int64(len(i.config)))
		if i.family != nil {
			for _, m := range i.family.Tree.Manifests {
				add(m.Digest, m.Raw, int64(len(m.Raw)))
			}
		}
	}
	for _, i := range all {
		for _, l := range i.m.Layers {
			add(l.Digest, nil, l.Size)
		}
		if i.family != nil {
			for _, b := range i.family.Tree.Blobs {
				add(b.Digest, nil, b.Size)
			}
		}
	}
	files = append(files, file{name: blobsDir, isDir: true})
	for _, a := range slices.Sorted(maps.Keys(algorithms)) {
		files = append(files, file{name: blobsDir + a + "/", isDir: true})
	}
	return append(files, blobs...), nil
}

// indexOf is index.json: a descriptor for each name.
func indexOf(all []*saved) ocispec.Index {
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	for _, i := range all {
		desc := ocispec.Descriptor{MediaType: i.m.MediaType, Digest: i.Manifest, Size: int64(len(i.raw))}
		if i.family != nil {
			desc = ocispec.Descriptor{MediaType: i.family.MediaType, Digest: i.family.Index, Size: int64(len(i.family.Raw))}
		}
		if len(i.names) == 0 {
			index.Manifests = append(index.Manifests, desc)
		}
		for _, n := range i.names {
			desc.Annotations = map[string]string{annotationName: n.String(), annotationRef: n.Tag()}
			index.Manifests = append(index.Manifests, desc)
		}
	}
	return index
}

func dockerManifestOf(all []*saved) []dockerImage {
	var docs []dockerImage
	for _, i := range all {
		d := dockerImage{Config: blobName(i.ID), Layers: []string{}}
		for _, n := range i.names {
			d.RepoTags = append(d.RepoTags, reference.FamiliarString(n))
		}
		for _, l := range i.m.Layers {
			d.Layers = append(d.Layers, blobName(l.Digest))
		}
		docs = append(docs, d)
	}
	return docs
}

// repositoriesOf maps repository and tag to the image's top layer.
func repositoriesOf(all []*saved) map[string]map[string]string {
	repos := map[string]map[string]string{}
	for _, i := range all {
		if len(i.m.Layers) == 0 {
			continue
		}
		for _, n := range i.names {
			repo := reference.FamiliarName(n)
			if repos[repo] == nil {
				repos[repo] = map[string]string{}
			}
			repos[repo][n.Tag()] = i.m.Layers[len(i.m.Layers)-1].Digest.Encoded()
		}
	}
	return repos
}

// sizeOf is about how long the archive of files is.
func sizeOf(files []file) int64 {
	sum := int64(2 * blockSize)
	for _, f := range files {
		sum += blockSize + (f.size+blockSize-1)/blockSize*blockSize
	}
	return sum
}

func (s *Saver) write(ctx context.Context, w io.Writer, files []file) error {
	tw := tar.NewWriter(w)
	buf := make([]byte, 256<<10)
	for _, f := range files {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: f.name, Mode: 0o644, Size: f.size, ModTime: time.Unix(0, 0)}
		if f.isDir {
			h.Typeflag, h.Mode = tar.TypeDir, 0o755
		}
		if err := tw.WriteHeader(h); err != nil {
			return fmt.Errorf("write archive: %w", err)
		}
		var err error
		switch {
		case f.raw != nil:
			_, err = io.Copy(tw, bytes.NewReader(f.raw))
		case f.blob != "":
			err = s.copyBlob(ctx, tw, f, buf)
		}
		if err != nil {
			return fmt.Errorf("write archive: %w", err)
		}
	}
	return tw.Close()
}

// copyBlob writes a blob and makes sure that it was the right one.
func (s *Saver) copyBlob(ctx context.Context, w io.Writer, f file, buf []byte) error {
	in, err := s.Store.Open(f.blob)
	if err != nil {
		return err
	}
	defer in.Close()
	v := f.blob.Verifier()
	var n int64
	for {
		k, err := in.Read(buf)
		if n += int64(k); n > f.size {
			break
		}
		v.Write(buf[:k])
		if _, err := w.Write(buf[:k]); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
	}
	if n != f.size || !v.Verified() {
		return fault.DataLoss.Errorf("BLOB_DAMAGED", "blob %s is damaged", f.blob).With("digest", f.blob.String()).
			Hint("`berth image check --repair` fetches it again")
	}
	return nil
}
