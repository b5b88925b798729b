package flags

import (
	"encoding/csv"
	"strings"

	"github.com/spf13/pflag"
)

// Array adds a flag that may be given several times, each time with one value.
func Array(f *pflag.FlagSet, p *[]string, name, shorthand, usage string) {
	f.VarP(&list{values: p, kind: "stringArray"}, name, shorthand, usage)
}

// Slice adds one whose value may also be several, separated by commas; one with a comma in it stands in quotes.
func Slice(f *pflag.FlagSet, p *[]string, name, shorthand, usage string) {
	f.VarP(&list{values: p, kind: "stringSlice", commas: true}, name, shorthand, usage)
}

// list is what pflag has as StringArray and StringSlice, for flags without default: these write theirs with a CSV
// writer and its buffer of 4 KB, for each of the thirty such flags of `run`.
type list struct {
	values *[]string
	kind   string // as pflag calls it: help texts have it
	commas bool
}

// Type implements pflag.Value.
func (l *list) Type() string { return l.kind }

// String implements pflag.Value; nothing for none keeps a default out of the help.
func (l *list) String() string {
	if len(*l.values) == 0 {
		return ""
	}
	return "[" + strings.Join(*l.values, ",") + "]"
}

// Set implements pflag.Value.
func (l *list) Set(text string) error {
	if !l.commas {
		*l.values = append(*l.values, text)
		return nil
	}
	if text == "" {
		return nil
	}
	several, err := csv.NewReader(strings.NewReader(text)).Read()
	*l.values = append(*l.values, several...)
	return err
}

// Append, Replace and GetSlice implement pflag.SliceValue, by which completions know that the flag may come again.
func (l *list) Append(value string) error     { *l.values = append(*l.values, value); return nil }
func (l *list) Replace(values []string) error { *l.values = values; return nil }
func (l *list) GetSlice() []string            { return *l.values }
