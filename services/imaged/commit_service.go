package main

import (
	"bufio"
	"cmp"
	"io"
	"slices"
	"strings"

	"berth/internal/fault"
	apiv1 "berth/proto/berth/api/v1"
	imagev1 "berth/proto/berth/image/v1"
	"berth/services/imaged/images"
	"berth/services/imaged/importer"
	"berth/services/imaged/manifest"

	"github.com/distribution/reference"
)

func (s storeService) Commit(req *imagev1.CommitRequest, stream imagev1.StoreService_CommitServer) error {
	var name reference.Named
	var err error
	if req.GetCommit().GetReference() != "" {
		if name, err = tagName(req.Commit.Reference); err != nil {
			return err
		}
	}
	r, err := s.rootfs.Get(req.GetCommit().GetContainer())
	if err != nil {
		return err
	}
	progress := newProgress("commit", func(p *apiv1.JobProgress) error {
		return stream.Send(&imagev1.CommitResponse{Message: &imagev1.CommitResponse_Progress{Progress: p}})
	})
	image, err := s.importer.Commit(stream.Context(), importer.CommitRequest{
		Base:  r.Image,
		Layer: func(w io.Writer) error { return s.rootfs.WriteLayer(stream.Context(), r.Container, w) },
		Name:  name, Changes: req.Commit.Changes, Message: req.Commit.Message, Author: req.Commit.Author, CreatedBy: req.CreatedBy,
		Config:   func(p *manifest.Process) { startedWith(p, req.Config) },
		Progress: func(n int64) { progress.set("", "committing", n, 0) },
	})
	progress.close()
	if err != nil {
		return err
	}
	s.tell("commit", image.ID, name)
	result := &apiv1.CommitResponse_Result{ImageId: image.ID.String()}
	if name != nil {
		result.Reference = name.String()
	}
	return stream.Send(&imagev1.CommitResponse{Message: &imagev1.CommitResponse_Result{Result: result}})
}

// tagName reads the name of an image that is being made here.
func tagName(text string) (reference.Named, error) {
	name, err := images.ParseName(text)
	if err != nil {
		return nil, err
	}
	if _, ok := name.(reference.Canonical); ok {
		return nil, fault.InvalidArgument.Errorf("BAD_REFERENCE", "%s: an image that is made here cannot be named by digest", text).With("image", text)
	}
	return name, nil
}

// startedWith puts what a container was started with over its image's p.
func startedWith(p *manifest.Process, c *apiv1.ImageConfig) {
	if e := c.GetEntrypoint(); len(e) > 0 {
		p.Entrypoint, p.Cmd = e, nil
		if len(e) == 1 && e[0] == "" {
			p.Entrypoint = nil
		}
	}
	if len(c.GetCmd()) > 0 {
		p.Cmd = c.Cmd
	}
	for _, env := range c.GetEnv() {
		key, _, _ := strings.Cut(env, "=")
		p.Env = append(slices.DeleteFunc(p.Env, func(e string) bool { return strings.HasPrefix(e, key+"=") }), env)
	}
	for key, value := range c.GetLabels() {
		if p.Labels == nil {
			p.Labels = map[string]string{}
		}
		p.Labels[key] = value
	}
	p.WorkingDir = cmp.Or(c.GetWorkingDir(), p.WorkingDir)
	p.User = cmp.Or(c.GetUser(), p.User)
	p.StopSignal = cmp.Or(c.GetStopSignal(), p.StopSignal)
}

func (s storeService) Export(req *imagev1.ExportRequest, stream imagev1.StoreService_ExportServer) error {
	out := bufio.NewWriterSize(sender(func(p []byte) error { return stream.Send(&imagev1.ExportResponse{Data: p}) }), saveChunk)
	if err := s.rootfs.WriteTree(stream.Context(), req.ContainerId, out); err != nil {
		return err
	}
	return out.Flush()
}
