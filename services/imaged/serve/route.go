package serve

import (
	"net/http"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"berth/services/imaged/store"
)

// call is one request.
type call struct {
	*Server
	w    *writer
	r    *http.Request
	user string // who asks; empty: nobody in particular
	path string // of the repository
}

// Handler is the registry as HTTP sees it.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+tokenPath, s.token)
	mux.HandleFunc("/v2/{rest...}", s.serve)
	return mux
}

// serve finds out who asks, and for what. Repositories' paths have slashes, so what follows them is looked for from the
// end.
func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	began := time.Now()
	c := &call{Server: s, w: newWriter(w, s.stall), r: r}
	r.Body = c.w.body(r.Body)
	defer c.log(began)
	defer c.w.finish()
	user, ok := s.access.who(r)
	rest := r.PathValue("rest")
	if c.user = user; !ok || !s.access.may(r, user, rest) {
		c.challenge(ok && user != "" && rest != "")
		return
	}
	c.route(rest)
}

func (c *call) route(rest string) {
	switch {
	case rest == "":
		c.only(map[string]func(){http.MethodGet: func() { c.json(http.StatusOK, struct{}{}) }})
		return
	case rest == "_catalog":
		c.only(map[string]func(){http.MethodGet: c.catalog})
		return
	}
	if path, ok := strings.CutSuffix(rest, "/tags/list"); ok {
		c.in(path, map[string]func(){http.MethodGet: c.tags})
		return
	}
	if i := strings.LastIndex(rest, "/blobs/uploads/"); i >= 0 {
		c.uploadRoute(rest[:i], rest[i+len("/blobs/uploads/"):])
		return
	}
	if path, ok := strings.CutSuffix(rest, "/blobs/uploads"); ok {
		c.uploadRoute(path, "")
		return
	}
	i := strings.LastIndexByte(rest, '/')
	if i < 0 {
		c.fail(http.StatusNotFound, unsupported, "there is nothing here")
		return
	}
	last := rest[i+1:]
	if path, ok := strings.CutSuffix(rest[:i], "/manifests"); ok {
		c.in(path, map[string]func(){
			http.MethodGet: func() { c.getManifest(last) }, http.MethodPut: func() { c.putManifest(last) }, http.MethodDelete: func() { c.deleteManifest(last) },
		})
		return
	}
	path, isBlob := strings.CutSuffix(rest[:i], "/blobs")
	path, isReferrers := strings.CutSuffix(path, "/referrers")
	if isBlob == isReferrers {
		c.fail(http.StatusNotFound, unsupported, "there is nothing here")
		return
	}
	d := digest.Digest(last)
	if err := store.Check(d); err != nil {
		c.fail(http.StatusBadRequest, digestInvalid, "%v", err)
		return
	}
	if isReferrers {
		c.in(path, map[string]func(){http.MethodGet: func() { c.referrers(d) }})
		return
	}
	c.in(path, map[string]func(){http.MethodGet: func() { c.getBlob(d) }, http.MethodDelete: func() { c.deleteBlob(d) }})
}

func (c *call) uploadRoute(path, id string) {
	if id == "" {
		c.in(path, map[string]func(){http.MethodPost: c.beginUpload})
		return
	}
	c.in(path, map[string]func(){
		http.MethodGet: func() { c.withUpload(id, c.uploadStatus) }, http.MethodPatch: func() { c.withUpload(id, c.patchUpload) },
		http.MethodPut: func() { c.withUpload(id, c.endUpload) }, http.MethodDelete: func() { c.withUpload(id, c.cancelUpload) },
	})
}

// in is only, for a repository.
func (c *call) in(path string, methods map[string]func()) {
	if !validPath(path) {
		c.fail(http.StatusBadRequest, nameInvalid, "%.300q is not the name of a repository", path)
		return
	}
	c.path = path
	if _, _, ok := foreign(path); ok && c.r.Method != http.MethodGet && c.r.Method != http.MethodHead {
		c.fail(http.StatusForbidden, denied, "%s belongs to another registry: here it can only be pulled", path)
		return
	}
	c.only(methods)
}

// only calls the function of the request's method; HEAD is a GET whose body is not sent.
func (c *call) only(methods map[string]func()) {
	method := c.r.Method
	if method == http.MethodHead {
		method = http.MethodGet
	}
	f := methods[method]
	if f == nil {
		c.fail(http.StatusMethodNotAllowed, unsupported, "%s is not for this", c.r.Method)
		return
	}
	c.w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	f()
}
