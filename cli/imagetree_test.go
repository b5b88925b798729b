package main

import (
	"strings"
	"testing"

	"berth/cli/apiv1"
)

func TestImageTree(t *testing.T) {
	layer := func(id string, size int64, images int32) *apiv1.ImageLayer {
		return &apiv1.ImageLayer{DiffId: "sha256:" + strings.Repeat(id, 64), SizeBytes: size, Images: images}
	}
	image := func(id, tag string, size int64, layers ...*apiv1.ImageLayer) *apiv1.ImageSummary {
		i := &apiv1.ImageSummary{Id: "sha256:" + strings.Repeat(id, 64), SizeBytes: size, Layers: layers}
		if tag != "" {
			i.Tags = []string{tag}
		}
		return i
	}
	a, b, c, d, e := layer("a", 100, 3), layer("b", 10, 3), layer("c", 5, 1), layer("d", 7, 1), layer("e", 1, 1)
	var out strings.Builder
	err := printImageTree(&out, []*apiv1.ImageSummary{
		image("1", "app:1", 115, a, b, c), image("2", "", 117, a, b, d), image("3", "base:1", 110, a, b), image("4", "other:1", 1, e), image("5", "empty:1", 0),
	}, false)
	want := `empty:1  555555555555  0B, 0B shared
2 layers up to bbbbbbbbbbbb  110B  in 3 images
├─ base:1  333333333333  110B, 110B shared
├─ layer cccccccccccc  5B
│  └─ app:1  111111111111  115B, 110B shared
└─ layer dddddddddddd  7B
   └─ <none>  222222222222  117B, 110B shared
layer eeeeeeeeeeee  1B
└─ other:1  444444444444  1B, 0B shared
`
	if out.String() != want || err != nil {
		t.Errorf("got\n%s\nwant\n%s%v", &out, want, err)
	}
}
