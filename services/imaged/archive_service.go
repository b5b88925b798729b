package main

import (
	"bufio"

	apiv1 "berth/proto/berth/api/v1"
	"berth/services/imaged/archive"
	"berth/services/imaged/images"
)

func (s imageService) Load(stream apiv1.ImageService_LoadServer) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	progress := newProgress("load", func(p *apiv1.JobProgress) error {
		return stream.Send(&apiv1.ImageServiceLoadResponse{Message: &apiv1.ImageServiceLoadResponse_Progress{Progress: p}})
	})
	loaded, err := s.loader.Load(stream.Context(), archive.LoadRequest{
		Archive:  &dataReader[*apiv1.ImageServiceLoadRequest]{recv: stream.Recv, rest: first.GetData()},
		Platform: first.GetOptions().GetPlatform(), AllPlatforms: first.GetOptions().GetAllPlatforms(),
		Progress: func(p archive.Progress) { progress.set(p.Layer, string(p.State), p.Current, p.Total) },
	})
	progress.close()
	if err != nil {
		return err
	}
	result := &apiv1.ImageServiceLoadResponse_Result{}
	for _, l := range loaded {
		if len(l.Names) == 0 {
			result.ImageIds = append(result.ImageIds, l.ID.String())
			s.tell("load", l.ID, nil)
		}
		for _, n := range l.Names {
			result.References = append(result.References, images.Familiar(n.String()))
			s.tell("load", l.ID, n)
		}
	}
	return stream.Send(&apiv1.ImageServiceLoadResponse{Message: &apiv1.ImageServiceLoadResponse_Result_{Result: result}})
}

// dataReader reads the data messages of a stream.
type dataReader[M interface{ GetData() []byte }] struct {
	recv func() (M, error)
	rest []byte
}

func (r *dataReader[M]) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		m, err := r.recv()
		if err != nil {
			return 0, err // io.EOF when the client is done
		}
		r.rest = m.GetData()
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// saveChunk is the size of a data message.
const saveChunk = 512 << 10

func (s imageService) Save(req *apiv1.ImageServiceSaveRequest, stream apiv1.ImageService_SaveServer) error {
	format, err := archive.ParseFormat(req.Format)
	if err != nil {
		return err
	}
	var total int64 // for the first message
	out := bufio.NewWriterSize(sender(func(p []byte) error {
		err := stream.Send(&apiv1.ImageServiceSaveResponse{Data: p, TotalBytes: total})
		total = 0
		return err
	}), saveChunk)
	err = s.saver.Save(stream.Context(), archive.SaveRequest{
		Images: req.Images, Format: format, Platform: req.Platform, AllPlatforms: req.AllPlatforms, Size: func(n int64) { total = n },
	}, out)
	if err != nil {
		return err
	}
	if err := out.Flush(); err != nil {
		return err
	}
	for _, name := range req.Images {
		if found, err := s.images.Find(name); err == nil {
			s.tell("save", found.ID, nil)
		}
	}
	return nil
}

// sender sends what is written to it.
type sender func(p []byte) error

func (f sender) Write(p []byte) (int, error) { return len(p), f(p) }
