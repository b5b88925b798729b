// Command imaged is the engine's image daemon. It fetches images from
// registries, keeps their blobs and unpacked layers, makes root file systems
// and volumes for containers, and hands them out as mount recipes. It never
// mounts anything itself and needs no more privilege than to make files of
// every owner and kind.
package main

import (
	"context"
	"fmt"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"sync"
	"time"

	"google.golang.org/grpc"

	"berth/internal/account"
	"berth/internal/config"
	"berth/internal/daemon"
	"berth/internal/events"
	"berth/internal/journal"
	"berth/internal/version"
	"berth/internal/warm"
	"berth/libcontainer/caps"
	apiv1 "berth/proto/berth/api/v1"
	imagev1 "berth/proto/berth/image/v1"
	"berth/services/imaged/archive"
	"berth/services/imaged/check"
	"berth/services/imaged/collect"
	"berth/services/imaged/diskuse"
	"berth/services/imaged/hosted"
	"berth/services/imaged/images"
	"berth/services/imaged/importer"
	"berth/services/imaged/inflate"
	"berth/services/imaged/pull"
	"berth/services/imaged/push"
	"berth/services/imaged/registry"
	"berth/services/imaged/remote"
	"berth/services/imaged/rootfs"
	"berth/services/imaged/store"
	"berth/services/imaged/trash"
	"berth/services/imaged/trust"
	"berth/services/imaged/unpack"
	"berth/services/imaged/volumes"
	"berth/services/imaged/worker"

	"github.com/hashicorp/go-hclog"
)

func main() {
	daemon.Main(daemon.Spec{
		Name:          "imaged",
		AllProcessors: true,
		User:          account.Imaged,
		Keep:          []string{"CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "SETFCAP", "MKNOD", "SYS_CHROOT"},
		Sockets:       []daemon.Socket{{Name: daemon.ImagedSocket}},
		// The state directory is 0700: layers hold set-user-id programs that
		// nobody on the host may reach. Who mounts them is root.
		Run: run,
	})
}

func run(ctx context.Context, env *daemon.Env) error {
	program, err := worker.Find()
	if err != nil {
		return err
	}
	s, err := open(env.StateDir, program, env.Config.Imaged, env.Log)
	if err != nil {
		return err
	}
	defer s.Close()
	if err := caps.SetAside(worker.Aside); err != nil {
		return err
	}
	if collector := s.collector(env.StateDir, env.Config.Imaged); collector.On() {
		ctx, stop := context.WithCancel(ctx)
		var collecting sync.WaitGroup
		collecting.Go(func() { collector.Run(ctx) })
		defer collecting.Wait()
		defer stop()
	}
	stop, err := s.serveImages(ctx, env.Config.Imaged.Serve)
	if err != nil {
		return err
	}
	defer stop()
	warm.Messages(new(imagev1.PrepareRequest), new(imagev1.PrepareResponse), new(imagev1.SyncRequest), new(imagev1.ReleaseRequest), new(apiv1.Event))
	return env.Serve(ctx, daemon.ImagedSocket, daemon.ServerOptions{
		Log:      env.Log,
		Rule:     daemon.AllowEngine(),
		Timeouts: timeouts,
	}, func(g *grpc.Server) { s.register(g) })
}

// collector removes images on its own, if c wants that.
func (s *server) collector(dir string, c config.Imaged) collect.Config {
	return collect.Config{
		Age: time.Duration(c.CollectAge), Above: c.CollectAbove, Below: c.CollectBelow, Pinned: anyOf(c.Pins),
		Disk:    func() (diskuse.Disk, error) { return diskuse.DiskOf(dir) },
		Removed: func(r images.Removal) { s.removed(r) }, Images: s.images, Log: s.log.Named("collect"),
	}
}

// timeouts are those of calls that may take long for good reason: deleting
// records and files of many images, copying an image with the plaincopy driver,
// registries that answer slowly or let one wait.
var timeouts = map[string]time.Duration{
	"/berth.api.v1.ImageService/Prune":  10 * time.Minute,
	"/berth.api.v1.ImageService/Remove": 2 * time.Minute,
	"/berth.api.v1.VolumeService/Prune": 10 * time.Minute,

	"/berth.api.v1.RegistryService/ListTags":         10 * time.Minute,
	"/berth.api.v1.RegistryService/ListRepositories": 10 * time.Minute,
	"/berth.api.v1.RegistryService/CreateIndex":      time.Hour,

	"/berth.image.v1.RootfsService/Prepare": 10 * time.Minute,
	"/berth.image.v1.RootfsService/Sync":    10 * time.Minute,
}

// startMemory is how many bytes a start takes before garbage is collected: enough for 10,000 images.
const startMemory = 512 << 20

// open opens everything that imaged keeps in dir, in the order in which the
// parts need one another. What a crash left half-done is swept on the way.
// program unpacks layers.
func open(dir, program string, c config.Imaged, log hclog.Logger) (_ *server, err error) {
	s := &server{log: log, events: events.New("imaged")}
	// A start makes hardly any garbage, and what it makes stays: collecting over and over while that grows would take a
	// quarter of the time.
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(startMemory))
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	if s.journal, err = journal.Open(filepath.Join(dir, "records"), journal.Options{}); err != nil {
		return nil, err
	}
	s.trash, err = trash.Open(filepath.Join(dir, "trash"), func(format string, args ...any) {
		log.Warn("empty the trash", "error", fmt.Sprintf(format, args...))
	})
	if err != nil {
		return nil, err
	}
	if s.store, err = store.Open(dir); err != nil {
		return nil, err
	}
	s.store.Throw = s.trash.Throw
	if s.driver, err = openDriver(dir, c.Driver, s.trash, log); err != nil {
		return nil, err
	}
	if s.hosted, err = hosted.Open(s.journal); err != nil {
		return nil, err
	}
	if s.images, err = images.Open(s.journal, s.store, s.driver, log.Named("images"), s.hosted.Kept()...); err != nil {
		return nil, err
	}
	if s.volumes, err = volumes.Open(filepath.Join(dir, "volumes"), s.journal, s.trash); err != nil {
		return nil, err
	}
	if s.rootfs, err = rootfs.Open(filepath.Join(dir, "rw"), s.driver, s.images, s.volumes, s.trash, log.Named("rootfs")); err != nil {
		return nil, err
	}
	options := registryOptions(c, log.Named("registry"))
	options.Uploads = s.journal
	s.registry = registry.New(options)
	return s, s.connect(c, program)
}

// connect makes the parts that act on what open opened.
func (s *server) connect(c config.Imaged, program string) error {
	unpacks := c.ParallelUnpacks
	if unpacks == 0 {
		unpacks = runtime.NumCPU()
	}
	files := unpack.Limits{Bytes: int64(c.MaxLayerSize), Entries: c.MaxLayerEntries}
	// Around the files, a header and padding for each entry.
	stream := inflate.Limits{}
	if files.Bytes > 0 {
		stream.Bytes = files.Bytes + files.Bytes/4 + 1<<20
	}
	var err error
	if s.policy, err = signaturePolicy(c.Signatures, s.registry); err != nil {
		return err
	}
	workers := &worker.Workers{Path: program, Files: files, Inflate: stream, Log: s.log.Named("unpack")}
	s.puller = pull.New(pull.Config{
		Registry: s.registry, Store: s.store, Driver: s.driver, Images: s.images, Trust: s.policy,
		Downloads: c.ParallelDownloads, Unpacks: unpacks, Workers: workers,
	})
	s.pusher = &push.Pusher{Registry: s.registry, Store: s.store, Images: s.images, Uploads: c.ParallelDownloads}
	s.loader = archive.NewLoader(archive.LoaderConfig{
		Store: s.store, Driver: s.driver, Images: s.images, Unpacks: unpacks, Workers: workers,
	})
	s.saver = &archive.Saver{Store: s.store, Images: s.images}
	s.remote = &remote.Remote{Registry: s.registry, Copies: c.ParallelDownloads}
	s.checker = &check.Checker{Store: s.store, Driver: s.driver, Images: s.images, Registry: s.registry, Workers: workers}
	s.importer = &importer.Importer{Store: s.store, Driver: s.driver, Images: s.images, Workers: workers}
	return s.hosted.Connect(hosted.Config{
		Name:  servedName(c.Serve),
		Store: s.store, Driver: s.driver, Images: s.images, Unpacks: unpacks, Workers: workers,
		Log: s.log.Named("hosted"),
	})
}

// signaturePolicy reads the rules about signatures, and their keys.
func signaturePolicy(all []config.Signature, client *registry.Client) (*trust.Policy, error) {
	rules := make([]trust.Rule, len(all))
	for i, r := range all {
		rules[i] = trust.Rule(r)
	}
	return trust.New(client, rules)
}

func registryOptions(c config.Imaged, log hclog.Logger) registry.Options {
	hosts := map[string]registry.Host{}
	for _, h := range c.InsecureRegistries {
		hosts[h] = registry.Host{Insecure: true}
	}
	for h, mirrors := range c.Mirrors {
		host := hosts[h]
		host.Mirrors = mirrors
		hosts[h] = host
	}
	for h, r := range c.Registries {
		host := hosts[h]
		host.CAFiles, host.ClientCert, host.ClientKey, host.Proxy = r.CAFiles, r.ClientCert, r.ClientKey, r.Proxy
		host.Insecure, host.PlainHTTP = host.Insecure || r.Insecure, r.PlainHTTP
		host.Mirrors = append(host.Mirrors, r.Mirrors...)
		hosts[h] = host
	}
	return registry.Options{
		Hosts:        hosts,
		CertsDir:     "/etc/berth/certs.d",
		UserAgent:    "berth/" + version.Number(),
		StallTimeout: time.Duration(c.StallTimeout),
		Log:          log,
	}
}
