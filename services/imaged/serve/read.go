package serve

import (
	"bytes"
	"net/http"
	"os"
	"strings"
	"time"

	"berth/services/imaged/images"
	"berth/services/imaged/manifest"
	"berth/services/imaged/registry"
	"berth/services/imaged/store"

	"github.com/opencontainers/go-digest"
)

// getManifest answers with a manifest, by tag or digest.
func (c *call) getManifest(text string) {
	d := digest.Digest(text)
	if !strings.Contains(text, ":") {
		if !validTag(text) {
			c.fail(http.StatusNotFound, manifestUnknown, "%.200q is neither tag nor digest", text)
			return
		}
		var ok bool
		if d, ok = c.tagged(text); !ok {
			c.fail(http.StatusNotFound, manifestUnknown, "no tag %s in repository %s", text, c.path)
			return
		}
	} else if err := store.Check(d); err != nil {
		c.fail(http.StatusBadRequest, digestInvalid, "%v", err)
		return
	}
	mediaType, subject, ok := c.manifest(d)
	if !ok {
		c.fail(http.StatusNotFound, manifestUnknown, "no manifest %s in repository %s", d, c.path)
		return
	}
	raw, err := c.Store.ReadAll(d, manifest.MaxBytes)
	if err != nil {
		c.Log.Error("read manifest", "digest", d, "error", err)
		c.fail(http.StatusInternalServerError, manifestUnknown, "manifest %s is damaged here", d)
		return
	}
	if subject != "" {
		c.w.Header().Set("OCI-Subject", subject.String())
	}
	c.content(d, mediaType)
	http.ServeContent(c.w, c.r, "", time.Time{}, bytes.NewReader(raw))
}

// tagged gives what a tag means, here or of another registry's images.
func (c *call) tagged(tag string) (digest.Digest, bool) {
	if d, ok := c.Hosted.Tag(c.path, tag); ok {
		return d, true
	}
	for _, repo := range others(c.path) {
		if _, image, ok := c.Images.RefOf(repo + ":" + tag); ok {
			// The index, if all it lists can be had here: else clients for other platforms would find nothing behind it.
			if f, err := c.Images.Family(images.Found{Image: image, Name: repo + ":" + tag}); err == nil && f.Index != "" {
				return f.Index, true
			}
			return image.Manifest, true
		}
	}
	return "", false
}

func (c *call) manifest(d digest.Digest) (mediaType string, subject digest.Digest, ok bool) {
	if mediaType, subject, ok = c.Hosted.Manifest(c.path, d); ok {
		return mediaType, subject, true
	}
	for _, repo := range others(c.path) {
		if image, ok := c.Images.ManifestIn(repo, d); ok {
			return image.MediaType, "", true
		}
		if c.Images.BesideIn(repo, d) {
			mediaType, err := c.typeOf(d)
			return mediaType, "", err == nil
		}
	}
	return "", "", false
}

// typeOf is the media type of an index that came with an image, or of a manifest that it lists; an error of other blobs.
func (c *call) typeOf(d digest.Digest) (string, error) {
	raw, err := c.Store.ReadAll(d, manifest.MaxBytes)
	if err != nil {
		return "", err
	}
	return registry.CheckManifest(raw, "")
}

func (c *call) hasBlob(path string, d digest.Digest) bool {
	if c.Hosted.HasBlob(path, d) {
		return true
	}
	for _, repo := range others(path) {
		if c.Images.BlobIn(repo, d) {
			return true
		}
	}
	return false
}

// content describes a body that never changes.
func (c *call) content(d digest.Digest, mediaType string) {
	h := c.w.Header()
	h.Set("Content-Type", mediaType)
	h.Set("Docker-Content-Digest", d.String())
	h.Set("ETag", `"`+d.String()+`"`)
	h.Set("X-Content-Type-Options", "nosniff") // it is a stranger's
}

// getBlob answers with a blob, or ranges of it.
func (c *call) getBlob(d digest.Digest) {
	var f *os.File
	var err error
	if c.hasBlob(c.path, d) {
		f, err = c.Store.Open(d)
	}
	if f == nil {
		if err != nil {
			c.Log.Error("open blob", "digest", d, "error", err)
		}
		c.fail(http.StatusNotFound, blobUnknown, "no blob %s in repository %s", d, c.path)
		return
	}
	defer f.Close()
	c.content(d, "application/octet-stream")
	http.ServeContent(c.w, c.r, "", time.Time{}, f)
}
