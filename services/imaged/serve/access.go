package serve

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Who has a password may pull; who is a push user may push and delete, too; nobody in particular may pull if that is
// configured.
//
// Passwords come as HTTP Basic. Where both sorts of clients are welcome that does not do, since docker and others either
// send a password always or never, by what the first answer asks for: there they are asked for a token, which is given out
// to anybody and says who that is.

const (
	tokenPath = "/berth/token"
	tokenAge  = 5 * time.Minute
)

type access struct {
	users     *users
	push      []string
	anonymous bool
}

func newAccess(c Config) (*access, error) {
	u, err := readUsers(c.Users)
	if err != nil {
		return nil, err
	}
	for _, name := range c.PushUsers {
		if u.hashes[name] == nil {
			return nil, bad("imaged.serve.push_users: there is no user %q in the file of users", name)
		}
	}
	if len(u.hashes) == 0 && !c.AnonymousPull {
		return nil, bad("imaged.serve: nobody could use it").Hint("name a file of users, or say anonymous_pull = true")
	}
	return &access{users: u, push: c.PushUsers, anonymous: c.AnonymousPull}, nil
}

// who finds out who asks: empty without credentials. false: they are wrong.
func (a *access) who(r *http.Request) (user string, ok bool) {
	kind, value, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	switch strings.ToLower(kind) {
	case "":
		return "", true
	case "bearer":
		return a.readToken(value)
	}
	user, password, ok := r.BasicAuth()
	if !ok || user == "" || !a.users.check(r.Context(), user, password) {
		return "", false
	}
	return user, true
}

// may reports whether a user, or nobody, may do what r wants of rest, the path behind "/v2/". Clients ask for the root to
// find out whether they need a password; if there is any use in one they are told so there. Looking at an upload is part
// of pushing.
func (a *access) may(r *http.Request, user, rest string) bool {
	read := (r.Method == http.MethodGet || r.Method == http.MethodHead) && !strings.Contains(rest, "/blobs/uploads/")
	switch {
	case user == "" && rest == "":
		return len(a.users.hashes) == 0 || a.anonymous && r.Header.Get("Authorization") != ""
	case user == "":
		return read && a.anonymous
	}
	return read || slices.Contains(a.push, user)
}

// challenge refuses. known: the user is, and may not.
func (c *call) challenge(known bool) {
	if known {
		c.fail(http.StatusForbidden, denied, "user %s may not do this", c.user)
		return
	}
	ask := fmt.Sprintf("Basic realm=%q", c.Hosted.Name)
	if c.access.anonymous {
		scheme := "http"
		if c.Cert != "" {
			scheme = "https"
		}
		ask = fmt.Sprintf("Bearer realm=%q,service=%q", scheme+"://"+c.r.Host+tokenPath, c.Hosted.Name)
	}
	c.w.Header().Set("WWW-Authenticate", ask)
	c.fail(http.StatusUnauthorized, unauthorized, "this takes a login")
}

// token gives out a token that says who asks for it.
func (s *Server) token(w http.ResponseWriter, r *http.Request) {
	c := &call{Server: s, w: newWriter(w, s.stall), r: r}
	defer c.log(time.Now())
	defer c.w.finish()
	user, ok := s.access.who(r)
	if !ok || user == "" && !s.access.anonymous {
		c.w.Header().Set("WWW-Authenticate", fmt.Sprintf("Basic realm=%q", s.Hosted.Name))
		c.fail(http.StatusUnauthorized, unauthorized, "this takes a login")
		return
	}
	c.user = user
	t := s.access.makeToken(user)
	c.json(http.StatusOK, map[string]any{"token": t, "access_token": t, "expires_in": int(tokenAge.Seconds())})
}

// A token is a user's name and when it ends, with a keyed hash of both. The key is this process's own.
func (a *access) makeToken(user string) string {
	return a.seal(user, strconv.FormatInt(time.Now().Add(tokenAge).Unix(), 10))
}

func (a *access) seal(user, until string) string {
	raw, _ := json.Marshal([]string{user, until, string(a.sum(user, until))})
	return base64.RawURLEncoding.EncodeToString(raw)
}

func (a *access) sum(user, until string) []byte {
	mac := hmac.New(sha256.New, a.users.key)
	fmt.Fprintf(mac, "token %q %q", user, until)
	return []byte(base64.RawURLEncoding.EncodeToString(mac.Sum(nil)))
}

func (a *access) readToken(text string) (user string, ok bool) {
	var parts []string
	raw, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil || json.Unmarshal(raw, &parts) != nil || len(parts) != 3 || !hmac.Equal([]byte(parts[2]), a.sum(parts[0], parts[1])) {
		return "", false
	}
	until, err := strconv.ParseInt(parts[1], 10, 64)
	return parts[0], err == nil && time.Now().Unix() < until
}
