package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// address is fixed, as the network namespace is the bench's own.
const address = "127.0.0.1:5000"

// emptyAddress is of a second registry, which has nothing before a push.
const emptyAddress = "127.0.0.1:5001"

// registry is docker-registry with the images in it.
type registry struct {
	dir string
	cmd *exec.Cmd
}

// edition is part of the cache's name; it changes whenever image.go makes other images.
const edition = "pull-1"

// startRegistry serves the images, which are made and pushed the first time.
func startRegistry(o options) (*registry, error) {
	dir := filepath.Join(o.cache, edition)
	if _, err := os.Stat(dir); err == nil {
		r, err := serve(dir, o.work, address)
		if err == nil {
			err = r.warm()
		}
		return r, err
	}
	part := dir + ".part"
	if err := os.RemoveAll(part); err != nil {
		return nil, err
	}
	r, err := serve(part, o.work, address)
	if err != nil {
		return nil, err
	}
	for _, i := range images {
		fmt.Fprintf(os.Stderr, "bench: making %s\n", i.name)
		if err := r.fill(i, o); err != nil {
			_ = r.close()
			return nil, fmt.Errorf("make %s: %w", i.name, err)
		}
	}
	if err := r.close(); err != nil {
		return nil, err
	}
	if err := os.Rename(part, dir); err != nil {
		return nil, err
	}
	return serve(dir, o.work, address)
}

// serve starts docker-registry on storage in dir.
func serve(dir, work, address string) (*registry, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	config := filepath.Join(work, "registry-"+address+".yml")
	text := fmt.Sprintf("version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\nstorage: {filesystem: {rootdirectory: %q}}\nhttp: {addr: %q}\n", dir, address)
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		return nil, err
	}
	r := &registry{dir: dir, cmd: exec.Command("docker-registry", "serve", config)}
	r.cmd.Env = []string{"PATH=/usr/bin:/bin", "OTEL_TRACES_EXPORTER=none"}
	log, err := os.Create(config + ".log") // it complains of blobs that a push finds it does not have
	if err != nil {
		return nil, err
	}
	defer log.Close()
	r.cmd.Stderr = log
	if err := r.cmd.Start(); err != nil {
		return nil, err
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		resp, err := http.Get("http://" + address + "/v2/")
		if err == nil {
			resp.Body.Close()
			return r, nil
		}
		if time.Now().After(deadline) {
			_ = r.close()
			text, _ := os.ReadFile(log.Name())
			return nil, fmt.Errorf("docker-registry does not answer: %w\n%s", err, text)
		}
	}
}

func (r *registry) close() error {
	if err := r.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	_ = r.cmd.Wait() // by the signal
	return nil
}

// warm reads everything once, so that no engine waits for the registry's disk.
func (r *registry) warm() error {
	return filepath.WalkDir(r.dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(io.Discard, f)
		return err
	})
}

func (r *registry) fill(i image, o options) error {
	dir, err := os.MkdirTemp(o.work, "image")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	blobs, manifest, err := i.build(dir, o.debian)
	if err != nil {
		return err
	}
	for _, b := range blobs {
		if err := r.pushBlob(i.name, b); err != nil {
			return err
		}
	}
	return send(http.MethodPut, "http://"+address+"/v2/"+i.name+"/manifests/latest", ocispec.MediaTypeImageManifest, bytes.NewReader(manifest), nil)
}

func (r *registry) pushBlob(repo string, b blob) error {
	var session string
	err := send(http.MethodPost, "http://"+address+"/v2/"+repo+"/blobs/uploads/", "", nil, &session)
	if err != nil {
		return err
	}
	f, err := os.Open(b.path)
	if err != nil {
		return err
	}
	defer f.Close()
	u, err := url.Parse(session)
	if err != nil {
		return err
	}
	q := u.Query()
	q.Set("digest", b.desc.Digest.String())
	u.RawQuery = q.Encode()
	return send(http.MethodPut, u.String(), "application/octet-stream", f, nil)
}

func send(method, url, contentType string, body io.Reader, location *string) error {
	req, err := http.NewRequest(method, url, body)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", contentType)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		text, _ := io.ReadAll(resp.Body)
		return fmt.Errorf("%s %s: %s: %s", method, req.URL.Path, resp.Status, strings.TrimSpace(string(text)))
	}
	if location != nil {
		*location = resp.Header.Get("Location")
	}
	return nil
}

// manifest is what the registry has of an image.
func (r *registry) manifest(name string) (m ocispec.Manifest, err error) {
	req, err := http.NewRequest(http.MethodGet, "http://"+address+"/v2/"+name+"/manifests/latest", nil)
	if err != nil {
		return m, err
	}
	req.Header.Set("Accept", ocispec.MediaTypeImageManifest)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return m, err
	}
	defer resp.Body.Close()
	return m, json.NewDecoder(resp.Body).Decode(&m)
}

// blobFile is where the registry keeps a blob.
func (r *registry) blobFile(d ocispec.Descriptor) string {
	hex := d.Digest.Encoded()
	return filepath.Join(r.dir, "docker/registry/v2/blobs/sha256", hex[:2], hex, "data")
}
