package flags

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"berth/cli/apiv1"
)

func parse(t *testing.T, args ...string) (*apiv1.ContainerSpec, error) {
	t.Helper()
	f := pflag.NewFlagSet("run", pflag.ContinueOnError)
	f.SetInterspersed(false)
	c := AddContainer(f)
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	return c.Spec(f.Arg(0), f.Args()[1:])
}

func TestSpecFromFlags(t *testing.T) {
	t.Setenv("PASSED", "on")
	os.Unsetenv("NOT_THERE")
	s, err := parse(t, "-it", "--name", "web", "-e", "A=1", "-e", "PASSED", "-e", "NOT_THERE", "-m", "64m", "--memory-swap=-1", "--cpus", "1.5",
		"-p", "127.0.0.1:8080:80", "-p", "53:53/udp", "-v", "/srv:/data:ro", "-v", "cache:/cache", "-v", "/anon", "--tmpfs", "/t:size=1m,mode=700",
		"--cap-add", "NET_ADMIN,SYS_TIME", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "-w", "/w", "-u", "1:2", "-l", "a=b", "-l", "bare",
		"--ulimit", "nofile=100:200", "--sysctl", "net.core.somaxconn=10", "--entrypoint", "", "--restart", "on-failure:3", "-h", "host",
		"img", "cmd", "-x", "--rm")
	if err != nil {
		t.Fatal(err)
	}
	check := func(what string, got, want any) {
		t.Helper()
		if got != want {
			t.Errorf("%s = %v, want %v", what, got, want)
		}
	}
	check("image", s.Image, "img")
	check("args", strings.Join(s.Args, " "), "cmd -x --rm")
	check("env", strings.Join(s.Env, " "), "A=1 PASSED=on")
	check("memory", s.Resources.MemoryBytes, int64(64<<20))
	check("memory-swap", s.Resources.MemorySwapBytes, int64(-1))
	check("cpus", s.Resources.NanoCpus, int64(1_500_000_000))
	check("entrypoint cleared", len(s.Entrypoint) == 1 && s.Entrypoint[0] == "", true)
	check("tty", s.Tty && s.OpenStdin, true)
	check("caps", strings.Join(s.Security.CapAdd, " "), "NET_ADMIN SYS_TIME")
	check("no new privileges", s.Security.NoNewPrivileges, true)
	check("labels", s.Labels["a"]+s.Labels["bare"], "b")
	check("hostname", s.Hostname, "host")
	check("restart", s.Restart.Name, "on-failure")
	check("retries", s.Restart.MaxRetries, int32(3))
	wantPorts := []*apiv1.PortMapping{{HostIp: "127.0.0.1", HostPort: 8080, ContainerPort: 80, Protocol: "tcp"}, {HostPort: 53, ContainerPort: 53, Protocol: "udp"}}
	for i, w := range wantPorts {
		check("port", reflect.DeepEqual(s.Network.Ports[i], w), true)
	}
	wantMounts := []*apiv1.MountSpec{
		{Type: apiv1.MountType_MOUNT_TYPE_BIND, Source: "/srv", Target: "/data", ReadOnly: true, CreateSource: true},
		{Type: apiv1.MountType_MOUNT_TYPE_VOLUME, Source: "cache", Target: "/cache"},
		{Type: apiv1.MountType_MOUNT_TYPE_VOLUME, Target: "/anon"},
		{Type: apiv1.MountType_MOUNT_TYPE_TMPFS, Target: "/t", TmpfsSizeBytes: 1 << 20, TmpfsMode: 0o700},
	}
	for i, w := range wantMounts {
		if !reflect.DeepEqual(s.Mounts[i], w) {
			t.Errorf("mount %d = %v, want %v", i, s.Mounts[i], w)
		}
	}
}

func TestRefusals(t *testing.T) {
	for _, tc := range []struct{ args, says string }{
		{"-p 0:80", "not a port"},
		{"-p 80:99999", "not a port"},
		{"-p 80-82:90-91", "ranges of different length"},
		{"-p 1.2.3:80:80", "not an IP address"},
		{"-p 80/sctp", "not tcp or udp"},
		{"-m 12x", "--memory"},
		{"-m -5", "--memory"},
		{"-m 1e3", "--memory"},
		{"--cpus 0", "--cpus"},
		{"--cpus -1", "--cpus"},
		{"--cpus 1.0000000001", "--cpus"},
		{"-e =x", "not KEY=VALUE"},
		{"-v a:b", "not an absolute path"},
		{"-v /a:/", "cover the whole root"},
		{"-v /a:/b:what", "unknown option"},
		{"-v :/b", "no source"},
		{"-v /a:/x -v /b:/x", "two mounts"},
		{"--mount type=bind,target=/x", "no source"},
		{"--mount type=nfs,target=/x", "not bind, volume or tmpfs"},
		{"--ulimit nofile=2:1", "soft limit above"},
		{"--ulimit nofile", "NAME=SOFT"},
		{"--security-opt frob=1", "unknown option"},
		{"--restart sometimes", "--restart"},
		{"--pull maybe", "--pull"},
		{"--add-host nothing", "HOST:IP"},
		{"--dns example.org", "not an IP address"},
		{"--oom-score-adj 1001", "--oom-score-adj"},
		{"--sysctl net.x", "not KEY=VALUE"},
		{"--log-opt frob=1", "unknown option"},
	} {
		_, err := parse(t, append(strings.Fields(tc.args), "img")...)
		if err == nil || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: error %v, want one that says %q", tc.args, err, tc.says)
		}
	}
}

func TestEnvFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "env")
	if err := os.WriteFile(file, []byte("# comment\n\nA=1\r\n  B=two words \n"), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := Env([]string{"A=3"}, []string{file})
	if err != nil || strings.Join(got, "|") != "A=1|B=two words |A=3" {
		t.Errorf("Env = %q, %v", got, err)
	}
}

func TestSize(t *testing.T) {
	for in, want := range map[string]int64{"0": 0, "4096": 4096, "1k": 1024, "1.5g": 3 << 29, "64MiB": 64 << 20, "64MB": 64 << 20, "2T": 2 << 40} {
		if got, err := Size(in); err != nil || got != want {
			t.Errorf("Size(%q) = %d, %v, want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "m", "x", "-1", "1_000", "0x10", "99999999999999999999p", "NaN", "Inf"} {
		if got, err := Size(in); err == nil {
			t.Errorf("Size(%q) = %d, want an error", in, got)
		}
	}
}

func FuzzPublish(f *testing.F) {
	for _, s := range []string{"80", "8080:80/udp", "[::1]:1-2:3-4", "127.0.0.1::80"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		list, err := Publish(s)
		if err != nil {
			return
		}
		for _, p := range list {
			if p.ContainerPort == 0 || p.ContainerPort > 65535 || p.HostPort > 65535 || p.Protocol != "tcp" && p.Protocol != "udp" {
				t.Errorf("Publish(%q) gave %v", s, p)
			}
		}
	})
}
