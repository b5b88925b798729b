package main

import (
	"strconv"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"

	"berth/internal/daemon"
	"berth/internal/events"
	"berth/internal/journal"
	apiv1 "berth/proto/berth/api/v1"
	imagev1 "berth/proto/berth/image/v1"
	"berth/services/imaged/archive"
	"berth/services/imaged/check"
	"berth/services/imaged/graph"
	"berth/services/imaged/hosted"
	"berth/services/imaged/images"
	"berth/services/imaged/importer"
	"berth/services/imaged/pull"
	"berth/services/imaged/push"
	"berth/services/imaged/registry"
	"berth/services/imaged/remote"
	"berth/services/imaged/rootfs"
	"berth/services/imaged/serve"
	"berth/services/imaged/store"
	"berth/services/imaged/trash"
	"berth/services/imaged/trust"
	"berth/services/imaged/volumes"
)

// server holds the parts of the daemon. The services below translate between
// the protocol and these parts and do nothing else.
type server struct {
	log      hclog.Logger
	journal  *journal.Journal
	trash    *trash.Can
	store    *store.Store
	driver   graph.Driver
	hosted   *hosted.Hosted
	images   *images.Images
	volumes  *volumes.Volumes
	rootfs   *rootfs.Manager
	registry *registry.Client
	puller   *pull.Puller
	pusher   *push.Pusher
	remote   *remote.Remote
	importer *importer.Importer
	loader   *archive.Loader
	saver    *archive.Saver
	checker  *check.Checker
	served   *serve.Server // nil: nothing is served
	policy   *trust.Policy // nil: none
	events   *events.Ring
}

func (s *server) register(g *grpc.Server) {
	apiv1.RegisterImageServiceServer(g, imageService{server: s})
	apiv1.RegisterRegistryServiceServer(g, registryService{server: s})
	apiv1.RegisterVolumeServiceServer(g, volumeService{server: s})
	imagev1.RegisterRootfsServiceServer(g, rootfsService{server: s})
	imagev1.RegisterStoreServiceServer(g, storeService{server: s})
	events.Register(g, s.events)
	daemon.RegisterInfo(g, "imaged", s.describe)
}

// describe fills in what imaged knows of itself.
func (s *server) describe(info *apiv1.DaemonInfo) {
	info.Facts["driver"] = s.driver.Name()
	if n := s.policy.Rules(); n > 0 {
		info.Facts["signature rules"] = strconv.Itoa(n)
	}
	if s.served != nil {
		info.Facts["serves"] = s.served.URL() + " as " + s.hosted.Name
	}
	info.Counters["images"] = int64(len(s.images.List()))
	if n, bytes, err := s.store.Partials(); err == nil {
		info.Counters["partial_downloads"], info.Counters["partial_bytes"] = int64(n), bytes
	}
	info.Counters["volumes"] = int64(len(s.volumes.List()))
}

// Close ends what runs in the background. Parts that were not opened are nil.
func (s *server) Close() {
	if s.puller != nil {
		s.puller.Wait()
	}
	if s.registry != nil {
		s.registry.Close()
	}
	if s.trash != nil {
		s.trash.Close()
	}
	if s.journal != nil {
		if err := s.journal.Close(); err != nil {
			s.log.Error("close the records", "error", err)
		}
	}
}
