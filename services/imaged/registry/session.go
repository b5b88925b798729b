package registry

import (
	"crypto/sha256"
	"net/url"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

const (
	// sessionLife is how long an upload that broke off is taken up again; registries delete theirs after a day or so.
	sessionLife = time.Hour
	maxSessions = 256
)

// sessions are uploads that broke off, for the next push of the same blob to go on with. They are kept in memory only:
// a session's address is as good as a password, and after a restart the worst is to send a blob once more.
type sessions struct {
	mu sync.Mutex
	m  map[sessionKey]session
}

type sessionKey struct {
	repository string
	digest     digest.Digest
	caller     [sha256.Size]byte
}

type session struct {
	at    *url.URL
	since time.Time
}

func (p *blobPush) key() sessionKey {
	return sessionKey{repository: p.repo.String(), digest: p.desc.Digest, caller: p.auth.fingerprint()}
}

// take gives the session of a key, which nobody else then gets; nil if there is none.
func (s *sessions) take(k sessionKey) *url.URL {
	s.mu.Lock()
	defer s.mu.Unlock()
	found := s.m[k]
	delete(s.m, k)
	if time.Since(found.since) > sessionLife {
		return nil
	}
	return found.at
}

func (s *sessions) keep(k sessionKey, at *url.URL) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.m == nil || len(s.m) >= maxSessions {
		s.m = map[sessionKey]session{}
	}
	if at != nil {
		s.m[k] = session{at, time.Now()}
	}
}
