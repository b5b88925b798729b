package registry

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"sync"
)

// Secret is text that prints as *** in every format, JSON included. Convert with string(s)
// only where the wire needs it.
type Secret string

const hidden = "***"

func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return hidden
}

// Format covers every verb; without it %x and %q would print the bytes.
func (s Secret) Format(f fmt.State, _ rune)   { _, _ = f.Write([]byte(s.String())) }
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Auth is who a call is made as. The zero value is anonymous.
//
// IdentityToken is a refresh token that the token server trades for access tokens;
// RegistryToken is an access token, sent as it is. With both absent, Username and Password
// serve Basic authentication and token requests.
type Auth struct {
	Username      string
	Password      Secret
	IdentityToken Secret
	RegistryToken Secret
}

// Anonymous tells whether a holds no credentials at all.
func (a Auth) Anonymous() bool { return a == Auth{} }

// basic returns the value of a Basic Authorization header.
func (a Auth) basic() string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(a.Username+":"+string(a.Password)))
}

// fingerprint tells callers' tokens apart without keeping their passwords.
func (a Auth) fingerprint() [sha256.Size]byte {
	h := sha256.New()
	for _, field := range []string{a.Username, string(a.Password), string(a.IdentityToken), string(a.RegistryToken)} {
		fmt.Fprintf(h, "%d:%s", len(field), field)
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// said collects the credentials that went out with a request.
type said struct {
	mu     sync.Mutex
	tokens []string
}

func (s *said) add(token string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if token != "" && !slices.Contains(s.tokens, token) {
		s.tokens = append(s.tokens, token)
	}
}

// outside makes text that came from a server, or holds some, fit to be shown: on one line
// and without r's secrets. A registry that echoes a request in a message, a host name or a
// digest must not put them into a log.
func (r *request) outside(text string) string {
	r.said.mu.Lock()
	defer r.said.mu.Unlock()
	secrets := append([]string{string(r.auth.Password), string(r.auth.IdentityToken), string(r.auth.RegistryToken)}, r.said.tokens...)
	for _, s := range secrets {
		if s != "" {
			text = strings.ReplaceAll(text, s, hidden)
		}
	}
	return oneLine(text)
}
