package main

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"berth/bench/orders"
)

const manyLayers = 40

// layers compares launches of two images that have the same files, in one layer and in many.
func layers(ctx context.Context, s *subjects, g group) ([]finding, error) {
	p := &peer{charge: s.berth.charge}
	for _, n := range []int{1, manyLayers} {
		c := spec()
		c.Image = fmt.Sprintf("layers-%d:latest", n)
		archive := filepath.Join(s.work, fmt.Sprintf("layers-%d.tar", n))
		if err := writeArchive(archive, s.image, c.Image, n); err != nil {
			return nil, err
		}
		if err := s.berth.words("load", "-i", archive); err != nil {
			return nil, err
		}
		p.addOrder(g.name, fmt.Sprintf("berth gRPC, layers: %d", n), s.berth.client, orders.Order{Op: "run", Spec: specOf(c)}, nil)
	}
	err := takeTurns(ctx, p.contenders, pause, s.warm, s.rounds)
	return []finding{fromTurns(g, p.contenders)}, err
}

// writeArchive writes an image in the form of `docker save`: the root file system base, and on it one small file in
// each further layer.
func writeArchive(path, base, name string, layers int) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	out := tar.NewWriter(f)
	var names, ids []string
	for i := range layers {
		var content []byte
		if i == 0 {
			content, err = os.ReadFile(base)
		} else {
			content, err = smallLayer(i)
		}
		if err != nil {
			return err
		}
		sum := sha256.Sum256(content)
		ids = append(ids, "sha256:"+hex.EncodeToString(sum[:]))
		names = append(names, fmt.Sprintf("%d.tar", i))
		if err := writeFile(out, names[i], content); err != nil {
			return err
		}
	}
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux", "config": map[string]any{},
		"rootfs": map[string]any{"type": "layers", "diff_ids": ids},
	})
	if err != nil {
		return err
	}
	manifest, err := json.Marshal([]any{map[string]any{"Config": "config.json", "RepoTags": []string{name}, "Layers": names}})
	if err != nil {
		return err
	}
	for _, file := range []struct {
		name    string
		content []byte
	}{{"config.json", config}, {"manifest.json", manifest}} {
		if err := writeFile(out, file.name, file.content); err != nil {
			return err
		}
	}
	if err := out.Close(); err != nil {
		return err
	}
	return f.Close()
}

func smallLayer(i int) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := writeFile(w, fmt.Sprintf("etc/layer-%d", i), fmt.Appendf(nil, "%d\n", i)); err != nil {
		return nil, err
	}
	err := w.Close()
	return b.Bytes(), err
}

func writeFile(w *tar.Writer, name string, content []byte) error {
	if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(content))}); err != nil {
		return err
	}
	_, err := w.Write(content)
	return err
}
