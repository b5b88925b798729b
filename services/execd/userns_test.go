package execd

import (
	"strings"
	"testing"

	apiv1 "berth/proto/berth/api/v1"
)

// A private user namespace: root inside is nobody outside, files in the image
// and on the host keep their owners, and another container has other ids.
func TestPrivateUserNamespace(t *testing.T) {
	e := start(t)
	host := t.TempDir()
	network := e.held()
	const text = "id -u; cat /proc/self/uid_map; stat -c %u /etc/passwd /data; touch /data/made; grep Seccomp: /proc/self/status; cat /etc/hostname; sleep 1000"
	var bases []string
	for range 2 {
		s := script(text)
		s.UsernsMode = "private"
		s.Mounts = []*apiv1.MountSpec{{Type: apiv1.MountType_MOUNT_TYPE_BIND, Source: host, Target: "/data"}}
		id := e.create(s)
		if err := e.startIn(network, id); err != nil {
			t.Fatal(err)
		}
		var out string
		eventually(t, "output", func() bool {
			out = e.logs(&apiv1.LogsRequest{Container: id})
			return strings.Count(out, "\n") >= 6
		})
		f := strings.Fields(out)
		if f[0] != "0" || f[1] != "0" || f[3] != "65536" || f[4] != "0" || f[5] != "0" || !strings.HasSuffix(out, id[:12]+"\n") {
			t.Errorf("got %q", out)
		}
		bases = append(bases, f[2])
		r, err := e.exec(id, &apiv1.ExecRequest_Open{Args: []string{"sh", "-c", "id -u; stat -c %u /data/made; cat"}}, []byte("in"))
		if err != nil || r.out != "0\n0\nin" {
			t.Errorf("exec: %q %q, %v", r.out, r.errOut, err)
		}
	}
	if bases[0] == "0" || bases[0] == bases[1] {
		t.Errorf("first host ids %v: want two different ones, not 0", bases)
	}
}
