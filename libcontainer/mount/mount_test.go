package mount

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestAttrText(t *testing.T) {
	for text, attr := range map[string]Attr{"": 0, "ro": ReadOnly, "nosuid,nodev,noexec": NoSuid | NoDev | NoExec, "ro,noatime": ReadOnly | NoAtime} {
		if got := attr.String(); got != text {
			t.Errorf("%d is %q, want %q", attr, got, text)
		}
		b, err := json.Marshal(Mount{Type: "x", Attr: attr})
		if err != nil {
			t.Fatal(err)
		}
		var m Mount
		if err := json.Unmarshal(b, &m); err != nil || m.Attr != attr {
			t.Errorf("%s became %v, %v", b, m.Attr, err)
		}
	}
	var a Attr
	if err := a.UnmarshalText([]byte("ro,sticky")); err == nil {
		t.Error("an unknown flag passes")
	}
}

func TestLegacyData(t *testing.T) {
	base, data := legacyData(&Root{
		Lower: []string{"/var/lib/x/a:b/fs", "/var/lib/x/c,d"}, Upper: "/var/lib/x/u/p", Work: "/var/lib/x/u/w", Options: []string{"volatile"},
	})
	want := `volatile,lowerdir=a\:b/fs:c\,d,upperdir=u/p,workdir=u/w`
	if base != "/var/lib/x" || data != want {
		t.Errorf("%s: %s, want %s", base, data, want)
	}
}

func TestTooManyLayers(t *testing.T) {
	root := &Root{}
	for i := range 127 {
		root.Lower = append(root.Lower, fmt.Sprintf("/layers/%03d-%s", i, strings.Repeat("x", 64)))
	}
	b := &Builder{legacy: true, stage: stage{dir: -1}}
	if _, err := b.legacyOverlay(root, 0); !errors.Is(err, ErrTooManyLayers) {
		t.Errorf("got %v", err)
	}
}

func TestCommonDir(t *testing.T) {
	for want, paths := range map[string][]string{
		"/":     {"/a", "/b"},
		"/a":    {"/a/b", "/a/c/d"},
		"/a/b":  {"/a/b/c"},
		"/a/bb": {"/a/bb/c", "/a/bb/d/e"},
		"/x":    {"/x/ab", "/x/a"},
	} {
		if got := commonDir(slices.Clone(paths)); got != want {
			t.Errorf("%v: %s, want %s", paths, got, want)
		}
	}
}

func TestMountsBelow(t *testing.T) {
	const info = `22 1 0:1 / /a rw - tmpfs t rw
23 22 0:2 / /a/b rw,relatime shared:1 - tmpfs t rw
24 22 0:3 / /ab rw - tmpfs t rw
25 23 0:4 / /a/b/with\040space rw - tmpfs t rw
damaged
`
	want := []string{"/a/b", "/a/b/with space"}
	if got := mountsBelow([]byte(info), "/a"); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
