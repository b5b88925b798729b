package dns

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

func TestHost(t *testing.T) {
	for _, c := range []struct {
		name         string
		etc, resolve string
		onHost       bool
		want         Settings
	}{
		{"plain", "nameserver 10.0.0.1 # office\nsearch a.example b.example\noptions ndots:2\n", "", false,
			Settings{[]string{"10.0.0.1"}, []string{"a.example", "b.example"}, []string{"ndots:2"}}},
		{"systemd-resolved", "nameserver 127.0.0.53\noptions edns0\nsearch lan\n", "nameserver 192.168.1.1\nnameserver fe80::1%eth0\n", false,
			Settings{[]string{"192.168.1.1"}, []string{"lan"}, []string{"edns0"}}},
		{"only loopback", "nameserver ::1\nnameserver 127.0.0.1\n", "", false, Settings{Nameservers: Defaults}},
		{"no files", "", "", false, Settings{Nameservers: Defaults}},
		{"host network", "nameserver 127.0.0.53\n", "nameserver 192.168.1.1\n", true, Settings{Nameservers: []string{"127.0.0.53"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			paths := []string{filepath.Join(dir, "etc"), filepath.Join(dir, "resolve")}
			for i, text := range []string{c.etc, c.resolve} {
				if text != "" {
					if err := os.WriteFile(paths[i], []byte(text), 0o600); err != nil {
						t.Fatal(err)
					}
				}
			}
			if got := host(paths, c.onHost); !reflect.DeepEqual(got, c.want) {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
		})
	}
}

func TestOver(t *testing.T) {
	base := Settings{[]string{"10.0.0.1"}, []string{"lan"}, []string{"edns0"}}
	got := Settings{Nameservers: []string{"1.1.1.1"}, Search: []string{"."}}.Over(base)
	want := Settings{[]string{"1.1.1.1"}, nil, []string{"edns0"}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}
