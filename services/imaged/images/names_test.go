package images

import (
	"testing"

	"github.com/distribution/reference"
)

// FuzzName: what is accepted as a name has one key, which means the same again, as does the form that people read.
func FuzzName(f *testing.F) {
	for _, text := range []string{
		"nginx", "nginx:1", "docker.io/library/nginx:latest", "localhost/a/b", "127.0.0.1:5000/a:b", "[::1]:5000/a", "index.docker.io/x",
		"a@sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a", "a:b@sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
		"docker.io/library/a/b", "library/a", "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a", "A/b", "a//b", "../a", "a:b/c", "x.y/a__b",
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		named, err := ParseName(text)
		if err != nil {
			return
		}
		key := Key(named)
		for what, form := range map[string]string{"its key": key, "the familiar form": Familiar(key), "the whole": named.String()} {
			again, err := ParseName(form)
			if err != nil || Key(again) != key {
				t.Errorf("%q has the key %q; %s %q: %v, %v", text, key, what, form, again, err)
			}
		}
		if repo := repository(key); repo != reference.TrimNamed(named).Name() {
			t.Errorf("%q is in repository %q, want %q", text, repo, reference.TrimNamed(named).Name())
		}
	})
}
