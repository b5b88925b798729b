package names

import (
	"regexp"
	"strings"
	"testing"
)

// The rules as the documents give them.
var (
	name = regexp.MustCompile(`\A[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}\z`)
	id   = regexp.MustCompile(`\A[0-9a-f]{64}\z`)
	part = regexp.MustCompile(`\A[0-9a-f]{4,63}\z`)
)

func FuzzNames(f *testing.F) {
	for _, s := range []string{
		"", "a", "9", "web", "web_1.2-3", "-a", ".a", "..", "_a", "a/b", "a b", "a\x00", "a\n", "ä", "aä", "A",
		strings.Repeat("a", 128), strings.Repeat("a", 129), "abc", "abcd", "ABCD", "abcg",
		strings.Repeat("0f", 32), strings.Repeat("0F", 32), strings.Repeat("0", 63), strings.Repeat("0", 65), strings.Repeat("0", 64) + "\n",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if got, want := Valid(s), name.MatchString(s); got != want {
			t.Errorf("Valid(%q) = %v, want %v", s, got, want)
		}
		if got, want := ID(s), id.MatchString(s); got != want {
			t.Errorf("ID(%q) = %v, want %v", s, got, want)
		}
		if got, want := PartOfID(s), part.MatchString(s); got != want {
			t.Errorf("PartOfID(%q) = %v, want %v", s, got, want)
		}
	})
}
