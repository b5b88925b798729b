package serve

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"sync"
	"time"

	"berth/services/imaged/store"

	"github.com/opencontainers/go-digest"
)

const (
	maxUploads = 256
	maxBlob    = 64 << 30 // bytes: the largest layer a pull takes
)

// upload is a blob on its way in. The store has what came of it, and whose it is, also after a restart.
type upload struct {
	uploadNote
	id string

	mu      sync.Mutex    // held by the request that works on it
	blob    *store.Staged // nil: of an earlier process, and not asked for since
	touched time.Time
}

// uploadNote is what the store keeps beside an upload's bytes.
type uploadNote struct {
	Path string `json:"path"` // repository
	User string `json:"user,omitempty"`
}

// uploads are those that began and did not end.
type uploads struct {
	mu   sync.Mutex
	open map[string]*upload
}

// recover finds the uploads that an earlier process had.
func (s *Server) recover() error {
	found, err := s.Store.Uploads(store.UploadAge)
	if err != nil {
		return fmt.Errorf("find uploads: %w", err)
	}
	for _, f := range found {
		u := &upload{id: f.ID, touched: f.Touched}
		// Damaged by a power cut, like the bytes beside it: the client begins anew.
		if err := json.Unmarshal(f.Note, &u.uploadNote); err != nil {
			if err := s.Store.DropUpload(f.ID); err != nil {
				return err
			}
			continue
		}
		s.uploads.open[f.ID] = u
	}
	return nil
}

// discard gives up uploads that no request works on.
func (s *Server) discard(which func(*upload) bool) {
	s.uploads.mu.Lock()
	defer s.uploads.mu.Unlock()
	for id, u := range s.uploads.open {
		if !u.mu.TryLock() {
			continue
		}
		if which(u) {
			u.drop(s.Store)
			delete(s.uploads.open, id)
		}
		u.mu.Unlock()
	}
}

// suspend leaves all uploads to the next process.
func (s *Server) suspend() {
	s.uploads.mu.Lock()
	defer s.uploads.mu.Unlock()
	for _, u := range s.uploads.open {
		if u.mu.TryLock() {
			if u.blob != nil {
				u.blob.Keep()
			}
			u.mu.Unlock()
		}
	}
}

func (u *upload) drop(from *store.Store) error {
	if u.blob == nil {
		return from.DropUpload(u.id)
	}
	u.blob.Discard()
	return nil
}

func (s *uploads) forget(u *upload) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, u.id)
	u.blob.Discard()
}

// beginUpload opens an upload, unless the blob can be mounted from another repository, or came with the request.
func (c *call) beginUpload() {
	q := c.r.URL.Query()
	if a := q.Get("digest-algorithm"); a != "" && a != "sha256" && a != "sha512" {
		c.fail(http.StatusBadRequest, digestInvalid, "digests are sha256 or sha512, not %.40q", a)
		return
	}
	if q.Has("mount") {
		if done := c.mount(digest.Digest(q.Get("mount")), q.Get("from")); done {
			return
		}
	}
	u, err := c.newUpload()
	if err != nil {
		c.failWith(err, uploadInvalid)
		return
	}
	if u == nil {
		c.w.Header().Set("Retry-After", "10")
		c.fail(http.StatusTooManyRequests, tooMany, "%d uploads are under way", maxUploads)
		return
	}
	defer u.mu.Unlock()
	if q.Has("digest") {
		c.endUpload(u)
		if c.w.status != http.StatusCreated {
			c.uploads.forget(u) // nobody knows where it is
		}
		return
	}
	c.place(u)
	c.w.WriteHeader(http.StatusAccepted)
}

// newUpload opens an upload, locked for this request; nil when there are too many.
func (c *call) newUpload() (*upload, error) {
	c.uploads.mu.Lock()
	defer c.uploads.mu.Unlock()
	if len(c.uploads.open) >= maxUploads {
		return nil, nil
	}
	u := &upload{id: rand.Text(), uploadNote: uploadNote{Path: c.path, User: c.user}, touched: time.Now()}
	note, err := json.Marshal(u.uploadNote)
	if err != nil {
		return nil, err
	}
	if u.blob, err = c.Store.BeginUpload(u.id, note); err != nil {
		return nil, err
	}
	u.mu.Lock()
	c.uploads.open[u.id] = u
	return u, nil
}

// mount answers if the blob is here. false: the client has to send it.
func (c *call) mount(d digest.Digest, from string) bool {
	if err := store.Check(d); err != nil {
		c.fail(http.StatusBadRequest, digestInvalid, "%v", err)
		return true
	}
	if from != "" && (!validPath(from) || !c.hasBlob(from, d)) {
		return false
	}
	ok, err := c.Hosted.Mount(c.path, d)
	if err != nil {
		c.failWith(err, blobUnknown)
		return true
	}
	if ok {
		c.created("blobs", d)
	}
	return ok
}

// created answers that something is there now.
func (c *call) created(kind string, d digest.Digest) {
	c.w.Header().Set("Location", "/v2/"+c.path+"/"+kind+"/"+d.String())
	c.w.Header().Set("Docker-Content-Digest", d.String())
	c.w.WriteHeader(http.StatusCreated)
}

// place says where an upload goes on. The address has no host: a client knows how it got here, and what it says of that
// is not to be repeated.
func (c *call) place(u *upload) {
	h := c.w.Header()
	h.Set("Location", "/v2/"+u.Path+"/blobs/uploads/"+u.id)
	h.Set("Docker-Upload-UUID", u.id)
	h.Set("Range", fmt.Sprintf("0-%d", max(u.blob.Size()-1, 0)))
}

// withUpload calls f with an upload of the same repository and user, which is f's alone meanwhile.
func (c *call) withUpload(id string, f func(*upload)) {
	c.uploads.mu.Lock()
	u := c.uploads.open[id]
	ours := u != nil && u.uploadNote == uploadNote{Path: c.path, User: c.user}
	locked := ours && u.mu.TryLock()
	c.uploads.mu.Unlock()
	if !ours {
		c.fail(http.StatusNotFound, uploadUnknown, "no such upload in repository %s", c.path)
		return
	}
	if !locked {
		c.fail(http.StatusConflict, uploadInvalid, "another request works on this upload")
		return
	}
	defer u.mu.Unlock()
	defer func() { u.touched = time.Now() }()
	if u.blob == nil {
		var err error
		if u.blob, err = c.Store.ResumeUpload(id); err != nil {
			c.failWith(err, uploadUnknown)
			return
		}
	}
	f(u)
}

func (c *call) uploadStatus(u *upload) {
	c.place(u)
	c.w.WriteHeader(http.StatusNoContent)
}

func (c *call) cancelUpload(u *upload) {
	c.uploads.forget(u)
	c.w.WriteHeader(http.StatusNoContent)
}

func (c *call) patchUpload(u *upload) {
	if c.receive(u) {
		c.place(u)
		c.w.WriteHeader(http.StatusAccepted)
	}
}

// endUpload takes the last piece, if there is one, and makes the blob visible if it is what it should be.
func (c *call) endUpload(u *upload) {
	d := digest.Digest(c.r.URL.Query().Get("digest"))
	if err := store.Check(d); err != nil {
		c.fail(http.StatusBadRequest, digestInvalid, "%v", err)
		return
	}
	if !c.receive(u) {
		return
	}
	defer c.uploads.forget(u)
	if err := c.Hosted.AddBlob(c.path, u.blob, d); err != nil {
		c.failWith(err, digestInvalid)
		return
	}
	c.created("blobs", d)
}

// rangeForm is that of Content-Range in this protocol, which differs from HTTP's.
var rangeForm = regexp.MustCompile(`^([0-9]{1,18})-([0-9]{1,18})$`)

// receive appends the request's body to the upload. What came of a body that broke off stays: the client asks how much
// that is and goes on. false: it has answered.
func (c *call) receive(u *upload) bool {
	if text := c.r.Header.Get("Content-Range"); text != "" {
		m := rangeForm.FindStringSubmatch(text)
		if m == nil {
			c.fail(http.StatusBadRequest, uploadInvalid, "Content-Range %.60q is not FIRST-LAST", text)
			return false
		}
		first, _ := strconv.ParseInt(m[1], 10, 64)
		last, _ := strconv.ParseInt(m[2], 10, 64)
		if first != u.blob.Size() || last < first {
			c.place(u)
			c.fail(http.StatusRequestedRangeNotSatisfiable, uploadInvalid, "the next byte is %d, not %d", u.blob.Size(), first)
			return false
		}
		if n := c.r.ContentLength; n >= 0 && n != last-first+1 {
			c.fail(http.StatusBadRequest, sizeInvalid, "%d bytes do not fill %s", n, text)
			return false
		}
	}
	if u.blob.Size()+max(c.r.ContentLength, 0) > maxBlob {
		c.uploads.forget(u)
		c.fail(http.StatusRequestEntityTooLarge, sizeInvalid, "blobs have at most %d bytes", int64(maxBlob))
		return false
	}
	buf := make([]byte, 256<<10)
	for {
		n, err := c.r.Body.Read(buf)
		if n > 0 {
			if u.blob.Size()+int64(n) > maxBlob {
				c.uploads.forget(u)
				c.fail(http.StatusRequestEntityTooLarge, sizeInvalid, "blobs have at most %d bytes", int64(maxBlob))
				return false
			}
			if _, err := u.blob.Write(buf[:n]); err != nil {
				c.uploads.forget(u)
				c.failWith(fmt.Errorf("write blob: %w", err), uploadInvalid)
				return false
			}
		}
		if errors.Is(err, io.EOF) {
			return true
		}
		if err != nil {
			c.fail(http.StatusBadRequest, sizeInvalid, "the request broke off")
			return false
		}
	}
}
