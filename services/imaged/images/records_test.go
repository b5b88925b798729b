package images

import (
	"encoding/json"
	"reflect"
	"testing"
	"time"

	"berth/services/imaged/graph"

	"github.com/opencontainers/go-digest"
)

// TestRecords: what put writes is read back as encoding/json reads it, whether the short way does it or not.
func TestRecords(t *testing.T) {
	d, long := digest.FromString("a"), digest.SHA512.FromString("b")
	now := time.Now()
	created := time.Date(2024, 2, 29, 23, 59, 59, 123, time.FixedZone("", 5400))
	layers := []Layer{{d, long}, {long, d}}
	for _, v := range []any{
		Blob{}, Blob{Size: 1}, Blob{Size: 1<<63 - 1}, Blob{Size: -1}, Blob{Size: 999_999_999_999_999_999, DiffID: long}, Blob{Gone: true}, Blob{DiffID: "a\\\"b"},
		graph.Layer{}, graph.Layer{Name: "1z", Bytes: 5, Entries: 7}, graph.Layer{Name: "é", RootSet: true}, graph.Layer{Name: "<", RootOpaque: true},
		Ref{}, Ref{Image: d, Since: now}, Ref{Image: d, Index: long, Since: now}, Ref{Image: d, Index: long, Tree: []digest.Digest{d, long}, Since: now}, Ref{Image: d, Target: d, Index: long, Since: now}, Ref{Image: d, Target: long, Since: created}, Ref{Image: "\n\x7f", Since: now.UTC()},
		Image{}, Image{ID: d, Manifest: d, MediaType: "application/vnd.oci.image.manifest.v1+json", Layers: layers, Stored: now},
		Image{ID: d, Layers: layers[:1], Summary: &Summary{}}, Image{ID: d, Layers: []Layer{}, Summary: &Summary{Created: &created}},
		Image{ID: d, MediaType: "x/y", Summary: &Summary{Created: &created, Labels: map[string]string{"a": "b"}}},
	} {
		raw, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		sameAsJSON(t, raw)
	}
}

// FuzzRecords: the short way and encoding/json agree on everything that the first does not leave to the second.
func FuzzRecords(f *testing.F) {
	for _, text := range []string{
		`{"size":1}`, `{"size":01}`, `{"size":1,"diff_id":"sha256:ab"}`, `{"size":1,"diff_id":"a\u0041"}`, `{"size":1}x`, `{"size":1,"diff_id":"é"}`,
		`{"name":"1","bytes":2,"entries":3}`, `{"name":"1","bytes":2,"entries":3,"root_set":true}`,
		`{"image":"a","since":"2024-01-01T00:00:00Z"}`, `{"image":"a","target":"b","since":"2024-01-01T00:00:00+01:30"}`, `{"image":"a","since":""}`,
		`{"id":"a","manifest":"b","media_type":"c","layers":[{"blob":"d","diff_id":"e"}],"stored":"2024-01-01T00:00:00Z","summary":{"created":"2024-01-01T00:00:00.5Z"}}`,
		`{"id":"a","manifest":"b","media_type":"c","layers":[{"blob":"d","diff_id":"e"},],"stored":"2024-01-01T00:00:00Z"}`,
		`{"id":"a","manifest":"b","media_type":"c","layers":null,"stored":"2024-01-01T00:00:00Z","summary":{}}`,
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, raw []byte) { sameAsJSON(t, raw) })
}

func sameAsJSON(t *testing.T, raw []byte) {
	t.Helper()
	same(t, raw, decodeBlob)
	same(t, raw, decodeLayer)
	same(t, raw, decodeRef)
	same(t, raw, decodeImage)
}

func same[T any](t *testing.T, raw []byte, decode func([]byte) (T, error)) {
	t.Helper()
	var want T
	wantErr := json.Unmarshal(raw, &want)
	got, err := decode(raw)
	if (err == nil) != (wantErr == nil) || err == nil && !reflect.DeepEqual(got, want) {
		t.Errorf("%s: got %+v, %v; want %+v, %v", raw, got, err, want, wantErr)
	}
}
