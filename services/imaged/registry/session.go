package registry

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"iter"
	"maps"
	"net/url"
	"slices"
	"sync"
	"time"
)

const (
	// sessionLife is how long an upload that broke off is taken up again; registries delete theirs after a day or so.
	sessionLife   = 24 * time.Hour
	maxSessions   = 256
	sessionPrefix = "upload/"
)

// Records remember small values by key. *journal.Journal is one; with durable false a value need only outlive the
// process.
type Records interface {
	Get(key string) ([]byte, bool)
	Put(key string, value []byte, durable bool) error
	Delete(key string, durable bool) error
	// Range yields what begins with prefix, as it was at one moment.
	Range(prefix string) iter.Seq2[string, []byte]
}

// session is an upload that a registry has begun.
type session struct {
	at    *url.URL // where it continues; nil for none
	sent  int64    // bytes the registry has acknowledged
	least int64    // bytes of a chunk, but the last, that the registry wants
}

// sessions are the uploads under way and those that broke off, for the next push of the same blob by the same caller to
// go on with, by this process or the next. An address is as good as a password for this one blob as long as the registry
// keeps it, so the records are kept where nobody else reads. Of the caller they hold a hash of the user name: whether its
// password is right the registry has said before an upload is taken up.
type sessions struct {
	records Records

	mu   sync.Mutex
	busy map[string]chan struct{} // closed when the key is free again
}

type sessionRecord struct {
	At    string    `json:"at"`
	Sent  int64     `json:"sent"`
	Least int64     `json:"least,omitempty"`
	Since time.Time `json:"since"` // of the last sign of life
}

func (p *blobPush) key() string {
	user := p.auth.Username
	switch {
	case p.auth.IdentityToken != "":
		user = "\x00identity token"
	case p.auth.RegistryToken != "":
		user = "\x00registry token"
	}
	sum := sha256.Sum256([]byte(p.repo.String() + "\x00" + p.desc.Digest.String() + "\x00" + user))
	return sessionPrefix + hex.EncodeToString(sum[:])
}

// openSessions takes what records have, and drops what is too old.
func openSessions(records Records) *sessions {
	if records == nil {
		records = &memory{m: map[string][]byte{}}
	}
	s := &sessions{records: records, busy: map[string]chan struct{}{}}
	s.prune(maxSessions)
	return s
}

// prune drops sessions that are too old, and the oldest beyond a number.
func (s *sessions) prune(most int) {
	type aged struct {
		key   string
		since time.Time
	}
	var all []aged
	for key, raw := range s.records.Range(sessionPrefix) {
		var r sessionRecord
		_ = json.Unmarshal(raw, &r) // what is none is as old as can be
		all = append(all, aged{key, r.Since})
	}
	slices.SortFunc(all, func(a, b aged) int { return b.since.Compare(a.since) })
	for i, a := range all {
		if i >= most || time.Since(a.since) > sessionLife {
			_ = s.records.Delete(a.key, false)
		}
	}
}

// hold is the right to the session of a key.
type hold struct {
	*sessions
	key  string
	free chan struct{}
}

// take gives the right to a key's session, and the session if there is one. Who comes second waits: for a push that has
// been cancelled and finishes a chunk, or for one that sends the same blob.
func (s *sessions) take(ctx context.Context, key string) (hold, session, error) {
	h := hold{s, key, make(chan struct{})}
	for {
		s.mu.Lock()
		other := s.busy[key]
		if other == nil {
			s.busy[key] = h.free
			s.mu.Unlock()
			return h, s.recorded(key), nil
		}
		s.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return hold{}, session{}, ctx.Err()
		}
	}
}

// recorded is the session of a key, if there is one that may still be of use.
func (s *sessions) recorded(key string) session {
	raw, ok := s.records.Get(key)
	if !ok {
		return session{}
	}
	var r sessionRecord
	at, err := (*url.URL)(nil), json.Unmarshal(raw, &r)
	if err == nil {
		at, err = url.Parse(r.At)
	}
	if err != nil || at.Host == "" || r.Sent < 0 || time.Since(r.Since) > sessionLife {
		return session{}
	}
	return session{at, r.Sent, min(max(r.Least, 0), maxChunk)}
}

// keep writes down how far the session is. Not for power cuts: what is lost is asked of the registry, or sent once more.
// That it cannot be written is no reason not to push.
func (h hold) keep(s session) {
	if s.at == nil {
		return
	}
	raw, err := json.Marshal(sessionRecord{s.at.String(), s.sent, s.least, time.Now()})
	if err == nil {
		_ = h.records.Put(h.key, raw, false)
	}
}

// leave gives the right back; the session stays for the next.
func (h hold) leave() {
	h.prune(maxSessions)
	h.release()
}

// done is leave for a session that has ended.
func (h hold) done() {
	if _, ok := h.records.Get(h.key); ok {
		_ = h.records.Delete(h.key, false)
	}
	h.release()
}

func (h hold) release() {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.busy, h.key)
	close(h.free)
}

// memory is Records that end with the process.
type memory struct {
	mu sync.Mutex
	m  map[string][]byte
}

func (m *memory) Get(key string) ([]byte, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	v, ok := m.m[key]
	return v, ok
}

func (m *memory) Put(key string, value []byte, _ bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.m[key] = value
	return nil
}

func (m *memory) Delete(key string, _ bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.m, key)
	return nil
}

func (m *memory) Range(string) iter.Seq2[string, []byte] {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.All(maps.Clone(m.m))
}
