package registry

import (
	"strings"
)

// challenge is one entry of a WWW-Authenticate header: a scheme with its parameters.
// Schemes and parameter names are lower case; a token68 is dropped, as no scheme we speak
// has one.
type challenge struct {
	scheme string
	params map[string]string
}

// Limits on a header that strangers write.
const (
	maxChallengeBytes  = 16 << 10
	maxChallenges      = 16
	maxChallengeParams = 32
)

// parseChallenges reads WWW-Authenticate header lines (RFC 9110 §11.6.1). Several
// challenges may share a line, with the same commas between them as between parameters, so
// a word is a parameter if "=" and a value follow it and a scheme otherwise. Parsing stops
// at the first thing that fits neither; what came before it is returned.
func parseChallenges(lines []string) []challenge {
	var list []challenge
	for _, line := range lines {
		if len(line) > maxChallengeBytes {
			continue
		}
		s := scanner{rest: line}
		for len(list) < maxChallenges {
			c, ok := s.challenge()
			if !ok {
				break
			}
			list = append(list, c)
		}
	}
	return list
}

type scanner struct{ rest string }

func (s *scanner) challenge() (challenge, bool) {
	s.skip(", \t")
	scheme := s.token()
	if scheme == "" {
		return challenge{}, false
	}
	c := challenge{scheme: strings.ToLower(scheme), params: make(map[string]string)}
	if s.rest != "" && s.skip(" \t") == 0 && s.rest[0] != ',' {
		s.rest = "" // "Basic=…", `Basic"`: not a scheme at all
		return challenge{}, false
	}
	first := true
	for len(c.params) < maxChallengeParams {
		before := s.rest
		name, value, ok := s.param()
		if !ok {
			s.rest = before
			if first {
				s.token68()
			}
			break
		}
		first = false
		// The first of two equal names wins; a later one could only be there to confuse.
		if _, dup := c.params[name]; !dup {
			c.params[name] = value
		}
		s.skip(" \t")
		if s.rest != "" && s.rest[0] != ',' {
			s.rest = ""
		}
		s.skip(", \t")
	}
	return c, true
}

// param reads name=value, where the value is a token or a quoted string.
func (s *scanner) param() (name, value string, ok bool) {
	name = s.token()
	s.skip(" \t")
	if name == "" || !s.take('=') {
		return "", "", false
	}
	s.skip(" \t")
	if s.take('"') {
		value, ok = s.quoted()
	} else {
		value = s.token()
		ok = value != ""
	}
	return strings.ToLower(name), value, ok
}

// quoted reads the rest of a quoted string, whose opening quote is gone.
func (s *scanner) quoted() (string, bool) {
	var b strings.Builder
	for i := 0; i < len(s.rest); i++ {
		switch ch := s.rest[i]; {
		case ch == '"':
			s.rest = s.rest[i+1:]
			return b.String(), true
		case ch == '\\' && i+1 < len(s.rest):
			i++
			b.WriteByte(s.rest[i])
		default:
			b.WriteByte(ch)
		}
	}
	s.rest = ""
	return "", false
}

// token68 skips the blob that some schemes have in place of parameters, up to the comma or
// space that ends it.
func (s *scanner) token68() {
	end := strings.IndexAny(s.rest, ", \t")
	if end < 0 {
		end = len(s.rest)
	}
	s.rest = s.rest[end:]
}

func (s *scanner) token() string {
	end := 0
	for end < len(s.rest) && isTokenChar(s.rest[end]) {
		end++
	}
	token := s.rest[:end]
	s.rest = s.rest[end:]
	return token
}

func (s *scanner) take(ch byte) bool {
	if s.rest == "" || s.rest[0] != ch {
		return false
	}
	s.rest = s.rest[1:]
	return true
}

func (s *scanner) skip(set string) int {
	before := len(s.rest)
	s.rest = strings.TrimLeft(s.rest, set)
	return before - len(s.rest)
}

// isTokenChar is tchar of RFC 9110 §5.6.2.
func isTokenChar(ch byte) bool {
	switch {
	case 'a' <= ch && ch <= 'z', 'A' <= ch && ch <= 'Z', '0' <= ch && ch <= '9':
		return true
	}
	return strings.IndexByte("!#$%&'*+-.^_`|~", ch) >= 0
}
