package registry

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth/internal/fault"
)

func TestS15CheckManifest(t *testing.T) {
	const (
		manifest = ocispec.MediaTypeImageManifest
		index    = ocispec.MediaTypeImageIndex
		image    = `"schemaVersion":2,"config":{},"layers":[]`
	)
	for name, c := range map[string]struct {
		raw, declared string
		want          string // media type; empty: refused
	}{
		"declared":              {`{` + image + `}`, manifest, manifest},
		"Docker's":              {`{` + image + `,"mediaType":"` + MediaTypeDockerManifest + `"}`, MediaTypeDockerManifest, MediaTypeDockerManifest},
		"by its own word":       {`{` + image + `,"mediaType":"` + manifest + `"}`, "application/json", manifest},
		"by its fields":         {`{` + image + `}`, "", manifest},
		"index":                 {`{"schemaVersion":2,"manifests":[]}`, index, index},
		"index by its fields":   {`{"schemaVersion":2,"manifests":[]}`, "text/plain", index},
		"both at once":          {`{` + image + `,"manifests":[]}`, manifest, ""},
		"both at once, index":   {`{` + image + `,"manifests":[]}`, index, ""},
		"index as manifest":     {`{"schemaVersion":2,"manifests":[]}`, manifest, ""},
		"manifest as index":     {`{` + image + `}`, index, ""},
		"other word":            {`{` + image + `,"mediaType":"` + MediaTypeDockerManifest + `"}`, manifest, ""},
		"duplicate":             {`{` + image + `,"layers":[1]}`, manifest, ""},
		"duplicate in caps":     {`{` + image + `,"Layers":[1]}`, manifest, ""},
		"hidden in caps":        {`{` + image + `,"MANIFESTS":[]}`, manifest, ""},
		"duplicate by escape":   {`{` + image + `,"\u006cayers":[1]}`, manifest, ""},
		"media type twice":      {`{` + image + `,"mediaType":"` + manifest + `","mediatype":"` + index + `"}`, "", ""},
		"duplicate with long s": {`{` + image + `,"layerſ":[1]}`, manifest, ""},
		"duplicate further in":  {`{"schemaVersion":2,"layers":[],"config":{"digest":"a","Digest":"b"}}`, manifest, ""},
		"annotations differ":    {`{` + image + `,"annotations":{"a":"1","A":"2"}}`, manifest, manifest},
		"annotations twice":     {`{` + image + `,"annotations":{"a":"1","a":"2"}}`, manifest, ""},
		"two documents":         {`{` + image + `}{` + image + `}`, manifest, ""},
		"trailing text":         {`{` + image + `}x`, manifest, ""},
		"array":                 {`[]`, manifest, ""},
		"empty":                 {``, manifest, ""},
		"cut off":               {`{"schemaVersion":2`, manifest, ""},
		"deep":                  {`{"schemaVersion":2,"layers":` + strings.Repeat("[", 200_000) + strings.Repeat("]", 200_000) + `}`, manifest, ""},
		"schema 1":              {`{"schemaVersion":1,"fsLayers":[],"history":[]}`, mediaTypeSchema1Signed, ""},
		"schema 1 in disguise":  {`{` + image + `,"fsLayers":[]}`, manifest, ""},
		"schema 3":              {`{"schemaVersion":3,"config":{},"layers":[]}`, manifest, ""},
		"no version":            {`{"config":{},"layers":[]}`, manifest, ""},
		"an artifact":           {`{"schemaVersion":2,"mediaType":"application/x"}`, "application/x", ""},
		"media type not a word": {`{` + image + `,"mediaType":7}`, manifest, ""},
	} {
		got, err := CheckManifest([]byte(c.raw), c.declared)
		if got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%s: %q, %v; want %q", name, got, err, c.want)
		}
	}
	_, err := CheckManifest([]byte(`{"schemaVersion":1,"fsLayers":[]}`), "")
	wantError(t, err, fault.Unimplemented, "schema 1")
}

func TestS14HugeManifest(t *testing.T) {
	for name, declare := range map[string]bool{"declared": true, "streamed": false} {
		var sent atomic.Int64
		c := blobWorld(t, func(rw http.ResponseWriter, r *http.Request) {
			rw.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
			if declare {
				rw.Header().Set("Content-Length", "10737418240")
			}
			if r.Method == http.MethodHead {
				return
			}
			b := []byte(strings.Repeat(" ", 64<<10))
			for sent.Load() < 10<<30 {
				sent.Add(int64(len(b)))
				if _, err := rw.Write(b); err != nil {
					return
				}
			}
		}).client()
		_, _, err := c.Manifest(t.Context(), named(t, regHost+"/team/web:v1"), Auth{})
		wantError(t, err, fault.ResourceExhausted, "more than 4 MiB")
		_, err = c.Resolve(t.Context(), named(t, regHost+"/team/web:v1"), Auth{})
		wantError(t, err, fault.ResourceExhausted, "more than 4 MiB")
		if sent := sent.Load(); sent > 64<<20 {
			t.Errorf("%s: %d bytes were taken", name, sent)
		}
	}
}

func TestS15PushRefusesAmbiguity(t *testing.T) {
	w := blobWorld(t, func(rw http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) })
	_, err := w.client().PushManifest(t.Context(), named(t, regHost+"/team/web:v1"), ocispec.MediaTypeImageManifest,
		[]byte(`{"schemaVersion":2,"config":{},"layers":[],"manifests":[]}`), Auth{})
	wantError(t, err, fault.DataLoss, "push "+regHost+"/team/web:v1: manifest is an image and an index at once")
	if len(w.seen()) != 0 {
		t.Error("it was sent")
	}
}

func FuzzCheckManifest(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"config":{},"layers":[]}`), "")
	f.Add([]byte(`{"schemaVersion":2,"manifests":[]}`), ocispec.MediaTypeImageIndex)
	f.Fuzz(func(t *testing.T, raw []byte, declared string) {
		is, err := CheckManifest(raw, declared)
		if err != nil {
			return
		}
		// What passes is read as the same thing by encoding/json, whatever it is read into.
		var m ocispec.Manifest
		var x ocispec.Index
		if json.Unmarshal(raw, &m) != nil || json.Unmarshal(raw, &x) != nil {
			return // fields of a wrong type are for whoever uses them
		}
		if IsIndex(is) && (m.Layers != nil || m.Config.Digest != "") || IsManifest(is) && x.Manifests != nil {
			t.Errorf("%q passed as %s", raw, is)
		}
	})
}
