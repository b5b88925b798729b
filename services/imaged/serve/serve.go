// Package serve makes imaged a registry for other hosts: the OCI distribution protocol 1.1 over the images of the store
// and what was pushed to it (package hosted).
//
//	routes     route.go, name.go     which resource a request is about, and which images a path means
//	access     access.go, users.go   who may pull and who may push
//	reading    read.go, list.go      manifests, blobs, tags, referrers, the catalog
//	writing    upload.go, write.go   blobs in one piece or in many, manifests, deletion
//	manners    conn.go, answer.go    clients that stall, floods, errors in the protocol's form
//
// Clients are strangers. Whatever one sends is bounded in size, in number and in the time it may make no progress, names
// pass the protocol's grammar before they are looked up and are never made into paths, and nothing that was pushed is
// visible before its bytes came to its digest.
package serve

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"berth/internal/fault"
	"berth/services/imaged/hosted"
	"berth/services/imaged/images"
	"berth/services/imaged/store"

	"github.com/distribution/reference"
	"github.com/hashicorp/go-hclog"
	"github.com/opencontainers/go-digest"
	"golang.org/x/net/netutil"
)

// Config says what is served, where and to whom.
type Config struct {
	Listen    string // host:port
	Cert, Key string // PEM files; empty: clear HTTP
	Insecure  bool   // clear HTTP to other hosts is meant

	Users         string   // file of lines NAME:BCRYPT-HASH; empty: there are none
	PushUsers     []string // who may push and delete
	AnonymousPull bool     // whoever reaches it may pull

	Hosted *hosted.Hosted
	Images *images.Images
	Store  *store.Store
	Log    hclog.Logger
	// Named is told of images that got a name, Removed of names and images that went.
	Named   func(image digest.Digest, name string)
	Removed func(images.Removal)
}

const (
	maxConnections = 1024
	maxHeader      = 64 << 10
	headerTimeout  = 10 * time.Second // for all of a request's head
	stallTimeout   = time.Minute      // without a byte read or written
	idleTimeout    = time.Minute      // between two requests of a connection
	stopTimeout    = 5 * time.Second  // for requests under way when imaged stops
)

// Server is the registry. Make it with Open.
type Server struct {
	Config
	listener net.Listener
	access   *access
	uploads  uploads
	stall    time.Duration
}

// Name is what names of images begin with that are pushed to a registry at address listen, if the configuration does not
// say: what it is called on its own host.
func Name(listen string) string {
	_, port, _ := net.SplitHostPort(listen)
	return "localhost:" + port
}

// Open checks the configuration and begins to listen. Run serves.
func Open(c Config) (*Server, error) {
	host, port, err := net.SplitHostPort(c.Listen)
	if err != nil || port == "" {
		return nil, bad("imaged.serve.listen = %q: want host:port", c.Listen)
	}
	if named, err := reference.ParseNormalizedNamed(c.Hosted.Name + "/x"); err != nil || reference.Domain(named) != c.Hosted.Name {
		return nil, bad("imaged.serve.name = %q: want a registry's name, host or host:port", c.Hosted.Name)
	}
	if (c.Cert == "") != (c.Key == "") {
		return nil, bad("imaged.serve: tls_cert and tls_key go together")
	}
	ip := net.ParseIP(strings.Trim(host, "[]"))
	if c.Cert == "" && !c.Insecure && host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return nil, bad("imaged.serve.listen = %q is not the loopback, and there is no tls_cert", c.Listen).
			Hint("give it tls_cert and tls_key, or say insecure = true")
	}
	s := &Server{Config: c, stall: stallTimeout}
	if s.access, err = newAccess(c); err != nil {
		return nil, err
	}
	if s.listener, err = net.Listen("tcp", c.Listen); err != nil {
		if errors.Is(err, os.ErrPermission) {
			return nil, bad("imaged.serve: %w", err).Hint("imaged runs without CAP_NET_BIND_SERVICE: take a port from 1024 on")
		}
		return nil, fmt.Errorf("imaged.serve: %w", err)
	}
	if c.Cert != "" {
		cert, err := tls.LoadX509KeyPair(c.Cert, c.Key)
		if err != nil {
			s.listener.Close()
			return nil, bad("imaged.serve: %w", err).Hint("the files must be readable by the user berth-imaged")
		}
		s.listener = tls.NewListener(netutil.LimitListener(s.listener, maxConnections), &tls.Config{
			Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"},
		})
	} else {
		s.listener = netutil.LimitListener(s.listener, maxConnections)
	}
	s.uploads.open = map[string]*upload{}
	if err := s.recover(); err != nil {
		s.listener.Close()
		return nil, err
	}
	return s, nil
}

func bad(format string, args ...any) *fault.Error {
	return fault.InvalidArgument.Errorf("BAD_CONFIG", format, args...)
}

// URL is where it listens.
func (s *Server) URL() string {
	if s.Cert != "" {
		return "https://" + s.listener.Addr().String()
	}
	return "http://" + s.listener.Addr().String()
}

// Run serves until ctx is done, and then waits for requests under way for some seconds.
func (s *Server) Run(ctx context.Context) error {
	s.Log.Info("serving images", "url", s.URL(), "name", s.Hosted.Name)
	h := &http.Server{
		Handler: s.Handler(), ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader,
		ErrorLog: s.Log.StandardLogger(&hclog.StandardLoggerOptions{ForceLevel: hclog.Debug}),
	}
	// One protocol is enough, and HTTP/2 has its own ways to be flooded.
	h.Protocols = new(http.Protocols)
	h.Protocols.SetHTTP1(true)
	ctx, cancel := context.WithCancel(ctx)
	var work sync.WaitGroup
	work.Go(func() {
		<-ctx.Done()
		grace, done := context.WithTimeout(context.Background(), stopTimeout)
		defer done()
		if h.Shutdown(grace) != nil {
			h.Close()
		}
	})
	work.Go(func() { s.sweep(ctx) })
	err := h.Serve(s.listener)
	cancel()
	work.Wait()
	s.suspend()
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// Close ends the listening, for a server that was never run.
func (s *Server) Close() { s.listener.Close() }

// sweep lets go of what clients began and did not end.
func (s *Server) sweep(ctx context.Context) {
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		s.discard(func(u *upload) bool { return time.Since(u.touched) > store.UploadAge })
		if n%60 != 0 {
			continue
		}
		if _, err := s.Hosted.DropLoose(hosted.LooseAge); err != nil {
			s.Log.Warn("delete blobs that no manifest came for", "error", err)
		}
	}
}
