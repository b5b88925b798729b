package serve

import (
	"errors"
	"mime"
	"net/http"
	"strings"

	"berth/internal/fault"
	"berth/services/imaged/hosted"
	"berth/services/imaged/images"
	"berth/services/imaged/manifest"
	"berth/services/imaged/store"

	"github.com/opencontainers/go-digest"
)

// maxTags is how many tags one request may give.
const maxTags = 64

// putManifest takes a manifest in, by tag, or by digest with any number of tags.
func (c *call) putManifest(text string) {
	p := hosted.Push{Repository: c.path}
	if strings.Contains(text, ":") {
		p.Digest, p.Tags = digest.Digest(text), c.r.URL.Query()["tag"]
		if err := store.Check(p.Digest); err != nil {
			c.fail(http.StatusBadRequest, digestInvalid, "%v", err)
			return
		}
	} else {
		p.Tags = []string{text}
	}
	if len(p.Tags) > maxTags {
		c.fail(http.StatusRequestURITooLong, tooMany, "%d tags are more than %d", len(p.Tags), maxTags)
		return
	}
	for _, t := range p.Tags {
		if !validTag(t) {
			c.fail(http.StatusBadRequest, manifestInvalid, "%.200q is not a tag", t)
			return
		}
	}
	var err error
	if p.Raw, err = readAll(c.r, manifest.MaxBytes); err != nil {
		if errors.Is(err, errTooLong) {
			c.fail(http.StatusRequestEntityTooLarge, sizeInvalid, "manifests have at most %d bytes", int64(manifest.MaxBytes))
		} else {
			c.fail(http.StatusBadRequest, sizeInvalid, "the request broke off")
		}
		return
	}
	p.MediaType, _, _ = mime.ParseMediaType(c.r.Header.Get("Content-Type"))
	pushed, err := c.Hosted.Put(c.r.Context(), p)
	switch {
	case fault.ReasonOf(err) == "PART_UNKNOWN":
		c.fail(http.StatusBadRequest, manifestBlobUnknown, "%v", err)
		return
	case fault.ReasonOf(err) == "DIGEST_MISMATCH":
		c.fail(http.StatusBadRequest, digestInvalid, "%v", err)
		return
	case err != nil:
		c.failWith(err, manifestInvalid)
		return
	}
	c.tell(p, pushed)
	if pushed.Subject != "" {
		c.w.Header().Set("OCI-Subject", pushed.Subject.String())
	}
	if strings.Contains(text, ":") && len(p.Tags) > 0 {
		c.w.Header().Set("OCI-Tag", strings.Join(p.Tags, ", "))
	}
	c.created("manifests", pushed.Digest)
}

// tell says what became of a push.
func (c *call) tell(p hosted.Push, pushed hosted.Pushed) {
	if pushed.Image == "" {
		c.Log.Debug("pushed manifest is no image here", "repository", c.path, "digest", pushed.Digest, "reason", pushed.Reason)
		return
	}
	for _, t := range p.Tags {
		c.Named(pushed.Image, c.Hosted.Canonical(c.path)+":"+t)
	}
}

// deleteManifest takes a tag away, or a manifest with all its tags.
func (c *call) deleteManifest(text string) {
	var removal images.Removal
	var err error
	if d := digest.Digest(text); strings.Contains(text, ":") {
		if err := store.Check(d); err != nil {
			c.fail(http.StatusBadRequest, digestInvalid, "%v", err)
			return
		}
		removal, err = c.Hosted.RemoveManifest(c.path, d)
	} else if !validTag(text) {
		c.fail(http.StatusNotFound, manifestUnknown, "%.200q is neither tag nor digest", text)
		return
	} else {
		removal, err = c.Hosted.RemoveTag(c.path, text)
	}
	c.Removed(removal)
	if err != nil {
		c.failWith(err, manifestUnknown)
		return
	}
	c.w.WriteHeader(http.StatusAccepted)
}

func (c *call) deleteBlob(d digest.Digest) {
	err := c.Hosted.RemoveBlob(c.path, d)
	if fault.Is(err, fault.FailedPrecondition) {
		c.fail(http.StatusMethodNotAllowed, unsupported, "%v", err)
		return
	}
	if err != nil {
		c.failWith(err, blobUnknown)
		return
	}
	c.w.WriteHeader(http.StatusAccepted)
}
