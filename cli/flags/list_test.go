package flags

import (
	"io"
	"slices"
	"testing"

	"github.com/spf13/pflag"
)

// TestListsArePflags compares both kinds with pflag's own.
func TestListsArePflags(t *testing.T) {
	for _, args := range [][]string{
		{}, {"-a", "x"}, {"--array=x,y", "-a", ""}, {"--slice", "x,y", "--slice=z"}, {"--slice", `"a,b",c`}, {"--slice="},
		{"--slice", `"open`}, {"-a"}, {"--slice"},
	} {
		var array, slice, wantArray, wantSlice []string
		own, its := pflag.NewFlagSet("own", pflag.ContinueOnError), pflag.NewFlagSet("own", pflag.ContinueOnError)
		own.SetOutput(io.Discard)
		its.SetOutput(io.Discard)
		Array(own, &array, "array", "a", "several")
		Slice(own, &slice, "slice", "", "many")
		its.StringArrayVarP(&wantArray, "array", "a", nil, "several")
		its.StringSliceVar(&wantSlice, "slice", nil, "many")
		if got, want := own.FlagUsages(), its.FlagUsages(); got != want {
			t.Errorf("help:\n%s\nwant:\n%s", got, want)
		}
		err, wantErr := own.Parse(args), its.Parse(args)
		if (err == nil) != (wantErr == nil) || err != nil && err.Error() != wantErr.Error() {
			t.Errorf("%q: %v, want %v", args, err, wantErr)
		}
		if err == nil && (!slices.Equal(array, wantArray) || !slices.Equal(slice, wantSlice)) {
			t.Errorf("%q: %q and %q, want %q and %q", args, array, slice, wantArray, wantSlice)
		}
		if _, several := own.Lookup("array").Value.(pflag.SliceValue); !several {
			t.Error("completions would offer the flag once only")
		}
	}
}
