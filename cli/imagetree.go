package main

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"berth/cli/apiv1"
	"berth/cli/format"
)

// layerNode is a layer on top of those above it in the tree. Images that begin with the same layers share their nodes.
type layerNode struct {
	layer  *apiv1.ImageLayer
	above  []*layerNode
	images []*apiv1.ImageSummary // whose top layer this is
}

// child gives the node of a layer on top of n.
func (n *layerNode) child(l *apiv1.ImageLayer) *layerNode {
	for _, c := range n.above {
		if c.layer.GetDiffId() == l.GetDiffId() {
			return c
		}
	}
	c := &layerNode{layer: l}
	n.above = append(n.above, c)
	return c
}

// printImageTree shows how images are built on one another: a line for each run of layers that have no branch, with
// their bytes, and below it the images that end there and what else is built on it.
func printImageTree(w io.Writer, images []*apiv1.ImageSummary, noTrunc bool) error {
	root := &layerNode{}
	for _, i := range images {
		at := root
		for _, l := range i.GetLayers() {
			at = at.child(l)
		}
		at.images = append(at.images, i)
	}
	var err error
	line := func(s string) {
		if err == nil {
			_, err = fmt.Fprintln(w, s)
		}
	}
	for _, i := range root.images {
		line(imageLine(i, noTrunc))
	}
	for _, n := range root.above {
		n.print(line, "", "", noTrunc)
	}
	return err
}

// print writes the node; first goes before its own line, rest before those below.
func (n *layerNode) print(line func(string), first, rest string, noTrunc bool) {
	run := []*apiv1.ImageLayer{n.layer}
	for len(n.images) == 0 && len(n.above) == 1 {
		n = n.above[0]
		run = append(run, n.layer)
	}
	line(first + layersLine(run, noTrunc))
	below := len(n.images) + len(n.above)
	next := func() (string, string) {
		if below--; below == 0 {
			return rest + "└─ ", rest + "   "
		}
		return rest + "├─ ", rest + "│  "
	}
	for _, i := range n.images {
		own, _ := next()
		line(own + imageLine(i, noTrunc))
	}
	for _, c := range n.above {
		own, deeper := next()
		c.print(line, own, deeper, noTrunc)
	}
}

func layersLine(run []*apiv1.ImageLayer, noTrunc bool) string {
	var bytes int64
	for _, l := range run {
		bytes += l.GetSizeBytes()
	}
	top := run[len(run)-1]
	id := top.GetDiffId()
	if !noTrunc {
		id = format.ShortID(id)
	}
	s := fmt.Sprintf("layer %s  %s", id, format.Bytes(bytes))
	if len(run) > 1 {
		s = fmt.Sprintf("%d layers up to %s  %s", len(run), id, format.Bytes(bytes))
	}
	if top.GetImages() > 1 {
		s += fmt.Sprintf("  in %d images", top.GetImages())
	}
	return s
}

// imageLine names an image, with its size and how much of that other images have as well.
func imageLine(i *apiv1.ImageSummary, noTrunc bool) string {
	names := slices.Clone(i.GetTags())
	if len(names) == 0 {
		names = []string{"<none>"}
	}
	id := i.GetId()
	if !noTrunc {
		id = format.ShortID(id)
	}
	var shared int64
	for _, l := range i.GetLayers() {
		if l.GetImages() > 1 {
			shared += l.GetSizeBytes()
		}
	}
	return fmt.Sprintf("%s  %s  %s, %s shared", strings.Join(names, ", "), id, format.Bytes(i.GetSizeBytes()), format.Bytes(shared))
}
