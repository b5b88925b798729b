package manifest

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"berth/internal/fault"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	ociManifest    = ocispec.MediaTypeImageManifest
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
)

var hex = digest.FromString("x").String()

func desc(mediaType string, size int) string {
	return fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d}`, mediaType, hex, size)
}

func image(config, layers string) string {
	return fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":%s,"layers":[%s]}`, ociManifest, config, layers)
}

var (
	goodConfig = desc(ocispec.MediaTypeImageConfig, 10)
	goodLayer  = desc(ocispec.MediaTypeImageLayerGzip, 10)
)

func TestParse(t *testing.T) {
	m, err := Parse([]byte(image(goodConfig, goodLayer+","+goodLayer)), ociManifest)
	if err != nil || len(m.Layers) != 2 || m.Config.Digest.String() != hex || m.MediaType != ociManifest {
		t.Errorf("got %+v, %v", m, err)
	}
	docker := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":%s,"layers":[%s]}`, dockerManifest, desc(dockerConfig, 1), desc(dockerLayer+".gzip", 1))
	if m, err := Parse([]byte(docker), ""); err != nil || m.MediaType != dockerManifest {
		t.Errorf("docker: %+v, %v", m, err)
	}
}

func TestS15S16RefusedManifests(t *testing.T) {
	many := strings.TrimSuffix(strings.Repeat(goodLayer+",", MaxLayers+1), ",")
	bad := strings.Replace(goodLayer, hex, "sha256:../../x", 1)
	for name, raw := range map[string]string{
		"empty": ``, "not JSON": `{`, "behind": image(goodConfig, goodLayer) + `{}`,
		"both":              strings.Replace(image(goodConfig, goodLayer), `"layers"`, `"manifests":[],"layers"`, 1),
		"both other case":   strings.Replace(image(goodConfig, goodLayer), `"layers"`, `"Manifests":[],"layers"`, 1),
		"twice":             strings.Replace(image(goodConfig, goodLayer), `"layers"`, `"layers":[],"layers"`, 1),
		"twice, other case": strings.Replace(image(goodConfig, goodLayer), `"layers"`, `"Layers":[],"layers"`, 1),
		"twice, long s":     strings.Replace(image(goodConfig, goodLayer), `"layers"`, `"layer\u017f":[],"layers"`, 1),
		"twice, nested":     image(strings.Replace(goodConfig, `"size"`, `"Digest":"`+hex+`","size"`, 1), goodLayer),
		"media type":        strings.Replace(image(goodConfig, goodLayer), ociManifest, dockerManifest, 1),
		"schema 1":          `{"schemaVersion":1,"fsLayers":[]}`,
		"layers":            image(goodConfig, many),
		"digest":            image(goodConfig, bad),
		"upper case":        image(strings.Replace(goodConfig, hex, strings.ToUpper(hex), 1), goodLayer),
		"md5":               image(strings.Replace(goodConfig, hex, "md5:d41d8cd98f00b204e9800998ecf8427e", 1), goodLayer),
		"negative":          image(desc(ocispec.MediaTypeImageConfig, -1), goodLayer),
		"huge config":       image(desc(ocispec.MediaTypeImageConfig, 5<<20), goodLayer),
		"huge layer":        image(goodConfig, desc(ocispec.MediaTypeImageLayer, 65<<30)),
		"artifact":          image(desc("application/vnd.cncf.helm.config.v1+json", 1), goodLayer),
		"odd layer":         image(goodConfig, desc("text/plain", 1)),
		"deep":              strings.Replace(image(goodConfig, goodLayer), `"layers"`, `"x":`+strings.Repeat("[", 100)+strings.Repeat("]", 100)+`,"layers"`, 1),
		"index":             `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}`,
	} {
		if m, err := Parse([]byte(raw), ociManifest); err == nil {
			t.Errorf("%s: accepted as %+v", name, m)
		}
	}
}

func TestParseConfig(t *testing.T) {
	raw := fmt.Sprintf(`{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":[%q]},
		"config":{"Env":["A=1"],"Labels":{"Foo":"1","foo":"2","berth.privileged":"true"},"Shell":["/bin/bash","-c"]},
		"container_config":{"Cmd":["x"]},"history":[{"created_by":"x","empty_layer":true}]}`, hex)
	c, err := ParseConfig([]byte(raw))
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Config.Labels) != 2 || c.Config.Labels["foo"] != "2" || c.Config.Shell[0] != "/bin/bash" || !c.History[0].EmptyLayer {
		t.Errorf("got %+v", c)
	}
	for name, raw := range map[string]string{
		"no rootfs":  `{"os":"linux"}`,
		"digest":     `{"rootfs":{"type":"layers","diff_ids":["sha256:x"]}}`,
		"twice":      `{"rootfs":{"type":"layers","diff_ids":[]},"config":{"User":"1","User":"0"}}`,
		"twice case": `{"rootfs":{"type":"layers","diff_ids":[]},"config":{"User":"1","user":"0"}}`,
		"label":      `{"rootfs":{"type":"layers","diff_ids":[]},"config":{"Labels":{"a":"1","a":"2"}}}`,
		"long":       `{"rootfs":{"type":"layers","diff_ids":[]},"x":"` + strings.Repeat("x", MaxBytes) + `"}`,
	} {
		if _, err := ParseConfig([]byte(raw)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestSelect(t *testing.T) {
	index := func(all ...string) (out []ocispec.Descriptor) {
		for i, p := range all {
			d := ocispec.Descriptor{Size: int64(i)}
			if p != "" {
				part := strings.Split(p+"/", "/")
				d.Platform = &ocispec.Platform{OS: part[0], Architecture: part[1], Variant: part[2]}
			}
			out = append(out, d)
		}
		return out
	}
	for _, c := range []struct {
		index []ocispec.Descriptor
		want  string
		pick  int64
	}{
		{index("linux/arm64", "linux/amd64", "unknown/unknown"), "linux/amd64", 1},
		{index("windows/amd64", "linux/amd64"), "linux/amd64", 1},
		{index("linux/arm/v6", "linux/arm/v7"), "linux/arm/v7", 1},
		{index("linux/arm/v6", "linux/arm/v5"), "linux/arm/v7", 0},
		{index(""), "linux/amd64", 0},
		{index("unknown/unknown"), "linux/amd64", -1},
		{index("linux/arm64"), "linux/amd64", -1},
		{index(), "linux/amd64", -1},
	} {
		p, err := Platform(c.want)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Select(c.index, p)
		if c.pick < 0 && err == nil || c.pick >= 0 && (err != nil || got.Size != c.pick) {
			t.Errorf("%s of %v: got %v, %v", c.want, c.index, got.Platform, err)
		}
	}
	if _, err := Platform("a/b/c/d/e"); err == nil {
		t.Error("nonsense platform accepted")
	}
}

// What is accepted means the same after a round trip.
// TestHolds: contents that are named by another kind of digest are looked at again, the others not.
func TestHolds(t *testing.T) {
	var c Config
	d := digest.FromString("a")
	c.RootFS.DiffIDs = []digest.Digest{d, digest.FromString("b"), digest.SHA512.FromString("a"), digest.SHA512.FromString("b"), digest.SHA512.FromString("a")}
	looked := 0
	content := func(a digest.Algorithm) (digest.Digest, error) {
		if looked++; looked > 2 {
			return "", fault.Unavailable.Errorf("AWAY", "away")
		}
		return a.FromString("a"), nil
	}
	for n, reason := range []string{"", "DIGEST_MISMATCH", "", "DIGEST_MISMATCH", "AWAY"} {
		if got := fault.ReasonOf(c.Holds(n, d, d, content)); got != reason || looked != max(0, n-1) {
			t.Errorf("layer %d: %q after %d looks, want %q", n, got, looked, reason)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(image(goodConfig, goodLayer)))
	f.Fuzz(func(t *testing.T, raw []byte) {
		m, err := Parse(raw, "")
		if err != nil {
			return
		}
		again, _ := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": m.MediaType, "config": m.Config, "layers": m.Layers})
		if _, err := Parse(again, m.MediaType); err != nil {
			t.Errorf("%s\nbecame\n%s\n%v", raw, again, err)
		}
	})
}

func FuzzParseIndex(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[` + desc(ociManifest, 1) + `]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if index, err := ParseIndex(raw, ""); err == nil {
			Select(index, ocispec.Platform{OS: "linux", Architecture: "amd64"})
		}
	})
}

func FuzzParseConfig(f *testing.F) {
	f.Add([]byte(`{"rootfs":{"type":"layers","diff_ids":["` + hex + `"]},"config":{"Labels":{"a":"b"}}}`))
	f.Fuzz(func(t *testing.T, raw []byte) { ParseConfig(raw) })
}

// TestDerive: what the engine does not know of a configuration is handed on,
// what it knows is replaced, and what spoke of the old image goes.
func TestDerive(t *testing.T) {
	base := []byte(`{"created":"2020-01-01T00:00:00Z","architecture":"amd64","os":"linux","os.version":"10","container":"abc",` +
		`"config":{"Cmd":["old"],"User":"u","Healthcheck":{"Test":["CMD","x"]},"env":["A=b"],"OnBuild":["RUN x"]},"rootfs":{"type":"layers","diff_ids":[]}}`)
	c, err := ParseConfig(base)
	if err != nil {
		t.Fatal(err)
	}
	c.Config.Cmd, c.Config.User = []string{"new"}, ""
	raw, err := Derive(base, c)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"architecture":"amd64","config":{"Cmd":["new"],"Env":["A=b"],"Healthcheck":{"Test":["CMD","x"]},"OnBuild":["RUN x"]},` +
		`"created":"2020-01-01T00:00:00Z","os":"linux","os.version":"10","rootfs":{"type":"layers","diff_ids":[]}}`
	if string(raw) != want {
		t.Errorf("got  %s\nwant %s", raw, want)
	}
	if _, err := ParseConfig(raw); err != nil {
		t.Error(err)
	}
}

func TestOCILayerType(t *testing.T) {
	for _, pair := range [][2]string{
		{"application/vnd.docker.image.rootfs.diff.tar.gzip", ocispec.MediaTypeImageLayerGzip},
		{"application/vnd.docker.image.rootfs.diff.tar", ocispec.MediaTypeImageLayer},
		{ocispec.MediaTypeImageLayerZstd, ocispec.MediaTypeImageLayerZstd},
	} {
		if got := OCILayerType(pair[0]); got != pair[1] || !layerTypes[got] {
			t.Errorf("%s: got %s, want %s", pair[0], got, pair[1])
		}
	}
}
