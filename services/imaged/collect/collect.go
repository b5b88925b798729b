// Package collect removes images on its own, when they have not been used for
// long or when the disk fills up. It is off unless the configuration asks for
// it, and never touches an image that a container uses, that is pinned, or that
// came or was used a moment ago.
package collect

import (
	"context"
	"time"

	"berth/services/imaged/diskuse"
	"berth/services/imaged/images"

	"github.com/hashicorp/go-hclog"
)

const (
	// every is the pause between two looks.
	every = time.Minute
	// grace is how long an image is left alone after it came: its container may
	// be on the way.
	grace = 10 * time.Minute
)

// Config says when and what to collect.
type Config struct {
	Age          time.Duration // unused for so long; 0: no matter how long
	Above, Below int           // percent of the disk in use: begin, end; Above 0: no matter how much
	Pinned       func(images.Info) bool
	Disk         func() (diskuse.Disk, error)
	Removed      func(images.Removal) // told of each removal
	Images       *images.Images
	Log          hclog.Logger
}

// On reports whether there is anything to do.
func (c Config) On() bool { return c.Age > 0 || c.Above > 0 }

// Run collects until ctx ends.
func (c Config) Run(ctx context.Context) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if err := c.Once(time.Now()); err != nil {
				c.Log.Error("collect images", "error", err)
			}
		}
	}
}

// Once looks and collects once.
func (c Config) Once(now time.Time) error {
	if c.Age > 0 {
		old := func(i images.Info) bool { return now.Sub(i.Used) > max(c.Age, grace) }
		r, err := c.Images.Prune(images.Rules{All: true, Protect: c.Pinned, Match: old})
		c.tell("unused for long", r)
		if err != nil {
			return err
		}
	}
	if c.Above == 0 {
		return nil
	}
	d, err := c.Disk()
	if err != nil || d.Above(c.Above) <= 0 {
		return err
	}
	// What goes frees its space in the background: sizes are counted, not the
	// disk looked at again.
	r, err := c.Images.Collect(d.Above(min(c.Below, c.Above)), func(i images.Info) bool { return now.Sub(i.Used) < grace || c.Pinned(i) })
	c.tell("the disk is full", r)
	return err
}

func (c Config) tell(why string, r images.Removal) {
	if len(r.Deleted) > 0 {
		c.Log.Info("removed images", "why", why, "names", r.Untagged, "bytes", r.Bytes)
		c.Removed(r)
	}
}
