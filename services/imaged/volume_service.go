package main

import (
	"context"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/types/known/timestamppb"

	"berth/internal/fault"
	apiv1 "berth/proto/berth/api/v1"
	"berth/services/imaged/volumes"
)

// volumeService is berth.api.v1.VolumeService.
type volumeService struct {
	apiv1.UnimplementedVolumeServiceServer
	*server
}

func (s volumeService) volumeOf(v volumes.Volume) *apiv1.Volume {
	return &apiv1.Volume{
		Name: v.Name, Driver: "local", Mountpoint: s.volumes.Path(v.Name), Labels: v.Labels,
		CreatedAt: timestamppb.New(v.Created), Anonymous: v.Anonymous, Containers: s.volumes.Users(v.Name),
	}
}

func (s volumeService) Create(_ context.Context, req *apiv1.VolumeServiceCreateRequest) (*apiv1.VolumeServiceCreateResponse, error) {
	if req.Driver != "" && req.Driver != "local" {
		return nil, fault.InvalidArgument.Errorf("BAD_DRIVER", "there is no volume driver %q, only local", req.Driver)
	}
	if len(req.Options) > 0 {
		return nil, fault.Unimplemented.Errorf("NOT_IMPLEMENTED", "volume options are not implemented")
	}
	v, created, err := s.volumes.Create(volumes.Volume{Name: req.Name, Labels: req.Labels})
	if err != nil {
		return nil, err
	}
	if created {
		s.events.Emit("volume", "create", v.Name, map[string]string{"driver": "local"})
	}
	return &apiv1.VolumeServiceCreateResponse{Volume: s.volumeOf(v)}, nil
}

func (s volumeService) Inspect(_ context.Context, req *apiv1.VolumeServiceInspectRequest) (*apiv1.VolumeServiceInspectResponse, error) {
	v, err := s.volumes.Get(req.Volume)
	if err != nil {
		return nil, err
	}
	return &apiv1.VolumeServiceInspectResponse{Volume: s.volumeOf(v)}, nil
}

func (s volumeService) List(_ context.Context, req *apiv1.VolumeServiceListRequest) (*apiv1.VolumeServiceListResponse, error) {
	match, err := s.volumeFilter(req.Filters)
	if err != nil {
		return nil, err
	}
	all := slices.DeleteFunc(s.volumes.List(), func(v volumes.Volume) bool { return !match(v) })
	page, next := pageOf(all, req.PageSize, req.PageToken, func(v volumes.Volume) string { return v.Name })
	resp := &apiv1.VolumeServiceListResponse{NextPageToken: next}
	for _, v := range page {
		resp.Volumes = append(resp.Volumes, s.volumeOf(v))
	}
	return resp, nil
}

func (s volumeService) Remove(_ context.Context, req *apiv1.VolumeServiceRemoveRequest) (*apiv1.VolumeServiceRemoveResponse, error) {
	err := s.volumes.Remove(req.Volume)
	switch {
	case err == nil:
		s.events.Emit("volume", "destroy", req.Volume, map[string]string{"driver": "local"})
	case req.Force && fault.Is(err, fault.NotFound):
		err = nil
	}
	return &apiv1.VolumeServiceRemoveResponse{}, err
}

func (s volumeService) Prune(_ context.Context, req *apiv1.VolumeServicePruneRequest) (*apiv1.VolumeServicePruneResponse, error) {
	// Without the names in use: Prune looks at that itself, under its lock.
	match, err := labelFilter(req.Filters)
	if err != nil {
		return nil, err
	}
	names, bytes, err := s.volumes.Prune(req.All, match)
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		s.events.Emit("volume", "destroy", n, map[string]string{"driver": "local"})
	}
	return &apiv1.VolumeServicePruneResponse{Names: names, ReclaimedBytes: bytes}, nil
}

// volumeFilter makes the filter of volume list: name, label, dangling, driver.
func (s volumeService) volumeFilter(filters []string) (func(volumes.Volume) bool, error) {
	var all []func(volumes.Volume) bool
	for _, f := range filters {
		key, value, _ := strings.Cut(f, "=")
		switch key {
		case "name":
			all = append(all, func(v volumes.Volume) bool { return strings.Contains(v.Name, value) })
		case "driver":
			all = append(all, func(volumes.Volume) bool { return value == "local" })
		case "dangling":
			want, err := strconv.ParseBool(value)
			if err != nil {
				return nil, badFilter(f)
			}
			all = append(all, func(v volumes.Volume) bool { return (len(s.volumes.Users(v.Name)) == 0) == want })
		default:
			m, err := labelFilter([]string{f})
			if err != nil {
				return nil, err
			}
			all = append(all, m)
		}
	}
	return func(v volumes.Volume) bool {
		return !slices.ContainsFunc(all, func(m func(volumes.Volume) bool) bool { return !m(v) })
	}, nil
}

// labelFilter takes "label=k", "label=k=v" and "label!=…"; all must hold.
func labelFilter(filters []string) (func(volumes.Volume) bool, error) {
	var all []func(volumes.Volume) bool
	for _, f := range filters {
		key, value, _ := strings.Cut(f, "=")
		if key != "label" && key != "label!" || value == "" {
			return nil, badFilter(f)
		}
		k, want, hasValue := strings.Cut(value, "=")
		all = append(all, func(v volumes.Volume) bool {
			have, ok := v.Labels[k]
			return (ok && (!hasValue || have == want)) == (key == "label")
		})
	}
	return func(v volumes.Volume) bool {
		return !slices.ContainsFunc(all, func(m func(volumes.Volume) bool) bool { return !m(v) })
	}, nil
}
