package registry

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"berth/internal/fault"

	"github.com/opencontainers/go-digest"
)

func TestListPages(t *testing.T) {
	w := newWorld(t)
	w.serve("https://registry.test", func(rw http.ResponseWriter, r *http.Request) {
		switch r.URL.Query().Get("last") {
		case "":
			rw.Header().Set("Link", `</v2/x/tags/list?last=b&n=2>; rel="next"`)
			fmt.Fprint(rw, `{"name":"x","tags":["a","b"]}`)
		case "b":
			rw.Header().Add("Link", `<https://registry.test/v2/x/tags/list?last=c>; rel="next", </other>; rel="up"`)
			fmt.Fprint(rw, `{"tags":["c"]}`)
		case "c":
			fmt.Fprint(rw, `{"tags":null}`)
		}
	})
	tags, err := w.client().Tags(t.Context(), named(t, "registry.test/x"), Auth{})
	if err != nil || fmt.Sprint(tags) != "[a b c]" {
		t.Errorf("%v, %v", tags, err)
	}
}

// Lists of a registry that tries to lead elsewhere, never ends, or sends names that are none.
func TestS17ListsLeadNowhere(t *testing.T) {
	long := `{"tags":["` + strings.Repeat("x", maxPageBytes) + `"]}`
	for name, c := range map[string]struct {
		link, body string
		kind       fault.Kind
	}{
		"other origin":    {`<https://evil.test/v2/x/tags/list?last=a>; rel="next"`, `{"tags":["a"]}`, fault.FailedPrecondition},
		"other port":      {`<https://registry.test:444/v2/x/tags/list>; rel="next"`, `{"tags":["a"]}`, fault.FailedPrecondition},
		"clear HTTP":      {`<http://registry.test/v2/x/tags/list>; rel="next"`, `{"tags":["a"]}`, fault.FailedPrecondition},
		"other place":     {`</admin/delete?all=1>; rel="next"`, `{"tags":["a"]}`, fault.FailedPrecondition},
		"userinfo":        {`<https://me:pw@registry.test/v2/x>; rel="next"`, `{"tags":["a"]}`, fault.FailedPrecondition},
		"the same page":   {`<?n=1000>; rel="next"`, `{"tags":["a"]}`, fault.DataLoss},
		"not JSON":        {``, `<html>`, fault.DataLoss},
		"malformed tag":   {``, `{"tags":["../../etc/passwd"]}`, fault.DataLoss},
		"tag with a line": {``, "{\"tags\":[\"a\\nb\"]}", fault.DataLoss},
		"empty tag":       {``, `{"tags":[""]}`, fault.DataLoss},
		"huge":            {``, long, fault.ResourceExhausted},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.serve("https://evil.test", func(http.ResponseWriter, *http.Request) { t.Error("another origin was asked") })
			w.serve("https://registry.test:444", func(http.ResponseWriter, *http.Request) { t.Error("another port was asked") })
			w.serve("https://registry.test", func(rw http.ResponseWriter, r *http.Request) {
				if !strings.HasPrefix(r.URL.Path, "/v2/") {
					t.Errorf("%s was asked for", r.URL)
				}
				if c.link != "" {
					rw.Header().Set("Link", c.link)
				}
				fmt.Fprint(rw, c.body)
			})
			if _, err := w.client().Tags(t.Context(), named(t, "registry.test/x"), markerAuth); !fault.Is(err, c.kind) || strings.Contains(err.Error(), "\n") || strings.Contains(err.Error(), "pw") {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestF21EndlessList(t *testing.T) {
	w := newWorld(t)
	asked := 0
	w.serve("https://registry.test", func(rw http.ResponseWriter, r *http.Request) {
		asked++
		rw.Header().Set("Link", fmt.Sprintf(`</v2/x/tags/list?last=%d>; rel="next"`, asked))
		fmt.Fprintf(rw, `{"tags":["t%d"]}`, asked)
	})
	if _, err := w.client().Tags(t.Context(), named(t, "registry.test/x"), Auth{}); !fault.Is(err, fault.ResourceExhausted) || asked > maxPages {
		t.Errorf("asked %d times: %v", asked, err)
	}
}

func TestReferrersOfOddRegistries(t *testing.T) {
	subject := digest.FromString("subject")
	good := fmt.Sprintf(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":%q,"size":3,"artifactType":"a/b"}]}`, digest.FromString("sbom"))
	for name, c := range map[string]struct {
		contentType, body string
		status            int
		found             int
		kind              fault.Kind
	}{
		"by API":      {"application/vnd.oci.image.index.v1+json", good, 200, 1, 0},
		"a web page":  {"text/html", "<html>", 200, 0, 0},
		"no API":      {"", "", 404, 0, 0},
		"bad digest":  {"application/vnd.oci.image.index.v1+json", strings.Replace(good, "sha256:", "sha256:../", 1), 200, 0, fault.DataLoss},
		"no index":    {"application/vnd.oci.image.index.v1+json", `{"schemaVersion":2}`, 200, 0, fault.DataLoss},
		"login asked": {"", "", 403, 0, fault.PermissionDenied},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.serve("https://registry.test", func(rw http.ResponseWriter, r *http.Request) {
				if !strings.Contains(r.URL.Path, "/referrers/") {
					rw.WriteHeader(http.StatusNotFound)
					return
				}
				rw.Header().Set("Content-Type", c.contentType)
				rw.WriteHeader(c.status)
				fmt.Fprint(rw, c.body)
			})
			all, err := w.client().Referrers(t.Context(), named(t, "registry.test/x"), subject, "", Auth{})
			if len(all) != c.found || (c.kind != 0) != (err != nil) || err != nil && !fault.Is(err, c.kind) {
				t.Errorf("%v, %v", all, err)
			}
		})
	}
}
