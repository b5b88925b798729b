package main

import (
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"berth/internal/config"
	apiv1 "berth/proto/berth/api/v1"
	"berth/services/imaged/diskuse"
	"berth/services/imaged/worker/workertest"
)

// TestCollector: nothing goes unless the configuration asks for it; then by age,
// and by how full the disk is, never what is pinned or has just come.
func TestCollector(t *testing.T) {
	r := newRig(t)
	for _, name := range []string{"app:1", "pinned:1", "team/app:1"} {
		r.load(name, "LABEL name="+name)
	}
	r.stop()
	c := config.Default().Imaged
	if c.CollectAge != 0 || c.CollectAbove != 0 {
		t.Error("collecting is on by default")
	}
	s, err := open(r.dir, workertest.Workers(t).Path, c, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	if s.collector(r.dir, c).On() {
		t.Error("the collector is on by default")
	}
	names := func() string {
		var all []string
		for _, i := range s.images.List() {
			all = append(all, i.Tags...)
		}
		return strings.Join(all, " ")
	}
	once := func(later time.Duration, d diskuse.Disk) {
		t.Helper()
		collector := s.collector(r.dir, c)
		collector.Disk = func() (diskuse.Disk, error) { return d, nil }
		if err := collector.Once(time.Now().Add(later)); err != nil {
			t.Error(err)
		}
	}
	roomy, full := diskuse.Disk{Total: 1000 << 20, Free: 900 << 20}, diskuse.Disk{Total: 1000 << 20, Free: 10 << 20}
	before := names()
	c.Pins, c.CollectAbove = []string{"pinned"}, 90
	once(time.Hour, roomy)
	once(time.Minute, full) // they have just come
	if names() != before {
		t.Errorf("left %q of %q", names(), before)
	}
	once(time.Hour, full)
	if names() != "pinned:1" {
		t.Errorf("left of a full disk: %q", names())
	}
	c.Pins, c.CollectAbove, c.CollectAge = nil, 0, config.Duration(2*time.Hour)
	once(time.Hour, full)
	if names() != "pinned:1" {
		t.Errorf("left before its time: %q", names())
	}
	once(3*time.Hour, roomy)
	if names() != "" {
		t.Errorf("left after its time: %q", names())
	}
	s.Close()
	r.start()
	list, err := r.images.List(t.Context(), &apiv1.ImageServiceListRequest{})
	if err != nil || len(list.Images) != 0 {
		t.Errorf("after a restart: %v, %v", list, err)
	}
}
