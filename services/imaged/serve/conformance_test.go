package serve

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestConformance runs the conformance suite of the OCI distribution specification, in all its parts: pull, push, content
// discovery, content management, every sort of data; once anonymous reading is off and once it is on. `make conformance`
// builds the suite.
func TestConformance(t *testing.T) {
	suite, err := filepath.Abs("../../../.tools/conformance")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(suite); err != nil {
		t.Skip("SKIPPED: needs the conformance suite of the specification: run `make conformance`")
	}
	for name, c := range map[string]Config{"login": {Users: "yes", PushUsers: []string{pusher}}, "anonymous": anybody()} {
		for _, version := range []string{"1.1", "dev"} {
			t.Run(name+"/"+version, func(t *testing.T) {
				r := newRig(t, c)
				dir := t.TempDir()
				cmd := exec.Command(suite)
				cmd.Dir = dir
				cmd.Env = []string{
					"PATH=/usr/bin:/bin", "HOME=" + dir, "OCI_REGISTRY=" + r.host(), "OCI_TLS=disabled", "OCI_VERSION=" + version,
					"OCI_REPO1=conformance/repo1", "OCI_REPO2=conformance/repo2", "OCI_USERNAME=" + pusher, "OCI_PASSWORD=" + password,
					"OCI_RESULTS_DIR=" + dir, "OCI_API_BLOBS_UPLOAD_CANCEL=true", "OCI_API_MANIFESTS_TAG_PARAM=true",
					"OCI_API_BLOBS_DIGEST_HEADER=true", "OCI_API_MANIFESTS_DIGEST_HEADER=true",
				}
				out, err := cmd.CombinedOutput()
				if err != nil {
					t.Fatalf("%v\n%s", err, out)
				}
				t.Logf("%s", summary(out))
				if !strings.Contains(string(out), "Pass") {
					t.Errorf("no test passed:\n%s", out)
				}
			})
		}
	}
}

// summary is the end of what the suite prints.
func summary(out []byte) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return strings.Join(lines[max(0, len(lines)-40):], "\n")
}
