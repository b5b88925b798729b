package main

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"

	"berth/internal/fault"
	apiv1 "berth/proto/berth/api/v1"
	"berth/services/imaged/images"
	"berth/services/imaged/remote"

	"github.com/distribution/reference"
)

// registryService is berth.api.v1.RegistryService.
type registryService struct {
	apiv1.UnimplementedRegistryServiceServer
	*server
}

func place(text string, auth *apiv1.RegistryAuth) (remote.Place, error) {
	name, err := images.ParseName(text)
	return remote.Place{Name: name, Auth: authOf(auth)}, err
}

// tagged is place for what must not have a digest.
func tagged(text string, auth *apiv1.RegistryAuth) (remote.Place, error) {
	p, err := place(text, auth)
	if _, ok := p.Name.(reference.Canonical); err == nil && ok {
		err = fault.InvalidArgument.Errorf("BAD_REFERENCE", "%s: name a tag to push to, not a digest", text).With("image", text)
	}
	return p, err
}

func (s registryService) ListTags(ctx context.Context, req *apiv1.RegistryServiceListTagsRequest) (*apiv1.RegistryServiceListTagsResponse, error) {
	p, err := place(req.Repository, req.Auth)
	if err != nil {
		return nil, err
	}
	tags, err := s.registry.Tags(ctx, reference.TrimNamed(p.Name), p.Auth)
	return &apiv1.RegistryServiceListTagsResponse{Tags: tags}, err
}

func (s registryService) ListRepositories(ctx context.Context, req *apiv1.RegistryServiceListRepositoriesRequest) (*apiv1.RegistryServiceListRepositoriesResponse, error) {
	all, err := s.registry.Repositories(ctx, req.Registry, authOf(req.Auth))
	all = slices.DeleteFunc(all, func(name string) bool { return !strings.Contains(name, req.Term) })
	return &apiv1.RegistryServiceListRepositoriesResponse{Repositories: all}, err
}

func (s registryService) GetManifest(ctx context.Context, req *apiv1.RegistryServiceGetManifestRequest) (*apiv1.RegistryServiceGetManifestResponse, error) {
	p, err := place(req.Reference, req.Auth)
	if err != nil {
		return nil, err
	}
	raw, desc, err := s.remote.Manifest(ctx, p, req.Platform)
	return &apiv1.RegistryServiceGetManifestResponse{Raw: raw, MediaType: desc.MediaType, Digest: desc.Digest.String()}, err
}

func (s registryService) Delete(ctx context.Context, req *apiv1.RegistryServiceDeleteRequest) (*apiv1.RegistryServiceDeleteResponse, error) {
	p, err := place(req.Reference, req.Auth)
	if err != nil {
		return nil, err
	}
	return &apiv1.RegistryServiceDeleteResponse{}, s.registry.Delete(ctx, p.Name, p.Auth)
}

func (s registryService) CreateIndex(ctx context.Context, req *apiv1.RegistryServiceCreateIndexRequest) (*apiv1.RegistryServiceCreateIndexResponse, error) {
	to, err := tagged(req.Reference, req.Auth)
	if err != nil {
		return nil, err
	}
	var sources []remote.Source
	for _, r := range req.Sources {
		p, err := place(r.Reference, r.Auth)
		if err != nil {
			return nil, err
		}
		sources = append(sources, remote.Source{Place: p, Platform: r.Platform, Annotations: r.Annotations})
	}
	d, err := s.remote.CreateIndex(ctx, to, sources, req.Annotations)
	return &apiv1.RegistryServiceCreateIndexResponse{Digest: d.String()}, err
}

func (s registryService) Copy(req *apiv1.RegistryServiceCopyRequest, stream apiv1.RegistryService_CopyServer) error {
	from, err := place(req.Source, req.SourceAuth)
	if err != nil {
		return err
	}
	to, err := tagged(req.Target, req.TargetAuth)
	if err != nil {
		return err
	}
	progress := newProgress("copy", func(p *apiv1.JobProgress) error {
		return stream.Send(&apiv1.RegistryServiceCopyResponse{Message: &apiv1.RegistryServiceCopyResponse_Progress{Progress: p}})
	})
	done, err := s.remote.Copy(stream.Context(), remote.CopyRequest{
		From: from, To: to, Platform: req.Platform, Referrers: req.Referrers,
		Progress: func(p remote.Progress) { progress.set(p.Blob.String(), string(p.State), p.Current, p.Total) },
	})
	progress.close()
	if err != nil {
		return err
	}
	return stream.Send(&apiv1.RegistryServiceCopyResponse{Message: &apiv1.RegistryServiceCopyResponse_Result_{Result: &apiv1.RegistryServiceCopyResponse_Result{
		Digest: done.Digest.String(), CopiedBytes: done.Bytes, Manifests: int32(done.Manifests), Blobs: int32(done.Blobs),
	}}})
}

func (s registryService) ListReferrers(ctx context.Context, req *apiv1.RegistryServiceListReferrersRequest) (*apiv1.RegistryServiceListReferrersResponse, error) {
	p, err := place(req.Reference, req.Auth)
	if err != nil {
		return nil, err
	}
	subject, err := s.registry.Resolve(ctx, p.Name, p.Auth)
	if err != nil {
		return nil, err
	}
	all, err := s.registry.Referrers(ctx, reference.TrimNamed(p.Name), subject.Digest, req.ArtifactType, p.Auth)
	resp := &apiv1.RegistryServiceListReferrersResponse{Digest: subject.Digest.String()}
	for _, d := range all {
		resp.Referrers = append(resp.Referrers, &apiv1.ManifestDescriptor{
			Digest: d.Digest.String(), MediaType: d.MediaType, SizeBytes: d.Size, ArtifactType: d.ArtifactType, Annotations: d.Annotations,
		})
	}
	return resp, err
}

func (s registryService) PushArtifact(stream apiv1.RegistryService_PushArtifactServer) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	h := first.GetHeader()
	if h == nil {
		return fault.InvalidArgument.Errorf("NO_HEADER", "the first message of PushArtifact must be its header")
	}
	a := remote.Artifact{Type: h.ArtifactType, Annotations: h.Annotations}
	to, err := artifactPlace(h, &a)
	if err != nil {
		return err
	}
	files, remove, err := s.receiveFiles(stream)
	defer remove()
	if err != nil {
		return err
	}
	a.Files = files
	d, err := s.remote.Push(stream.Context(), to, a)
	if err != nil {
		return err
	}
	return stream.SendAndClose(&apiv1.RegistryServicePushArtifactResponse{Digest: d.String(), Reference: reference.TrimNamed(to.Name).Name() + "@" + d.String()})
}

// artifactPlace is where an artifact goes: to its tag, or beside its subject.
func artifactPlace(h *apiv1.RegistryServicePushArtifactRequest_Header, a *remote.Artifact) (remote.Place, error) {
	to, err := tagged(h.Reference, h.Auth)
	if err != nil || h.Subject == "" {
		return to, err
	}
	subject, err := place(h.Subject, h.Auth)
	if err != nil {
		return to, err
	}
	if reference.TrimNamed(subject.Name).String() != reference.TrimNamed(to.Name).String() {
		return to, fault.InvalidArgument.Errorf("OTHER_REPOSITORY", "an artifact is kept in the repository of what it is about: %s", reference.FamiliarName(subject.Name))
	}
	a.Subject = subject.Name
	if named, err := reference.ParseNormalizedNamed(h.Reference); err == nil && reference.IsNameOnly(named) {
		to.Name = named
	}
	return to, nil
}

// receiveFiles spools the files of a PushArtifact. remove, never nil, deletes the spools.
func (s registryService) receiveFiles(stream apiv1.RegistryService_PushArtifactServer) (files []remote.File, remove func(), err error) {
	var spools []*remote.Spooled
	remove = func() {
		for _, f := range spools {
			f.Remove()
		}
	}
	var about *apiv1.ArtifactFile
	end := func() {
		if about != nil {
			mediaType := about.MediaType
			if mediaType == "" {
				mediaType = "application/octet-stream"
			}
			files = append(files, spools[len(spools)-1].File(about.Name, mediaType))
		}
	}
	for {
		m, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			end()
			return files, remove, nil
		case err != nil:
			return nil, remove, err
		case m.GetFile() != nil:
			end()
			spool, err := remote.NewSpooled(s.store.Staging())
			if err != nil {
				return nil, remove, err
			}
			about, spools = m.GetFile(), append(spools, spool)
		case about == nil:
			return nil, remove, fault.InvalidArgument.Errorf("NO_FILE", "data came before a file was named")
		default:
			if _, err := spools[len(spools)-1].Write(m.GetData()); err != nil {
				return nil, remove, err
			}
		}
	}
}

func (s registryService) PullArtifact(req *apiv1.RegistryServicePullArtifactRequest, stream apiv1.RegistryService_PullArtifactServer) error {
	p, err := place(req.Reference, req.Auth)
	if err != nil {
		return err
	}
	files, err := s.remote.Files(stream.Context(), p)
	if err != nil {
		return err
	}
	for _, f := range files {
		about := &apiv1.ArtifactFile{Name: f.Name, MediaType: f.MediaType, SizeBytes: f.Size}
		if err := stream.Send(&apiv1.RegistryServicePullArtifactResponse{Message: &apiv1.RegistryServicePullArtifactResponse_File{File: about}}); err != nil {
			return err
		}
		if err := s.remote.Read(stream.Context(), p, f, artifactWriter{stream}); err != nil {
			return err
		}
	}
	return nil
}

// artifactWriter sends what is written as data messages; io.Copy writes 32 KiB at a time.
type artifactWriter struct {
	stream apiv1.RegistryService_PullArtifactServer
}

func (w artifactWriter) Write(p []byte) (int, error) {
	err := w.stream.Send(&apiv1.RegistryServicePullArtifactResponse{Message: &apiv1.RegistryServicePullArtifactResponse_Data{Data: slices.Clone(p)}})
	return len(p), err
}

func (s registryService) limits() *apiv1.TransferLimits {
	downloads, unpacks := s.puller.Limits()
	l := &apiv1.TransferLimits{BytesPerSecond: s.registry.Bandwidth(), Downloads: int32(downloads), Unpacks: int32(unpacks)}
	if l.BytesPerSecond == 0 {
		l.BytesPerSecond = -1
	}
	return l
}

func (s registryService) GetLimits(context.Context, *apiv1.RegistryServiceGetLimitsRequest) (*apiv1.RegistryServiceGetLimitsResponse, error) {
	return &apiv1.RegistryServiceGetLimitsResponse{Limits: s.limits()}, nil
}

const (
	minBandwidth = 16 << 10
	maxAtOnce    = 1000
)

func (s registryService) SetLimits(_ context.Context, req *apiv1.RegistryServiceSetLimitsRequest) (*apiv1.RegistryServiceSetLimitsResponse, error) {
	l := req.GetLimits()
	if b := l.GetBytesPerSecond(); b < -1 || b > 0 && b < minBandwidth {
		return nil, fault.InvalidArgument.Errorf("BAD_LIMIT", "%d bytes a second are less than %d", b, minBandwidth)
	}
	for _, n := range []int32{l.GetDownloads(), l.GetUnpacks()} {
		if n < 0 || n > maxAtOnce {
			return nil, fault.InvalidArgument.Errorf("BAD_LIMIT", "%d at once is not between 1 and %d", n, maxAtOnce)
		}
	}
	s.puller.SetLimits(int(l.GetDownloads()), int(l.GetUnpacks()))
	if b := l.GetBytesPerSecond(); b != 0 {
		s.registry.SetBandwidth(max(b, 0))
	}
	return &apiv1.RegistryServiceSetLimitsResponse{Limits: s.limits()}, nil
}
