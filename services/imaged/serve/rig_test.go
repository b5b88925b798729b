package serve

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"berth/internal/journal"
	"berth/services/imaged/graph/plaincopy"
	"berth/services/imaged/hosted"
	"berth/services/imaged/images"
	"berth/services/imaged/store"
	"berth/services/imaged/trash"
	"berth/services/imaged/unpack"
	"berth/services/imaged/worker/workertest"

	"github.com/hashicorp/go-hclog"
	"github.com/opencontainers/go-digest"
	"golang.org/x/crypto/bcrypt"
)

// The users of every rig that has users.
const (
	pusher, puller = "ada", "bob"
	password       = "correct horse"
)

func TestMain(m *testing.M) { os.Exit(workertest.Main(m)) }

// rig is a store that is served on a free port of the loopback.
type rig struct {
	testing.TB
	dir     string
	config  Config
	images  *images.Images
	hosted  *hosted.Hosted
	store   *store.Store
	server  *Server
	url     string
	client  *http.Client
	removed []string
	close   func()
}

// newRig serves with the settings of c; a Users of "yes" stands for a file of pusher and puller.
func newRig(t testing.TB, c Config) *rig {
	t.Helper()
	return newRigIn(t, t.TempDir(), c)
}

func newRigIn(t testing.TB, dir string, c Config) *rig {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: unpacking needs root")
	}
	r := &rig{TB: t, dir: dir, config: c, client: &http.Client{}}
	if c.Users == "yes" {
		hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
		r.check(err)
		r.config.Users = filepath.Join(r.dir, "users")
		r.check(os.WriteFile(r.config.Users, []byte("# who may\n"+pusher+":"+string(hash)+"\n\n"+puller+":"+string(hash)+"\n"), 0o600))
	}
	r.open()
	t.Cleanup(func() { r.close() })
	return r
}

// anybody is a configuration in which anybody may pull, and pusher push.
func anybody() Config { return Config{Users: "yes", PushUsers: []string{pusher}, AnonymousPull: true} }

func (r *rig) check(err error) {
	r.Helper()
	if err != nil {
		r.Fatal(err)
	}
}

func (r *rig) open() {
	r.Helper()
	can, err := trash.Open(filepath.Join(r.dir, "trash"), r.Logf)
	r.check(err)
	r.store, err = store.Open(r.dir)
	r.check(err)
	driver, err := plaincopy.New(filepath.Join(r.dir, "l"), can)
	r.check(err)
	j, err := journal.Open(filepath.Join(r.dir, "journal"), journal.Options{})
	r.check(err)
	r.hosted, err = hosted.Open(j)
	r.check(err)
	r.images, err = images.Open(j, r.store, driver, hclog.NewNullLogger(), r.hosted.Kept()...)
	r.check(err)
	workers := workertest.Workers(r)
	workers.Files = unpack.Limits{Bytes: 64 << 20, Entries: 1000}
	r.check(r.hosted.Connect(hosted.Config{
		Name: "localhost:5000", Store: r.store, Driver: driver, Images: r.images, Unpacks: 2,
		Workers: workers, Log: hclog.NewNullLogger(),
	}))
	c := r.config
	if c.Listen == "" {
		c.Listen = "127.0.0.1:0"
	}
	c.Hosted, c.Images, c.Store, c.Log = r.hosted, r.images, r.store, hclog.NewNullLogger()
	c.Named = func(digest.Digest, string) {}
	c.Removed = func(removal images.Removal) { r.removed = append(r.removed, removal.Untagged...) }
	r.server, err = Open(c)
	r.check(err)
	r.url = r.server.URL()
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.server.Run(ctx) }()
	r.close = func() {
		stop()
		if err := <-done; err != nil {
			r.Error(err)
		}
		j.Close()
		can.Close()
	}
}

func (r *rig) restart() {
	r.Helper()
	r.close()
	r.open()
}

// host is its address, as references write it.
func (r *rig) host() string { return r.url[strings.LastIndexByte(r.url, '/')+1:] }

// trust makes its client accept the certificate in file.
func (r *rig) trust(file string) {
	raw, err := os.ReadFile(file)
	r.check(err)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(raw)
	r.client.Transport = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}
}
