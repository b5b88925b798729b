package main

import (
	"strings"
	"sync"

	"berth/internal/fault"
	apiv1 "berth/proto/berth/api/v1"
	"berth/services/imaged/check"
	"berth/services/imaged/registry"

	"github.com/opencontainers/go-digest"
)

func (s imageService) Check(req *apiv1.ImageServiceCheckRequest, stream apiv1.ImageService_CheckServer) error {
	var sending sync.Mutex // progress is sent by a goroutine of its own
	send := func(m *apiv1.ImageServiceCheckResponse) error {
		sending.Lock()
		defer sending.Unlock()
		return stream.Send(m)
	}
	progress := newProgress("check", func(p *apiv1.JobProgress) error {
		return send(&apiv1.ImageServiceCheckResponse{Message: &apiv1.ImageServiceCheckResponse_Progress{Progress: p}})
	})
	r, err := s.checker.Check(stream.Context(), check.Request{
		Images: req.Images, Repair: req.Repair, Auth: authsOf(req.Auths),
		Progress: func(part digest.Digest, state string, size int64) { progress.set(part.String(), state, 0, size) },
		Found: func(f check.Finding) {
			_ = send(&apiv1.ImageServiceCheckResponse{Message: &apiv1.ImageServiceCheckResponse_Finding_{Finding: s.findingOf(f)}})
		},
	})
	progress.close()
	if err != nil {
		return err
	}
	return send(&apiv1.ImageServiceCheckResponse{Message: &apiv1.ImageServiceCheckResponse_Result_{Result: &apiv1.ImageServiceCheckResponse_Result{
		Images: int32(r.Images), Blobs: int32(r.Blobs), Layers: int32(r.Layers), BlobBytes: r.Bytes, Damaged: int32(r.Damaged), Repaired: int32(r.Mended),
	}}})
}

func (s *server) findingOf(f check.Finding) *apiv1.ImageServiceCheckResponse_Finding {
	out := &apiv1.ImageServiceCheckResponse_Finding{ImageId: f.Image.String(), Part: f.Part.String(), Problem: f.Problem, Repaired: f.Mended}
	if i, err := s.images.Inspect(f.Image); err == nil && len(i.Tags) > 0 {
		out.Reference = i.Tags[0]
	}
	if f.Err != nil {
		out.Reason = f.Err.Error()
		if hint := fault.HintOf(f.Err); hint != "" {
			out.Reason += " (" + hint + ")"
		}
	}
	return out
}

// authsOf gives the credentials for a registry host.
func authsOf(all []*apiv1.RegistryAuth) func(host string) registry.Auth {
	return func(host string) registry.Auth {
		for _, a := range all {
			if strings.TrimSuffix(a.GetRegistry(), "/") == host {
				return authOf(a)
			}
		}
		return registry.Auth{}
	}
}
