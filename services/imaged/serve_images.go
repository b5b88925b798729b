package main

import (
	"context"
	"sync"

	"berth/internal/config"
	"berth/services/imaged/images"
	"berth/services/imaged/serve"

	"github.com/opencontainers/go-digest"
)

// servedName is what names of pushed images begin with; empty while nothing is served and no name is configured.
func servedName(c config.Serve) string {
	if c.Name == "" && c.Listen != "" {
		return serve.Name(c.Listen)
	}
	return c.Name
}

// serveImages makes the store a registry for other hosts, if c wants that. stop waits until it has ended.
func (s *server) serveImages(ctx context.Context, c config.Serve) (stop func(), err error) {
	if c.Listen == "" {
		return func() {}, nil
	}
	log := s.log.Named("serve")
	s.served, err = serve.Open(serve.Config{
		Listen: c.Listen, Cert: c.TLSCert, Key: c.TLSKey, Insecure: c.Insecure,
		Users: c.Users, PushUsers: c.PushUsers, AnonymousPull: c.AnonymousPull,
		Hosted: s.hosted, Images: s.images, Store: s.store, Log: log,
		Named: func(id digest.Digest, name string) {
			s.events.Emit("image", "tag", id.String(), map[string]string{"name": images.Familiar(name)})
		},
		Removed: s.tellRemoval,
	})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := s.served.Run(ctx); err != nil {
			log.Error("serving ended", "error", err)
		}
	})
	return func() {
		cancel()
		serving.Wait()
	}, nil
}
