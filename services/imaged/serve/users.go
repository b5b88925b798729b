package serve

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"os"
	"strings"
	"sync"
	"time"

	"berth/services/imaged/gate"

	"golang.org/x/crypto/bcrypt"
)

const (
	maxUsersFile = 1 << 20
	// maxCost bounds what one guess of a password costs us: cost 14 is about a second.
	maxCost = 14
	// provenAge is how long a password that was right is remembered, as a keyed hash: clients send it with each request.
	provenAge = 5 * time.Minute
	maxProven = 1024
	guesses   = 2 // passwords compared at once
)

// users are names and hashes of passwords, as `htpasswd -B` writes them.
type users struct {
	hashes  map[string][]byte
	nobody  []byte // compared for names that do not exist, which takes as long
	key     []byte
	guesses *gate.Gate

	mu     sync.Mutex
	proven map[string]time.Time
}

func readUsers(file string) (*users, error) {
	u := &users{hashes: map[string][]byte{}, key: make([]byte, 32), guesses: gate.New(guesses), proven: map[string]time.Time{}}
	rand.Read(u.key)
	if file == "" {
		return u, nil
	}
	st, err := os.Stat(file)
	if err != nil {
		return nil, bad("imaged.serve.users: %w", err)
	}
	if !st.Mode().IsRegular() || st.Size() > maxUsersFile {
		return nil, bad("imaged.serve.users: %s is no file of at most %d bytes", file, maxUsersFile)
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, bad("imaged.serve.users: %w", err).Hint("it must be readable by the user berth-imaged")
	}
	for n, line := range bytes.Split(raw, []byte("\n")) {
		text := strings.TrimSpace(string(line))
		if text == "" || text[0] == '#' {
			continue
		}
		name, hash, ok := strings.Cut(text, ":")
		cost, err := bcrypt.Cost([]byte(hash))
		if !ok || name == "" || err != nil {
			return nil, bad("%s:%d: want NAME:HASH with a bcrypt hash", file, n+1).Hint("`htpasswd -nB NAME` writes such lines")
		}
		if cost > maxCost {
			return nil, bad("%s:%d: the hash has cost %d, more than %d", file, n+1, cost, maxCost)
		}
		if u.hashes[name] != nil {
			return nil, bad("%s:%d: user %q occurs twice", file, n+1, name)
		}
		u.hashes[name] = []byte(hash)
	}
	u.nobody, err = bcrypt.GenerateFromPassword([]byte("nobody"), bcrypt.DefaultCost)
	return u, err
}

// check reports whether a password is right. Few are compared at once, however many ask.
func (u *users) check(ctx context.Context, name, password string) bool {
	mac := hmac.New(sha256.New, u.key)
	mac.Write([]byte(name + "\x00" + password))
	sum := string(mac.Sum(nil))
	u.mu.Lock()
	known := time.Since(u.proven[sum]) < provenAge
	u.mu.Unlock()
	if known {
		return true
	}
	if u.guesses.Enter(ctx) != nil {
		return false
	}
	defer u.guesses.Leave()
	hash, ok := u.hashes[name]
	if !ok {
		hash = u.nobody
	}
	if bcrypt.CompareHashAndPassword(hash, []byte(password)) != nil || !ok {
		return false
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.proven) >= maxProven {
		clear(u.proven)
	}
	u.proven[sum] = time.Now()
	return true
}
