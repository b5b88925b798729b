package hosted

import (
	"time"

	"berth/internal/fault"
	"berth/internal/journal"
	"berth/services/imaged/store"

	"github.com/opencontainers/go-digest"
)

// AddBlob makes a blob, written to its end, part of a repository, provided that it comes to the digest d. The caller
// discards it otherwise.
func (h *Hosted) AddBlob(name string, b *store.Staged, d digest.Digest) error {
	if err := b.Claim(d); err != nil {
		return err
	}
	if err := b.Verify(); err != nil {
		return err
	}
	lease := h.Images.Lease()
	defer lease.Release()
	if _, ok := lease.Blob(d); !ok {
		if err := b.Sync(); err != nil {
			return err
		}
		if err := lease.AddBlob(b); err != nil {
			return err
		}
	}
	return h.link(name, d)
}

// Mount makes a blob that is here part of a repository. It reports whether there is one.
func (h *Hosted) Mount(name string, d digest.Digest) (bool, error) {
	lease := h.Images.Lease()
	defer lease.Release()
	if _, ok := lease.Blob(d); !ok {
		return false, nil
	}
	return true, h.link(name, d)
}

// link records that a repository has a blob, which the caller holds.
func (h *Hosted) link(name string, d digest.Digest) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	r := h.repo(name)
	defer h.tidy(name)
	_, known := r.loose[d]
	if !known && len(r.loose) >= maxLoose {
		return fault.ResourceExhausted.Errorf("TOO_MANY_BLOBS", "repository %s has %d blobs that no manifest needs", name, len(r.loose))
	}
	now := time.Now()
	var batch journal.Batch
	if err := put(&batch, blobKey(name, d), now); err != nil {
		return err
	}
	var kept []digest.Digest
	if !known {
		kept = []digest.Digest{d}
	}
	if err := h.Images.Keep(&batch, kept); err != nil {
		return err
	}
	r.loose[d] = now
	return nil
}

// maxLoose is how many blobs of a repository may wait for manifests: those of ten images of the largest number of layers.
const maxLoose = 10_000

// HasBlob reports whether a repository has a blob, itself or through an image named in it.
func (h *Hosted) HasBlob(name string, d digest.Digest) bool {
	h.mu.RLock()
	r := h.repos[name]
	ok := r != nil && (r.uses[d] > 0 || !r.loose[d].IsZero())
	h.mu.RUnlock()
	return ok || h.Images.BlobIn(h.Canonical(name), d)
}

// RemoveBlob takes a blob out of a repository. FailedPrecondition while something in it needs it.
func (h *Hosted) RemoveBlob(name string, d digest.Digest) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	r := h.repos[name]
	if r == nil || r.uses[d] == 0 && r.loose[d].IsZero() {
		return fault.NotFound.Errorf("BLOB_NOT_FOUND", "no blob %s in repository %s", d, name)
	}
	if r.uses[d] > 0 {
		return fault.FailedPrecondition.Errorf("BLOB_IN_USE", "blob %s is part of a manifest in repository %s", d, name).
			Hint("delete the manifest first")
	}
	_, err := h.dropLoose(name, []digest.Digest{d})
	return err
}

// DropLoose lets go of blobs that were pushed at least age ago and that no manifest came for. It gives the bytes that
// this frees.
func (h *Hosted) DropLoose(age time.Duration) (bytes int64, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for name, r := range h.repos {
		n, err := h.dropLoose(name, r.looseSince(age))
		if bytes += n; err != nil {
			return bytes, err
		}
	}
	return bytes, nil
}

// looseSince are the loose blobs of a repository that were pushed at least age ago.
func (r *repo) looseSince(age time.Duration) (old []digest.Digest) {
	for d, since := range r.loose {
		if time.Since(since) >= age {
			old = append(old, d)
		}
	}
	return old
}

// dropLoose is for some of the loose blobs of a repository. The caller holds mu.
func (h *Hosted) dropLoose(name string, all []digest.Digest) (int64, error) {
	if len(all) == 0 {
		return 0, nil
	}
	var batch journal.Batch
	for _, d := range all {
		batch.Delete(blobKey(name, d))
	}
	n, err := h.Images.LetGo(&batch, all)
	if err == nil {
		for _, d := range all {
			delete(h.repos[name].loose, d)
		}
		h.tidy(name)
	}
	return n, err
}
