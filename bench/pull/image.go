package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// image is one image to pull.
type image struct {
	name        string // in the registry
	title       string
	compression string
	make        func(debian string) []layerMaker
}

// layerMaker writes one layer as a tar.
type layerMaker func(w *tar.Writer) error

var images = []image{
	{"busybox", "busybox, one gzip layer of 2 MB", "gzip", busyboxLayers},
	{"debian", "Debian minbase, one gzip layer", "gzip", debianLayer},
	{"large-gzip", "1.4 GB in eight gzip layers, 76,000 files", "gzip", largeLayers},
	{"large-zstd", "the same in zstd", "zstd", largeLayers},
}

func find(name string) image {
	for _, i := range images {
		if i.name == name {
			return i
		}
	}
	panic("no image " + name)
}

func busyboxLayers(string) []layerMaker {
	return []layerMaker{func(w *tar.Writer) error {
		b, err := os.ReadFile("/bin/busybox")
		if err != nil {
			return err
		}
		return writeFile(w, "bin/busybox", 0o755, b)
	}}
}

// debianLayer is the root file system as debootstrap made it.
func debianLayer(debian string) []layerMaker {
	return []layerMaker{func(w *tar.Writer) error {
		return eachEntry(debian, func(h *tar.Header, r io.Reader) error {
			if err := w.WriteHeader(h); err != nil {
				return err
			}
			_, err := io.Copy(w, r)
			return err
		})
	}}
}

const (
	filledLayers  = 7
	filesPerLayer = 10_000
	filesPerDir   = 100
	medianBytes   = 5800 // of a file; the mean is three times that
)

// largeLayers are Debian and seven layers of small files. Their content is cut out of Debian's own files, so that it
// compresses as real software does; sizes are log-normal, as those of real trees.
func largeLayers(debian string) []layerMaker {
	all := debianLayer(debian)
	for n := range filledLayers {
		all = append(all, func(w *tar.Writer) error {
			corpus, err := readCorpus(debian)
			if err != nil {
				return err
			}
			rnd := rand.New(rand.NewPCG(uint64(n), 1))
			for i := range filesPerLayer {
				if i%filesPerDir == 0 {
					dir := &tar.Header{Typeflag: tar.TypeDir, Name: fmt.Sprintf("opt/part%d/%03d/", n, i/filesPerDir), Mode: 0o755, ModTime: made}
					if err := w.WriteHeader(dir); err != nil {
						return err
					}
				}
				size := min(int(medianBytes*math.Exp(1.5*rnd.NormFloat64())), 8<<20)
				at := rnd.IntN(len(corpus) - size)
				if err := writeFile(w, fmt.Sprintf("opt/part%d/%03d/file%05d", n, i/filesPerDir, i), 0o644, corpus[at:at+size]); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return all
}

var made = time.Unix(1_700_000_000, 0)

func writeFile(w *tar.Writer, name string, mode int64, content []byte) error {
	if err := w.WriteHeader(&tar.Header{Name: name, Mode: mode, Size: int64(len(content)), ModTime: made}); err != nil {
		return err
	}
	_, err := w.Write(content)
	return err
}

// readCorpus is the content of all regular files of the archive, one behind the other.
func readCorpus(debian string) ([]byte, error) {
	var b bytes.Buffer
	err := eachEntry(debian, func(h *tar.Header, r io.Reader) error {
		_, err := io.Copy(&b, r)
		return err
	})
	return b.Bytes(), err
}

func eachEntry(archive string, f func(*tar.Header, io.Reader) error) error {
	file, err := os.Open(archive)
	if err != nil {
		return fmt.Errorf("%w; scripts/setup.sh test makes it", err)
	}
	defer file.Close()
	for r := tar.NewReader(file); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := f(h, r); err != nil {
			return err
		}
	}
}

// blob is a file that goes into the registry.
type blob struct {
	path string
	desc ocispec.Descriptor
	diff digest.Digest // of a layer: of the tar in it
}

// makeLayer writes a compressed layer to a file.
func makeLayer(path, compression string, write layerMaker) (b blob, err error) {
	f, err := os.Create(path)
	if err != nil {
		return b, err
	}
	defer f.Close()
	packed := counted{w: f, h: sha256.New()}
	var z io.WriteCloser
	b.path, b.desc.MediaType = path, ocispec.MediaTypeImageLayerGzip
	if compression == "zstd" {
		b.desc.MediaType = ocispec.MediaTypeImageLayerZstd
		if z, err = zstd.NewWriter(&packed); err != nil {
			return b, err
		}
	} else {
		z = gzip.NewWriter(&packed)
	}
	plain := counted{w: z, h: sha256.New()}
	w := tar.NewWriter(&plain)
	if err := errors.Join(write(w), w.Close(), z.Close()); err != nil {
		return b, err
	}
	b.diff = digest.NewDigest(digest.SHA256, plain.h)
	b.desc.Digest, b.desc.Size = digest.NewDigest(digest.SHA256, packed.h), packed.n
	return b, nil
}

type counted struct {
	w io.Writer
	h hash.Hash
	n int64
}

func (c *counted) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.h.Write(p[:n])
	c.n += int64(n)
	return n, err
}

// build makes an image's blobs in dir, and its manifest.
func (i image) build(dir, debian string) (blobs []blob, manifest []byte, err error) {
	makers := i.make(debian)
	blobs = make([]blob, len(makers))
	var g errgroup.Group
	g.SetLimit(4)
	for n, m := range makers {
		g.Go(func() (err error) {
			blobs[n], err = makeLayer(filepath.Join(dir, fmt.Sprintf("%s-%d", i.name, n)), i.compression, m)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, nil, err
	}
	config := ocispec.Image{Created: &made}
	config.OS, config.Architecture, config.RootFS.Type = "linux", "amd64", "layers"
	var m ocispec.Manifest
	m.SchemaVersion, m.MediaType = 2, ocispec.MediaTypeImageManifest
	for _, b := range blobs {
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, b.diff)
		m.Layers = append(m.Layers, b.desc)
	}
	raw, err := json.Marshal(config)
	if err != nil {
		return nil, nil, err
	}
	c := blob{path: filepath.Join(dir, i.name+"-config")}
	c.desc = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	if err := os.WriteFile(c.path, raw, 0o644); err != nil {
		return nil, nil, err
	}
	m.Config = c.desc
	manifest, err = json.Marshal(m)
	return append(blobs, c), manifest, err
}
