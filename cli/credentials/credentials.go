// Package credentials finds and keeps what a person logs in to registries with.
//
// Logins live with the person, not with the engine: the client reads them and sends them
// along with each pull or push. They come from files in the format of Docker's config.json,
// Berth's own first and then Docker's, which is only ever read:
//
//	$XDG_CONFIG_HOME/berth/config.json   or ~/.config/berth/config.json
//	$DOCKER_CONFIG/config.json           or ~/.docker/config.json
//
// A file holds logins itself, readable by its owner but not encrypted ("auths"), or names a
// program that does better, for one registry ("credHelpers") or all of them ("credsStore").
// The programs are those of github.com/docker/docker-credential-helpers.
package credentials

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// maxConfigBytes is far more than any config.json needs.
const maxConfigBytes = 1 << 20

// dockerHub is the name under which Docker files logins to docker.io.
const dockerHub = "https://index.docker.io/v1/"

// tokenUser in the place of a user name says that the secret is an identity token.
const tokenUser = "<token>"

// Login is what one registry is told. The zero value is anonymous. It prints without its
// secrets.
type Login struct {
	Username      string
	Password      string
	IdentityToken string // OAuth2 refresh token, in place of a password
	RegistryToken string // bearer token, sent as it is
}

// Anonymous tells whether there is no login at all.
func (l Login) Anonymous() bool { return l == Login{} }

// Format keeps secrets out of every verb.
func (l Login) Format(f fmt.State, _ rune) {
	if l.Anonymous() {
		_, _ = io.WriteString(f, "no login")
		return
	}
	_, _ = fmt.Fprintf(f, "login of %q", l.Username)
}

// Store is a list of config files; the first is Berth's own and the only one written.
type Store struct {
	own    string
	others []string
}

// New makes a Store of these files, none of which needs to exist.
func New(own string, others ...string) *Store { return &Store{own: own, others: others} }

// Default is the Store of the person running the program.
func Default() (*Store, error) {
	own, err := os.UserConfigDir()
	if err != nil {
		return nil, fmt.Errorf("find the folder for logins: %w", err)
	}
	docker := os.Getenv("DOCKER_CONFIG")
	if docker == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return nil, fmt.Errorf("find the home folder: %w", err)
		}
		docker = filepath.Join(home, ".docker")
	}
	return New(filepath.Join(own, "berth", "config.json"), filepath.Join(docker, "config.json")), nil
}

// Get returns the login for a registry as references name it ("docker.io",
// "127.0.0.1:5000") or for a repository in one ("quay.io/team/web"), and an anonymous one if
// there is none. Of logins for several beginnings of a repository's path the longest is
// taken, and that for the whole registry only if there is no other. An error, such as a
// helper that is not installed, concerns the login alone: public images can be had without
// it.
func (s *Store) Get(ctx context.Context, registry string) (Login, error) {
	for _, file := range append([]string{s.own}, s.others...) {
		c, err := read(file)
		if err != nil {
			return Login{}, err
		}
		login, err := c.login(ctx, registry)
		if err != nil || !login.Anonymous() {
			return login, err
		}
	}
	return Login{}, nil
}

// Put keeps a login and says where: a helper's name, or the file, in which it then is not
// encrypted.
func (s *Store) Put(ctx context.Context, registry string, l Login) (where string, err error) {
	c, err := read(s.own)
	if err != nil {
		return "", err
	}
	key := keyFor(registry)
	if c.Auths == nil {
		c.Auths = make(map[string]entry)
	}
	if h := c.helperFor(registry); h != "" {
		if err := helper(h).store(ctx, key, l); err != nil || !strings.Contains(registry, "/") {
			return programPrefix + h, err
		}
		c.Auths[key] = entry{} // says that the helper has one for this path
		return programPrefix + h, c.write(s.own)
	}
	for k := range c.Auths {
		if matches(k, registry) {
			delete(c.Auths, k)
		}
	}
	c.Auths[key] = newEntry(l)
	return s.own, c.write(s.own)
}

// Delete forgets a login. elsewhere names the file that still has one, which is Docker's to
// change.
func (s *Store) Delete(ctx context.Context, registry string) (found bool, elsewhere string, err error) {
	c, err := read(s.own)
	if err != nil {
		return false, "", err
	}
	if h := c.helperFor(registry); h != "" {
		if found, err = helper(h).erase(ctx, keyFor(registry)); err != nil {
			return false, "", err
		}
	}
	kept := len(c.Auths)
	for k := range c.Auths {
		if matches(k, registry) {
			delete(c.Auths, k)
		}
	}
	if len(c.Auths) != kept {
		found = true
		if err := c.write(s.own); err != nil {
			return false, "", err
		}
	}
	for _, file := range s.others {
		if c, err := read(file); err == nil {
			// A helper is not asked: this is only to say where else to look.
			if _, ok := c.entryFor(registry); ok {
				return found, file, nil
			}
		}
	}
	return found, "", nil
}

// config is the part of config.json that is about logins. The rest is kept as it was.
type config struct {
	Auths       map[string]entry  `json:"auths,omitempty"`
	CredHelpers map[string]string `json:"credHelpers,omitempty"`
	CredsStore  string            `json:"credsStore,omitempty"`

	rest map[string]json.RawMessage
}

// entry is one login in a file.
type entry struct {
	Auth          string `json:"auth,omitempty"` // base64 of user:password
	Username      string `json:"username,omitempty"`
	Password      string `json:"password,omitempty"`
	IdentityToken string `json:"identitytoken,omitempty"`
	RegistryToken string `json:"registrytoken,omitempty"`
}

func newEntry(l Login) entry {
	e := entry{IdentityToken: l.IdentityToken, RegistryToken: l.RegistryToken}
	if l.Username != "" || l.Password != "" {
		e.Auth = base64.StdEncoding.EncodeToString([]byte(l.Username + ":" + l.Password))
	}
	return e
}

func (e entry) login() (Login, error) {
	l := Login{Username: e.Username, Password: e.Password, IdentityToken: e.IdentityToken, RegistryToken: e.RegistryToken}
	if e.Auth != "" {
		b, err := base64.StdEncoding.DecodeString(e.Auth)
		user, password, ok := strings.Cut(string(b), ":")
		if err != nil || !ok {
			return Login{}, errors.New(`"auth" is not base64 of user:password`)
		}
		// Docker has written trailing NULs.
		l.Username, l.Password = user, strings.TrimRight(password, "\x00")
	}
	return l.normal(), nil
}

// normal moves an identity token to its field.
func (l Login) normal() Login {
	if l.Username == tokenUser {
		return Login{IdentityToken: l.Password}
	}
	if l.IdentityToken != "" {
		l.Password = ""
	}
	return l
}

func read(file string) (*config, error) {
	c := &config{}
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read logins: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxConfigBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read logins: %w", err)
	}
	if len(b) > maxConfigBytes {
		return nil, fmt.Errorf("read logins: %s is larger than %d KiB", file, maxConfigBytes>>10)
	}
	if err := c.parse(b); err != nil {
		return nil, fmt.Errorf("read logins from %s: %w", file, err)
	}
	return c, nil
}

// parse reports positions but never content, which may be a password.
func (c *config) parse(b []byte) error {
	if len(strings.TrimSpace(string(b))) == 0 {
		return nil
	}
	err := json.Unmarshal(b, c)
	if err == nil {
		err = json.Unmarshal(b, &c.rest)
	}
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &syntax):
		return fmt.Errorf("not valid JSON at byte %d", syntax.Offset)
	case errors.As(err, &kind):
		return fmt.Errorf("field %q has the wrong type", kind.Field)
	}
	return errors.New("not valid JSON")
}

// write replaces file in one step, so that a crash leaves the old or the new one.
func (c *config) write(file string) error {
	if real, err := filepath.EvalSymlinks(file); err == nil {
		file = real // a link into somebody's dotfiles stays one
	}
	if c.rest == nil {
		c.rest = make(map[string]json.RawMessage)
	}
	auths, err := json.Marshal(c.Auths)
	if err != nil {
		return err
	}
	c.rest["auths"] = auths
	b, err := json.MarshalIndent(c.rest, "", "\t")
	if err != nil {
		return err
	}
	dir := filepath.Dir(file)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("keep login: %w", err)
	}
	tmp, err := os.CreateTemp(dir, ".config.json-*") // mode 0600
	if err != nil {
		return fmt.Errorf("keep login: %w", err)
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(append(b, '\n'))
	err = errors.Join(err, tmp.Sync(), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), file)
	}
	if err != nil {
		return fmt.Errorf("keep login: %w", err)
	}
	return nil
}

// login asks what this file says: the helper named for the registry, then the file's own
// entry, then the general helper.
func (c *config) login(ctx context.Context, registry string) (Login, error) {
	for strings.Contains(registry, "/") {
		if _, found := c.entryFor(registry); found || c.ownHelper(registry) {
			return c.loginAt(ctx, registry)
		}
		registry = registry[:strings.LastIndexByte(registry, '/')]
	}
	return c.loginAt(ctx, registry)
}

// loginAt is login for what is filed under exactly this registry or path in one.
func (c *config) loginAt(ctx context.Context, registry string) (Login, error) {
	e, found := c.entryFor(registry)
	if found && e != (entry{}) && !c.ownHelper(registry) {
		l, err := e.login()
		if err != nil {
			return Login{}, fmt.Errorf("login for %s: %w", registry, err)
		}
		return l, nil
	}
	if h := c.helperFor(registry); h != "" {
		return helper(h).get(ctx, keyFor(registry))
	}
	return Login{}, nil
}

func (c *config) entryFor(registry string) (entry, bool) {
	if e, ok := c.Auths[keyFor(registry)]; ok {
		return e, true
	}
	for k, e := range c.Auths {
		if matches(k, registry) {
			return e, true
		}
	}
	return entry{}, false
}

// ownHelper tells whether a helper is named for this registry in particular.
func (c *config) ownHelper(registry string) bool {
	for k := range c.CredHelpers {
		if matches(k, registry) {
			return true
		}
	}
	return false
}

func (c *config) helperFor(registry string) string {
	for k, h := range c.CredHelpers {
		if matches(k, registry) {
			return h
		}
	}
	return c.CredsStore
}

// keyFor is the name a registry's login is filed under.
func keyFor(registry string) string {
	if registry == "docker.io" {
		return dockerHub
	}
	return registry
}

// matches compares a key of the file, which may be a URL, with a registry or a path in one,
// port included: a password for one port is not shown to another.
func matches(key, registry string) bool {
	bare := strings.TrimPrefix(strings.TrimPrefix(key, "https://"), "http://")
	host, path, _ := strings.Cut(bare, "/")
	switch host {
	case "index.docker.io", "registry-1.docker.io":
		return registry == "docker.io"
	}
	if bare != key || path == "v1/" || path == "v2/" || path == "" {
		return host == registry // a URL names the registry, whatever its path
	}
	return strings.TrimSuffix(bare, "/") == registry
}
