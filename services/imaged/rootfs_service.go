package main

import (
	"context"
	"slices"

	"berth/internal/fault"
	apiv1 "berth/proto/berth/api/v1"
	imagev1 "berth/proto/berth/image/v1"
	"berth/services/imaged/graph/merge"
	"berth/services/imaged/images"
	"berth/services/imaged/manifest"
	"berth/services/imaged/rootfs"
)

// rootfsService is berth.image.v1.RootfsService.
type rootfsService struct {
	imagev1.UnimplementedRootfsServiceServer
	*server
}

func (s rootfsService) Prepare(ctx context.Context, req *imagev1.PrepareRequest) (*imagev1.PrepareResponse, error) {
	if err := s.checkPlatform(req.Image, req.Platform); err != nil {
		return nil, err
	}
	want := rootfs.Request{
		Container: req.ContainerId, Image: req.Image, ImageVolumes: req.ImageVolumes, Covered: req.CoveredTargets,
		SyncLater: req.SyncLater, Ephemeral: req.Ephemeral,
	}
	for _, v := range req.Volumes {
		want.Volumes = append(want.Volumes, rootfs.VolumeRequest{Name: v.Name, Target: v.Target, NoCopy: v.NoCopy})
	}
	r, err := s.rootfs.Prepare(ctx, want)
	if err != nil {
		return nil, err
	}
	return &imagev1.PrepareResponse{Rootfs: rootfsOf(r)}, nil
}

// checkPlatform says that an image is not here if it is, but for another
// platform than the one asked for: pulling it helps.
func (s *server) checkPlatform(image, platform string) error {
	if platform == "" {
		return nil
	}
	want, err := manifest.Platform(platform)
	if err != nil {
		return err
	}
	i, err := s.inspect(image)
	if err != nil {
		return err
	}
	if !manifest.RunsOn(i.Config, want) {
		return fault.NotFound.Errorf("IMAGE_NOT_FOUND", "image %s is here for %s/%s, not for %s", image, i.Config.OS, i.Config.Architecture, platform).
			With("image", image)
	}
	return nil
}

func rootfsOf(r rootfs.Rootfs) *imagev1.Rootfs {
	out := &imagev1.Rootfs{
		ContainerId: r.Container, ImageId: r.Image.String(), Config: configOf(r.Config.Config),
		Recipe: &imagev1.MountRecipe{
			Type: r.Recipe.Type, Lower: r.Recipe.Lower, Upper: r.Recipe.Upper, Work: r.Recipe.Work,
			Source: r.Recipe.Source, Userxattr: r.Recipe.UserXattr, Images: r.Recipe.Images,
		},
	}
	if r.Name != "" {
		out.ImageReference = images.Familiar(r.Name)
	}
	for _, v := range r.Volumes {
		out.Volumes = append(out.Volumes, &imagev1.VolumeMount{
			Name: v.Volume, Source: v.Source, Target: v.Target, Anonymous: v.Anonymous, Created: v.Created,
		})
	}
	return out
}

func (s rootfsService) Get(_ context.Context, req *imagev1.GetRequest) (*imagev1.GetResponse, error) {
	r, err := s.rootfs.Get(req.ContainerId)
	if err != nil {
		return nil, err
	}
	return &imagev1.GetResponse{Rootfs: rootfsOf(r)}, nil
}

func (s rootfsService) Sync(ctx context.Context, req *imagev1.SyncRequest) (*imagev1.SyncResponse, error) {
	return &imagev1.SyncResponse{}, s.rootfs.Sync(ctx, req.ContainerId)
}

func (s rootfsService) Release(_ context.Context, req *imagev1.ReleaseRequest) (*imagev1.ReleaseResponse, error) {
	return &imagev1.ReleaseResponse{}, s.rootfs.Release(req.ContainerId, req.AnonymousVolumes)
}

func (s rootfsService) List(context.Context, *imagev1.ListRequest) (*imagev1.ListResponse, error) {
	resp := &imagev1.ListResponse{}
	for _, r := range s.rootfs.List() {
		resp.Rootfs = append(resp.Rootfs, &imagev1.RootfsSummary{
			ContainerId: r.Container, ImageId: r.Image.String(), CreatedMs: r.Created.UnixMilli(),
		})
	}
	return resp, nil
}

// storeService is berth.image.v1.StoreService.
type storeService struct {
	imagev1.UnimplementedStoreServiceServer
	*server
}

func (s storeService) Usage(ctx context.Context, _ *imagev1.UsageRequest) (*imagev1.UsageResponse, error) {
	u := s.images.Usage()
	resp := &imagev1.UsageResponse{
		BlobBytes: u.Blobs, LayerBytes: u.LayerBytes, Images: int32(u.Images), Layers: int32(u.Layers),
	}
	for _, r := range s.rootfs.List() {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		resp.RootfsBytes += s.rootfs.Bytes(r)
	}
	all := s.volumes.List()
	resp.Volumes = int32(len(all))
	for v := range slices.Values(all) {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		resp.VolumeBytes += s.volumes.Bytes(v.Name)
	}
	return resp, nil
}

func (s storeService) Changes(_ context.Context, req *imagev1.ChangesRequest) (*imagev1.ChangesResponse, error) {
	all, err := s.rootfs.Changes(req.ContainerId)
	if err != nil {
		return nil, err
	}
	kinds := map[merge.Kind]apiv1.FileChange_Kind{
		merge.Modified: apiv1.FileChange_KIND_MODIFIED, merge.Added: apiv1.FileChange_KIND_ADDED, merge.Deleted: apiv1.FileChange_KIND_DELETED,
	}
	resp := &imagev1.ChangesResponse{}
	for _, c := range all {
		resp.Changes = append(resp.Changes, &apiv1.FileChange{Kind: kinds[c.Kind], Path: c.Path})
	}
	return resp, nil
}
