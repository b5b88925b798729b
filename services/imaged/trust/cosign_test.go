package trust

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"berth/services/imaged/registry"
	registrytest "berth/test/registry"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// TestCosign has cosign itself sign, in a real registry, under the tag and among the referrers. `make cosign` builds it.
func TestCosign(t *testing.T) {
	cosign, err := filepath.Abs("../../../.tools/cosign")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(cosign); err != nil {
		t.Skip("SKIPPED: needs cosign: run `make cosign`, which takes minutes")
	}
	reg := registrytest.Start(t, registrytest.Options{})
	client := registry.New(registry.Options{})
	dir := t.TempDir()
	run := func(env string, args ...string) string {
		t.Helper()
		cmd := exec.Command(cosign, args...)
		cmd.Dir, cmd.Env = dir, []string{"PATH=/usr/bin:/bin", "HOME=" + dir, "COSIGN_PASSWORD=", env}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("cosign %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return string(out)
	}
	run("", "generate-key-pair")
	p := policy(t, nil, Rule{Repositories: []string{"**"}, Require: Signed, Keys: []string{filepath.Join(dir, "cosign.pub")}})
	p.registry = client

	for where, how := range map[string]struct {
		env  string
		args []string
	}{
		"tag":      {"", nil},
		"referrer": {"COSIGN_EXPERIMENTAL=1", []string{"--registry-referrers-mode=oci-1-1"}},
	} {
		ref := reg.Ref("team/" + where + ":v1")
		config := digest.FromString("{}")
		if _, err := client.PushBlob(t.Context(), name(t, ref), ocispec.Descriptor{Digest: config, Size: 2}, opener("{}"), "", registry.Auth{}, nil); err != nil {
			t.Fatal(err)
		}
		d, err := client.PushManifest(t.Context(), name(t, ref), ocispec.MediaTypeImageManifest, document(t), registry.Auth{})
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Check(t.Context(), name(t, ref), d, registry.Auth{}); err == nil {
			t.Errorf("%s: passes before it is signed", where)
		}
		at := reg.Ref("team/"+where) + "@" + d.String()
		run(how.env, append(append([]string{"sign", "--yes", "--key", "cosign.key", "--tlog-upload=false", "--new-bundle-format=false", "--allow-http-registry"}, how.args...), at)...)
		if err := p.Check(t.Context(), name(t, ref), d, registry.Auth{}); err != nil {
			t.Errorf("%s: what cosign signed is refused: %v", where, err)
		}
		if err := p.Check(t.Context(), name(t, reg.Ref("team/other:v1")), d, registry.Auth{}); err == nil {
			t.Errorf("%s: passes as another repository", where)
		}
	}
}
