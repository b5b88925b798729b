package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth/internal/config"
	apiv1 "berth/proto/berth/api/v1"
	"berth/services/imaged/graph/graphtest"
	"berth/services/imaged/images"
	"berth/services/imaged/manifest"
	"berth/services/imaged/worker/workertest"
)

// BenchmarkManyImages times a start, a list and a removal with 10,000 images of ten layers each, none of which is shared, or
// as many as BERTH_IMAGES says. Making them takes minutes; with BERTH_MANY_DIR they are made there, on a disk of
// choice, and found there by the next run.
func BenchmarkManyImages(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("SKIPPED: unpacking needs root")
	}
	count := 10_000
	if n, err := strconv.Atoi(os.Getenv("BERTH_IMAGES")); err == nil {
		count = n
	}
	dir := os.Getenv("BERTH_MANY_DIR")
	if dir == "" {
		dir = b.TempDir()
	}
	addMany(b, dir, count)

	b.Run("start", func(b *testing.B) {
		for b.Loop() {
			s := openMany(b, dir)
			b.StopTimer()
			s.Close()
			b.StartTimer()
		}
	})
	s := openMany(b, dir)
	defer s.Close()
	service := imageService{server: s}
	b.Run("list", func(b *testing.B) {
		for b.Loop() {
			if n := len(listAll(b, service)); n < count/2 {
				b.Fatalf("%d images", n)
			}
		}
	})
	b.Run("remove", func(b *testing.B) {
		all := listAll(b, service)
		for b.Loop() {
			if len(all) == count/2 {
				b.Fatal("too many removals: use -benchtime 100x")
			}
			if _, err := service.Remove(b.Context(), &apiv1.ImageServiceRemoveRequest{Image: all[0].Id}); err != nil {
				b.Fatal(err)
			}
			all = all[1:]
		}
	})
}

func openMany(t testing.TB, dir string) *server {
	t.Helper()
	s, err := open(dir, workertest.Workers(t).Path, config.Default().Imaged, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// listAll is all images, page by page as the command line asks for them.
func listAll(t testing.TB, service imageService) (all []*apiv1.ImageSummary) {
	t.Helper()
	var req apiv1.ImageServiceListRequest
	for {
		page, err := service.List(t.Context(), &req)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, page.Images...)
		if req.PageToken = page.NextPageToken; req.PageToken == "" {
			return all
		}
	}
}

// addMany makes images in dir until there are count.
func addMany(t testing.TB, dir string, count int) {
	t.Helper()
	s := openMany(t, dir)
	defer s.Close()
	for len(s.images.List()) < count {
		for range 100 {
			if err := addOne(t, s, time.Now().UnixNano()); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// addOne makes an image of ten layers of one file each, that no other image has.
func addOne(t testing.TB, s *server, number int64) error {
	lease := s.images.Lease()
	defer lease.Release()
	created := time.Unix(number/1e9, 0)
	c := manifest.Config{Created: &created, Architecture: "amd64", OS: "linux"}
	c.RootFS.Type = "layers"
	var descs []ocispec.Descriptor
	var layers []images.Layer
	for l := range 10 {
		var archive bytes.Buffer
		w := tar.NewWriter(&archive)
		w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("%d-%d", number, l), Mode: 0o644})
		w.Close()
		raw := archive.Bytes()
		d := digest.FromBytes(raw)
		blob, err := s.store.Stage(d, int64(len(raw)))
		if err != nil {
			return err
		}
		defer blob.Discard()
		if _, err := blob.Write(raw); err != nil {
			return err
		}
		staged, err := s.driver.Stage(t.Context(), graphtest.Make(raw))
		if err != nil {
			return err
		}
		defer staged.Discard()
		if err := blob.Verify(); err != nil {
			return err
		}
		if err := lease.AddLayer(blob, d, staged); err != nil {
			return err
		}
		c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, d)
		descs = append(descs, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: d, Size: int64(len(raw))})
		layers = append(layers, images.Layer{Blob: d, DiffID: d})
	}
	rawConfig, err := json.Marshal(c)
	if err != nil {
		return err
	}
	id := digest.FromBytes(rawConfig)
	raw, target, err := manifest.New(ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: id, Size: int64(len(rawConfig))}, descs)
	if err != nil {
		return err
	}
	for d, document := range map[digest.Digest][]byte{id: rawConfig, target: raw} {
		if err := lease.AddDocument(document, d); err != nil {
			return err
		}
	}
	ref := images.Ref{Image: id, Target: target, Since: time.Now()}
	repo := fmt.Sprintf("registry.example/team%d/app%d", number%7, number/1000%97)
	return lease.AddImage(images.Image{ID: id, Manifest: target, MediaType: ocispec.MediaTypeImageManifest, Layers: layers},
		map[string]images.Ref{fmt.Sprintf("%s:v%d", repo, number): ref, repo + "@" + target.String(): ref})
}
