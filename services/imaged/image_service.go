package main

import (
	"context"
	"path"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"berth/internal/fault"
	apiv1 "berth/proto/berth/api/v1"
	"berth/services/imaged/hosted"
	"berth/services/imaged/images"
	"berth/services/imaged/importer"
	"berth/services/imaged/manifest"
	"berth/services/imaged/pull"
	"berth/services/imaged/push"
	"berth/services/imaged/registry"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// imageService is berth.api.v1.ImageService.
type imageService struct {
	apiv1.UnimplementedImageServiceServer
	*server
}

func authOf(a *apiv1.RegistryAuth) registry.Auth {
	return registry.Auth{
		Username:      a.GetUsername(),
		Password:      registry.Secret(a.GetPassword()),
		IdentityToken: registry.Secret(a.GetIdentityToken()),
		RegistryToken: registry.Secret(a.GetRegistryToken()),
	}
}

func (s imageService) Pull(req *apiv1.ImageServicePullRequest, stream apiv1.ImageService_PullServer) error {
	if req.AllPlatforms && req.Platform != "" {
		return fault.InvalidArgument.Errorf("BAD_PLATFORM", "all platforms and platform %s do not go together", req.Platform)
	}
	name, err := allOrOne(req.Reference, req.AllTags)
	if err != nil {
		return err
	}
	progress := newProgress("pull", func(p *apiv1.JobProgress) error {
		return stream.Send(&apiv1.ImageServicePullResponse{Message: &apiv1.ImageServicePullResponse_Progress{Progress: p}})
	})
	r := pull.Request{
		Name: name, Platform: req.Platform, Auth: authOf(req.Auth),
		Progress: func(p pull.Progress) { progress.set(p.Layer.String(), string(p.State), p.Current, p.Total) },
	}
	ctx := registry.WithNotice(stream.Context(), func(text string) { progress.set("", text, 0, 0) })
	one := s.puller.PullOne
	if req.AllPlatforms {
		one = s.puller.PullPlatforms
	}
	var all []pull.Result
	if req.AllTags {
		all, err = s.puller.PullTags(ctx, r, one)
	} else {
		all, err = one(ctx, r)
	}
	progress.close()
	if err != nil {
		return err
	}
	result := &apiv1.ImageServicePullResponse_Result{UpToDate: true}
	for _, r := range all {
		if !r.UpToDate {
			s.tell("pull", r.Image.ID, r.Name)
		}
		result.Digest, result.ImageId, result.Reference = r.Target.String(), r.Image.ID.String(), r.Name.String()
		result.UpToDate = result.UpToDate && r.UpToDate
		result.DownloadedBytes += r.Downloaded
		if req.AllTags || req.AllPlatforms {
			result.References = append(result.References, result.Reference)
		}
	}
	return stream.Send(&apiv1.ImageServicePullResponse{Message: &apiv1.ImageServicePullResponse_Result_{Result: result}})
}

// allOrOne parses a reference, which must not have a tag if all are meant.
func allOrOne(text string, all bool) (reference.Named, error) {
	name, err := images.ParseName(text)
	if err != nil || !all {
		return name, err
	}
	if bare, err := reference.ParseNormalizedNamed(text); err != nil || !reference.IsNameOnly(bare) {
		return nil, fault.InvalidArgument.Errorf("BAD_REFERENCE", "%s: all tags are meant, so name none", text).With("image", text)
	}
	return name, nil
}

func (s imageService) Push(req *apiv1.ImageServicePushRequest, stream apiv1.ImageService_PushServer) error {
	names, err := s.toPush(req)
	if err != nil {
		return err
	}
	progress := newProgress("push", func(p *apiv1.JobProgress) error {
		return stream.Send(&apiv1.ImageServicePushResponse{Message: &apiv1.ImageServicePushResponse_Progress{Progress: p}})
	})
	ctx := registry.WithNotice(stream.Context(), func(text string) { progress.set("", text, 0, 0) })
	result := &apiv1.ImageServicePushResponse_Result{}
	for _, name := range names {
		var r push.Result
		r, err = s.pusher.Push(ctx, push.Request{
			Name: name, Auth: authOf(req.Auth), AllPlatforms: req.AllPlatforms,
			Progress: func(p push.Progress) { progress.set(p.Blob.String(), string(p.State), p.Current, p.Total) },
		})
		if err != nil {
			break
		}
		if found, err := s.images.Find(name.String()); err == nil {
			s.tell("push", found.ID, name)
		}
		result.Digest, result.Reference = r.Digest.String(), name.String()
		result.SizeBytes += r.Size
		result.UploadedBytes += r.Uploaded
		if req.AllTags {
			result.References = append(result.References, result.Reference)
		}
	}
	progress.close()
	if err != nil {
		return err
	}
	return stream.Send(&apiv1.ImageServicePushResponse{Message: &apiv1.ImageServicePushResponse_Result_{Result: result}})
}

// toPush are the tags that a push is about, in order.
func (s imageService) toPush(req *apiv1.ImageServicePushRequest) ([]reference.NamedTagged, error) {
	name, err := allOrOne(req.Reference, req.AllTags)
	if err != nil {
		return nil, err
	}
	if !req.AllTags {
		tagged, ok := name.(reference.NamedTagged)
		if _, digested := name.(reference.Canonical); !ok || digested {
			return nil, fault.InvalidArgument.Errorf("BAD_REFERENCE", "%s: an image is pushed by tag, not by digest", req.Reference).With("image", req.Reference)
		}
		return []reference.NamedTagged{tagged}, nil
	}
	var all []reference.NamedTagged
	for _, i := range s.images.List() {
		for _, t := range i.Tags {
			named, err := reference.ParseNormalizedNamed(t)
			if err != nil || named.Name() != name.Name() {
				continue
			}
			if tagged, ok := named.(reference.NamedTagged); ok {
				all = append(all, tagged)
			}
		}
	}
	if len(all) == 0 {
		return nil, fault.NotFound.Errorf("IMAGE_NOT_FOUND", "no image of repository %s here", req.Reference).With("image", req.Reference)
	}
	slices.SortFunc(all, func(a, b reference.NamedTagged) int { return strings.Compare(a.Tag(), b.Tag()) })
	return all, nil
}

func (s imageService) Import(stream apiv1.ImageService_ImportServer) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	header := first.GetHeader()
	if header == nil {
		return fault.InvalidArgument.Errorf("NO_HEADER", "the first message of an import must be its header")
	}
	var name reference.Named
	if header.Reference != "" {
		if name, err = tagName(header.Reference); err != nil {
			return err
		}
	}
	progress := newProgress("import", func(p *apiv1.JobProgress) error {
		return stream.Send(&apiv1.ImageServiceImportResponse{Message: &apiv1.ImageServiceImportResponse_Progress{Progress: p}})
	})
	image, err := s.importer.Import(stream.Context(), importer.Request{
		Archive: &dataReader[*apiv1.ImageServiceImportRequest]{recv: stream.Recv}, Name: name, Platform: header.Platform, Changes: header.Changes, Message: header.Message,
		Progress: func(n int64) { progress.set("", "extracting", n, 0) },
	})
	progress.close()
	if err != nil {
		return err
	}
	s.tell("import", image.ID, name)
	result := &apiv1.ImageServiceImportResponse_Result{ImageId: image.ID.String()}
	if name != nil {
		result.Reference = name.String()
	}
	return stream.Send(&apiv1.ImageServiceImportResponse{Message: &apiv1.ImageServiceImportResponse_Result_{Result: result}})
}

func (s imageService) Tag(_ context.Context, req *apiv1.ImageServiceTagRequest) (*apiv1.ImageServiceTagResponse, error) {
	found, err := s.images.Find(req.Image)
	if err != nil {
		return nil, err
	}
	name, err := images.ParseName(req.Reference)
	if err != nil {
		return nil, err
	}
	if err := s.images.Tag(found.ID, name); err != nil {
		return nil, err
	}
	s.tell("tag", found.ID, name)
	return &apiv1.ImageServiceTagResponse{}, nil
}

func (s imageService) Undo(_ context.Context, req *apiv1.ImageServiceUndoRequest) (*apiv1.ImageServiceUndoResponse, error) {
	name, err := images.ParseName(req.Reference)
	if err != nil {
		return nil, err
	}
	resp := &apiv1.ImageServiceUndoResponse{}
	if !req.DryRun {
		now, was, err := s.images.Undo(name)
		if err != nil {
			return nil, err
		}
		resp.ImageId, resp.PreviousId = now.String(), was.String()
		s.tell("tag", now, name)
	}
	for _, p := range s.images.Past(name) {
		resp.Past = append(resp.Past, &apiv1.ImageServiceUndoResponse_Past{
			ImageId: p.Image.String(), Since: timestamppb.New(p.Since), Until: timestamppb.New(p.Until),
		})
	}
	return resp, nil
}

// tell adds an event about an image; name is nil where it has none.
func (s *server) tell(action string, id digest.Digest, name reference.Named) {
	attributes := map[string]string{}
	if name != nil {
		attributes["name"] = images.Familiar(name.String())
	}
	s.events.Emit("image", action, id.String(), attributes)
}

// removed follows a removal that the user asked for or the collector decided: what was pushed under the names goes, too.
// It gives all of that together.
func (s *server) removed(r images.Removal) images.Removal {
	more, err := s.hosted.Unnamed(r.Untagged)
	if err != nil {
		s.log.Error("delete what was pushed", "error", err)
	}
	r.Add(more)
	s.tellRemoval(r)
	return r
}

// tellRemoval adds the events of names and images that went.
func (s *server) tellRemoval(r images.Removal) {
	for _, n := range r.Untagged {
		s.events.Emit("image", "untag", images.Familiar(n), map[string]string{"name": images.Familiar(n)})
	}
	for _, d := range r.Deleted {
		s.events.Emit("image", "delete", d.String(), map[string]string{"name": d.String()})
	}
}

func (s imageService) Remove(_ context.Context, req *apiv1.ImageServiceRemoveRequest) (*apiv1.ImageServiceRemoveResponse, error) {
	r, err := s.images.Remove(req.Image, req.Force)
	if err != nil {
		return nil, err
	}
	r = s.removed(r)
	return &apiv1.ImageServiceRemoveResponse{Untagged: familiar(r.Untagged), Deleted: texts(r.Deleted), ReclaimedBytes: r.Bytes}, nil
}

func (s imageService) Prune(_ context.Context, req *apiv1.ImageServicePruneRequest) (*apiv1.ImageServicePruneResponse, error) {
	match, err := pruneFilter(req.Filters)
	if err != nil {
		return nil, err
	}
	rules, err := rulesOf(req)
	if err != nil {
		return nil, err
	}
	rules.Match = match
	age := hosted.Never
	imagesOnly := len(req.Filters)+len(req.Repositories) > 0 // these are about images
	if !imagesOnly {
		age = pushedAge
	}
	r, err := s.images.Prune(rules)
	if err == nil && req.DryRun { // once more, with what goes because the names do
		rules.Follows = s.hosted.Follows(r.Untagged, age)
		r, err = s.images.Prune(rules)
	}
	if err != nil {
		return nil, err
	}
	if !req.DryRun {
		r = s.removed(r)
	}
	if !imagesOnly {
		partial, err := s.prunePartials(req.DryRun)
		if err != nil {
			return nil, err
		}
		r.Bytes += partial
	}
	if !imagesOnly && !req.DryRun {
		pushed, err := s.prunePushed(age)
		if err != nil {
			return nil, err
		}
		r.Add(pushed)
	}
	return &apiv1.ImageServicePruneResponse{Untagged: familiar(r.Untagged), Deleted: texts(r.Deleted), ReclaimedBytes: r.Bytes}, nil
}

// rulesOf are the rules of a request, without its filters.
func rulesOf(req *apiv1.ImageServicePruneRequest) (images.Rules, error) {
	r := images.Rules{All: req.All, KeepLast: int(req.KeepLast), DryRun: req.DryRun}
	for _, pattern := range slices.Concat(req.Repositories, req.Protect) {
		if _, err := path.Match(pattern, ""); err != nil || pattern == "" {
			return r, badFilter(pattern)
		}
	}
	if req.KeepLast < 0 {
		return r, fault.InvalidArgument.Errorf("BAD_RULE", "cannot keep the last %d images", req.KeepLast)
	}
	if len(req.Repositories) > 0 {
		r.Repository = func(name string) bool {
			return slices.ContainsFunc(req.Repositories, func(p string) bool { ok, _ := path.Match(p, name); return ok })
		}
	}
	if len(req.Protect) > 0 {
		r.Protect = anyOf(req.Protect)
	}
	return r, nil
}

// anyOf reports whether one of the patterns means an image.
func anyOf(patterns []string) func(images.Info) bool {
	return func(i images.Info) bool {
		return slices.ContainsFunc(patterns, func(p string) bool { return i.Is(p, nameMatches) })
	}
}

func (s *server) prunePartials(dryRun bool) (bytes int64, err error) {
	if dryRun {
		_, bytes, err = s.store.Partials()
	} else {
		_, bytes, err = s.store.DropPartials(0)
	}
	return bytes, err
}

// pushedAge is how old what was pushed has to be for a prune to take it: a push may be under way.
const pushedAge = time.Hour

// prunePushed takes away what was pushed at least age ago and no tag leads to.
func (s *server) prunePushed(age time.Duration) (images.Removal, error) {
	bytes, err := s.hosted.DropLoose(age)
	if err != nil {
		return images.Removal{Bytes: bytes}, err
	}
	r, err := s.hosted.Prune(age)
	s.tellRemoval(r)
	r.Bytes += bytes
	return r, err
}

func familiar(names []string) []string {
	all := make([]string, len(names))
	for i, n := range names {
		all[i] = images.Familiar(n)
	}
	return all
}

func texts(all []digest.Digest) []string {
	out := make([]string, len(all))
	for i, d := range all {
		out[i] = d.String()
	}
	return out
}

// maxListBytes ends a page early: gRPC takes messages of 4 MiB.
const maxListBytes = 3 << 20

func (s imageService) List(_ context.Context, req *apiv1.ImageServiceListRequest) (*apiv1.ImageServiceListResponse, error) {
	match, err := s.listFilter(req.Filters)
	if err != nil {
		return nil, err
	}
	all := slices.DeleteFunc(s.images.List(), func(i images.Info) bool { return !match(i) })
	page, next := pageOf(all, req.PageSize, req.PageToken, func(i images.Info) string { return i.ID.String() })
	resp := &apiv1.ImageServiceListResponse{NextPageToken: next}
	size := 0
	for _, i := range page {
		summary := &apiv1.ImageSummary{
			Id: i.ID.String(), Tags: i.Tags, Digests: i.Digests, CreatedAt: timestamppb.New(i.Created),
			SizeBytes: i.Size, Labels: i.Labels, Containers: int32(i.Users),
		}
		if req.WithLayers {
			for _, l := range s.images.LayersOf(i.Image) {
				summary.Layers = append(summary.Layers, &apiv1.ImageLayer{DiffId: l.DiffID.String(), SizeBytes: l.Bytes, Images: int32(l.Images)})
			}
		}
		if size += proto.Size(summary); size > maxListBytes && len(resp.Images) > 0 {
			resp.NextPageToken = resp.Images[len(resp.Images)-1].Id
			break
		}
		resp.Images = append(resp.Images, summary)
	}
	return resp, nil
}

func (s imageService) Inspect(_ context.Context, req *apiv1.ImageServiceInspectRequest) (*apiv1.ImageServiceInspectResponse, error) {
	i, err := s.inspect(req.Image)
	if err != nil {
		return nil, err
	}
	image := &apiv1.Image{
		Id: i.ID.String(), Tags: i.Tags, Digests: i.Digests, CreatedAt: timestamppb.New(i.Created), SizeBytes: i.Size,
		Architecture: i.Config.Architecture, Os: i.Config.OS, Variant: i.Config.Variant, Author: i.Config.Author,
		Config: configOf(i.Config.Config), Driver: s.driver.Name(),
		ManifestDigest: i.Manifest.String(), ManifestMediaType: i.MediaType,
	}
	for _, l := range i.Layers {
		image.Layers = append(image.Layers, l.DiffID.String())
	}
	return &apiv1.ImageServiceInspectResponse{Image: image}, nil
}

func (s *server) inspect(text string) (images.Inspected, error) {
	found, err := s.images.Find(text)
	if err != nil {
		return images.Inspected{}, err
	}
	return s.images.Inspect(found.ID)
}

// configOf is an image's process configuration in the protocol's form.
func configOf(p manifest.Process) *apiv1.ImageConfig {
	return &apiv1.ImageConfig{
		Entrypoint: p.Entrypoint, Cmd: p.Cmd, Env: p.Env, WorkingDir: p.WorkingDir, User: p.User, Labels: p.Labels,
		ExposedPorts: sorted(p.ExposedPorts), Volumes: sorted(p.Volumes), StopSignal: p.StopSignal, Shell: p.Shell,
	}
}

func sorted(set map[string]struct{}) []string {
	all := make([]string, 0, len(set))
	for k := range set {
		all = append(all, k)
	}
	slices.Sort(all)
	return all
}

func (s imageService) History(_ context.Context, req *apiv1.ImageServiceHistoryRequest) (*apiv1.ImageServiceHistoryResponse, error) {
	i, err := s.inspect(req.Image)
	if err != nil {
		return nil, err
	}
	sizes := s.images.LayerSizes(i.Image)
	resp := &apiv1.ImageServiceHistoryResponse{}
	for _, h := range i.Config.History {
		e := &apiv1.HistoryEntry{CreatedBy: h.CreatedBy, Comment: h.Comment, EmptyLayer: h.EmptyLayer}
		if h.Created != nil {
			e.CreatedAt = timestamppb.New(*h.Created)
		}
		if !h.EmptyLayer && len(sizes) > 0 {
			e.SizeBytes, sizes = sizes[0], sizes[1:]
		}
		resp.Entries = append(resp.Entries, e)
	}
	slices.Reverse(resp.Entries)
	return resp, nil
}

func (s imageService) Login(ctx context.Context, req *apiv1.ImageServiceLoginRequest) (*apiv1.ImageServiceLoginResponse, error) {
	host := req.GetAuth().GetRegistry()
	if host == "" {
		host = "docker.io"
	}
	ctx, cancel := context.WithTimeout(ctx, 25*time.Second)
	defer cancel()
	token, err := s.registry.Login(ctx, strings.TrimSuffix(host, "/"), authOf(req.Auth))
	return &apiv1.ImageServiceLoginResponse{IdentityToken: string(token)}, err
}
