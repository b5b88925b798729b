package credentials

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"
)

const (
	programPrefix = "docker-credential-"
	// helperTimeout leaves a person time to unlock a keychain.
	helperTimeout  = 60 * time.Second
	maxHelperBytes = 64 << 10
	// notFoundText is how every helper says that it has no such login; its protocol has no
	// other way.
	notFoundText = "credentials not found in native keychain"
)

// helperName keeps a config file from naming a program outside PATH or passing options.
// Compiled when needed: few command lines need it, and all would wait for it.
var helperName = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,63}$`) })

// helper is the name of a program without its prefix. It speaks JSON: an action as its
// argument, the subject on stdin, the answer or a complaint on stdout.
type helper string

// message is what a helper is given to store and answers to get.
type message struct {
	ServerURL string
	Username  string
	Secret    string
}

func (h helper) get(ctx context.Context, server string) (Login, error) {
	out, err := h.run(ctx, "get", []byte(server))
	if errors.Is(err, errNoLogin) {
		return Login{}, nil
	}
	if err != nil {
		return Login{}, err
	}
	var m message
	if json.Unmarshal(out, &m) != nil {
		return Login{}, fmt.Errorf("get login from %s%s: its answer is malformed", programPrefix, h)
	}
	return Login{Username: m.Username, Password: m.Secret}.normal(), nil
}

func (h helper) store(ctx context.Context, server string, l Login) error {
	m := message{ServerURL: server, Username: l.Username, Secret: l.Password}
	if l.IdentityToken != "" {
		m.Username, m.Secret = tokenUser, l.IdentityToken
	}
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	_, err = h.run(ctx, "store", b)
	return err
}

func (h helper) erase(ctx context.Context, server string) (found bool, err error) {
	_, err = h.run(ctx, "erase", []byte(server))
	if errors.Is(err, errNoLogin) {
		return false, nil
	}
	return err == nil, err
}

var errNoLogin = errors.New(notFoundText)

// run looks the program up in PATH, where a result relative to the working directory is
// refused.
func (h helper) run(ctx context.Context, action string, input []byte) ([]byte, error) {
	if !helperName().MatchString(string(h)) {
		return nil, fmt.Errorf("credential helper %q: malformed name", string(h))
	}
	name := programPrefix + string(h)
	path, err := exec.LookPath(name)
	if err != nil || !filepath.IsAbs(path) {
		return nil, fmt.Errorf("credential helper %s is not installed", name)
	}
	ctx, cancel := context.WithTimeout(ctx, helperTimeout)
	defer cancel()
	out := limited{max: maxHelperBytes}
	cmd := exec.CommandContext(ctx, path, action)
	cmd.Stdin = bytes.NewReader(input)
	cmd.Stdout = &out
	cmd.WaitDelay = time.Second
	err = cmd.Run()
	if ctx.Err() != nil {
		return nil, fmt.Errorf("%s %s: %w", name, action, ctx.Err())
	}
	if err == nil {
		return out.Bytes(), nil
	}
	said := strings.TrimSpace(out.String())
	if said == notFoundText {
		return nil, errNoLogin
	}
	// What it printed is not shown, as it may hold what it was to keep secret.
	return nil, fmt.Errorf("%s %s: %w", name, action, err)
}

// limited is a buffer that refuses to grow beyond max.
type limited struct {
	bytes.Buffer
	max int
}

func (l *limited) Write(p []byte) (int, error) {
	if l.Len()+len(p) > l.max {
		return 0, errors.New("answer is too long")
	}
	return l.Buffer.Write(p)
}
