package pull

import (
	"context"
	"fmt"
	"testing"

	"berth/internal/fault"

	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestPullTags(t *testing.T) {
	r := newRig(t)
	r.registry.addImage(t, "team/app:1", "amd64", "gzip", layerTar(t, "a", "1"))
	r.registry.addImage(t, "team/app:2", "amd64", "gzip", layerTar(t, "a", "2"))
	r.registry.addImage(t, "team/other:1", "amd64", "gzip", layerTar(t, "a", "3"))
	artifact := []byte(`{"schemaVersion":2,"mediaType":"` + ocispec.MediaTypeImageManifest + `","artifactType":"a/b","config":{"mediaType":"application/vnd.oci.empty.v1+json","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2},"layers":[]}`)
	r.registry.addManifest("team/app:sig", ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8b"}, artifact)
	all, err := r.puller.PullTags(context.Background(), Request{Name: parse("team/app")}, r.puller.PullOne)
	if err != nil || len(all) != 2 || all[0].Name.String() != "docker.io/team/app:1" || all[1].Name.String() != "docker.io/team/app:2" {
		t.Fatalf("%+v, %v", all, err)
	}
	for _, name := range []string{"team/app:1", "team/app:2"} {
		if _, err := r.images.Find(name); err != nil {
			t.Error(err)
		}
	}
	if _, err := r.images.Find("team/other:1"); !fault.Is(err, fault.NotFound) {
		t.Errorf("another repository: %v", err)
	}
	if _, err := r.puller.PullTags(context.Background(), Request{Name: parse("none")}, r.puller.PullOne); !fault.Is(err, fault.NotFound) {
		t.Errorf("no tags: %v", err)
	}
}

func TestPullPlatforms(t *testing.T) {
	r := newRig(t)
	host := platforms.DefaultSpec().Architecture
	one := r.registry.addImage(t, "s390x", "s390x", "gzip", layerTar(t, "arch", "s390x"))
	two := r.registry.addImage(t, "host", host, "gzip", layerTar(t, "arch", host))
	three := r.registry.addImage(t, "ppc", "ppc64le", "gzip", layerTar(t, "arch", "ppc64le"))
	attestation := one
	attestation.Digest, attestation.Platform = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a", &ocispec.Platform{OS: "unknown", Architecture: "unknown"}
	index := r.registry.addIndex(t, "multi:1", one, two, three, attestation)
	all, err := r.puller.PullPlatforms(context.Background(), Request{Name: parse("multi:1")})
	if err != nil || len(all) != 4 {
		t.Fatalf("%+v, %v", all, err)
	}
	if last := all[3]; last.Name.String() != "docker.io/library/multi:1" || last.Target != index || r.content(last, "arch") != host {
		t.Errorf("the name is %+v", last)
	}
	for i, arch := range []string{"s390x", host, "ppc64le"} {
		if got := r.content(all[i], "arch"); got != arch {
			t.Errorf("%s is %s", all[i].Name, got)
		}
		if found, err := r.images.Find(fmt.Sprint(all[i].Name)); err != nil || found.ID != all[i].Image.ID {
			t.Errorf("%s: %v", all[i].Name, err)
		}
	}
	// Without one for this host, the name goes to the first.
	r.registry.addIndex(t, "foreign:1", three, one)
	if all, err = r.puller.PullPlatforms(context.Background(), Request{Name: parse("foreign:1")}); err != nil || r.content(all[2], "arch") != "ppc64le" {
		t.Errorf("%+v, %v", all, err)
	}
}
