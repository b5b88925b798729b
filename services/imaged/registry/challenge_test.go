package registry

import (
	"net/http"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestParseChallenges(t *testing.T) {
	type p = map[string]string
	for header, want := range map[string][]challenge{
		``:                         nil,
		`Basic`:                    {{"basic", p{}}},
		`Basic realm="a b"`:        {{"basic", p{"realm": "a b"}}},
		`BEARER Realm="x",Scope=y`: {{"bearer", p{"realm": "x", "scope": "y"}}},
		`Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/nginx:pull,push"`: {
			{"bearer", p{"realm": "https://auth.docker.io/token", "service": "registry.docker.io", "scope": "repository:library/nginx:pull,push"}}},
		`Basic realm="x", Bearer realm="y" , service = z`: {{"basic", p{"realm": "x"}}, {"bearer", p{"realm": "y", "service": "z"}}},
		`Negotiate, Basic realm=x`:                        {{"negotiate", p{}}, {"basic", p{"realm": "x"}}},
		`Negotiate YWJj/+==, Basic realm=x`:               {{"negotiate", p{}}, {"basic", p{"realm": "x"}}},
		`Bearer realm="a\"b\\c"`:                          {{"bearer", p{"realm": `a"b\c`}}},
		`Bearer realm="one", realm="two"`:                 {{"bearer", p{"realm": "one"}}},
		`Bearer realm="unterminated`:                      {{"bearer", p{}}},
		`,, ,Basic`:                                       {{"basic", p{}}},
		`"Basic" realm=x`:                                 nil,
		`=x`:                                              nil,
		`Bearer realm="x" garbage, Basic`:                 {{"bearer", p{"realm": "x"}}},
		`Basic` + strings.Repeat(" ", 17<<10):             nil,
	} {
		got := parseChallenges([]string{header})
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%.80s:\n got %v\nwant %v", header, got, want)
		}
	}
	if got := parseChallenges([]string{"Basic realm=a", "Bearer realm=b"}); len(got) != 2 || choose(got).scheme != "bearer" {
		t.Errorf("two lines: %v", got)
	}
	if got := parseChallenges([]string{strings.Repeat("a,", 1000)}); len(got) != maxChallenges {
		t.Errorf("%d challenges", len(got))
	}
}

func FuzzChallenge(f *testing.F) {
	f.Add(`Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="a b"`)
	f.Add(`Negotiate YWJj==, Basic realm="a\"b", charset=UTF-8`)
	f.Fuzz(func(t *testing.T, header string) {
		for _, c := range parseChallenges([]string{header}) {
			// Round trip: what was understood, written properly, is understood the same
			// way.
			text := c.scheme
			sep := " "
			for k, v := range c.params {
				text += sep + k + `="` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(v) + `"`
				sep = ", "
			}
			again := parseChallenges([]string{text})
			if len(text) <= maxChallengeBytes && (len(again) != 1 || !reflect.DeepEqual(again[0], c)) {
				t.Errorf("%q\n reads as %q\n and that as %q", header, c, again)
			}
		}
	})
}

func TestRetryAfterHeader(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for value, want := range map[string]time.Duration{
		"0": 0, "7": 7 * time.Second, " 7 ": 7 * time.Second,
		now.Add(90 * time.Second).Format(http.TimeFormat): 90 * time.Second,
		now.Add(-time.Hour).Format(http.TimeFormat):       0,
		"": -1, "-1": -1, "1.5": -1, "soon": -1, "99999999999999999999": -1,
	} {
		got, ok := retryAfter(value, now)
		if ok != (want >= 0) || ok && got != want {
			t.Errorf("%q: %v, %v", value, got, ok)
		}
	}
}

func FuzzRetryAfter(f *testing.F) {
	f.Add("120")
	f.Add("Fri, 31 Dec 1999 23:59:59 GMT")
	f.Fuzz(func(t *testing.T, value string) {
		wait, ok := retryAfter(value, time.Now())
		if wait < 0 || !ok && wait != 0 {
			t.Errorf("%q: %v, %v", value, wait, ok)
		}
		if n, err := strconv.ParseUint(value, 10, 31); err == nil && wait != time.Duration(n)*time.Second {
			t.Errorf("%q: %v", value, wait)
		}
	})
}
