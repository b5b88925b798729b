package rootfs

import (
	"context"
	"maps"
	"path"
	"slices"
	"strings"

	"berth/internal/fault"
	"berth/services/imaged/images"
	"berth/services/imaged/volumes"
)

// addVolumes makes or finds the volumes of a container, in the order of the
// request, those of the image last.
func (m *Manager) addVolumes(ctx context.Context, r *Rootfs, req Request, use images.Use) error {
	wanted := slices.Clone(req.Volumes)
	if req.ImageVolumes {
		wanted = append(wanted, imageVolumes(req, use)...)
	}
	for _, w := range wanted {
		if !path.IsAbs(w.Target) || strings.IndexByte(w.Target, 0) >= 0 {
			return fault.InvalidArgument.Errorf("BAD_TARGET", "volume target %q is not an absolute path", w.Target)
		}
		if err := m.addVolume(ctx, r, w, use); err != nil {
			return err
		}
	}
	return nil
}

func (m *Manager) addVolume(ctx context.Context, r *Rootfs, w VolumeRequest, use images.Use) error {
	vol, created, err := m.volumes.Create(volumes.Volume{Name: w.Name})
	if err != nil {
		return err
	}
	// From here on in the list, so that undo knows of it.
	r.Volumes = append(r.Volumes, Mount{
		Volume: vol.Name, Target: path.Clean(w.Target), Source: m.volumes.Path(vol.Name), Anonymous: vol.Anonymous, Created: created,
	})
	if err := m.volumes.Use(vol.Name, r.Container); err != nil {
		return err
	}
	if !created || w.NoCopy {
		return nil
	}
	return m.driver.CopyOut(ctx, use.Layers, w.Target, m.volumes.Path(vol.Name))
}

// imageVolumes are the paths the image declares and nothing else covers. An
// image's path may be relative or odd; that is its author's slip, not an error.
func imageVolumes(req Request, use images.Use) (all []VolumeRequest) {
	covered := map[string]bool{"/": true}
	for _, t := range req.Covered {
		covered[path.Clean("/"+t)] = true
	}
	for _, v := range req.Volumes {
		covered[path.Clean("/"+v.Target)] = true
	}
	for _, target := range slices.Sorted(maps.Keys(use.Config.Config.Volumes)) {
		target = path.Clean("/" + target)
		if !covered[target] && strings.IndexByte(target, 0) < 0 {
			covered[target] = true
			all = append(all, VolumeRequest{Target: target})
		}
	}
	return all
}
