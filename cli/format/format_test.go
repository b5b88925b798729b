package format

import (
	"strings"
	"testing"
	"time"
)

type row struct {
	ID   string `header:"ROW ID"`
	Name string
}

func TestRows(t *testing.T) {
	rows := []row{{"1", "one"}, {"22", "two"}}
	for _, tc := range []struct{ format, want string }{
		{"", "ROW ID   NAME\n1        one\n22       two\n"},
		{"table {{.Name}}", "NAME\none\ntwo\n"},
		{`{{.ID}}\t{{.Name | upper}}`, "1\tONE\n22\tTWO\n"},
		{"json", `{"ID":"1","Name":"one"}` + "\n" + `{"ID":"22","Name":"two"}` + "\n"},
	} {
		var b strings.Builder
		if err := Rows(&b, tc.format, []string{"ID", "Name"}, rows); err != nil || b.String() != tc.want {
			t.Errorf("format %q: %q, %v, want %q", tc.format, b.String(), err, tc.want)
		}
	}
	for _, bad := range []string{"{{.Nope}}", "{{", "{{frob .ID}}"} {
		if err := Rows(&strings.Builder{}, bad, nil, rows); err == nil || !strings.Contains(err.Error(), "--format") {
			t.Errorf("format %q: error %v", bad, err)
		}
	}
	var empty strings.Builder
	if err := Rows(&empty, "", []string{"ID"}, []row{}); err != nil || empty.String() != "ROW ID\n" {
		t.Errorf("no rows: %q, %v", empty.String(), err)
	}
}

func TestHuman(t *testing.T) {
	for got, want := range map[string]string{
		Bytes(999): "999B", Bytes(1_440_000_000): "1.44GB", BinaryBytes(64 << 20): "64MiB",
		Duration(30 * time.Second): "30 seconds", Duration(90 * time.Second): "About a minute", Duration(49 * time.Hour): "2 days",
		ShortID("sha256:0123456789abcdef"): "0123456789ab",
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
