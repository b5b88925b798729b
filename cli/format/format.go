// Package format renders rows the way Docker's users know: a table by default, Go templates ("{{.ID}}", also
// "table {{.ID}}\t{{.Names}}") and JSON, one object a line.
//
// A row is a struct whose exported string fields are the columns; the header of a column is its `header` tag, or its
// name in upper case. It is not for values with structure inside: those go through JSON or Template.
package format

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"strings"
	"text/tabwriter"
	"text/template"
)

// Rows writes rows in the wanted format. columns names the fields of the default table, in order. format is "" or
// "table" for that table, "json" for a JSON object a line, "table TEMPLATE" or a template.
func Rows[T any](w io.Writer, format string, columns []string, rows []T) error {
	switch {
	case format == "json" || format == "{{json .}}":
		enc := json.NewEncoder(w)
		enc.SetEscapeHTML(false)
		for _, r := range rows {
			if err := enc.Encode(r); err != nil {
				return err
			}
		}
		return nil
	case format == "" || format == "table":
		return table(w, "{{."+strings.Join(columns, "}}\t{{.")+"}}", rows)
	case strings.HasPrefix(format, "table "):
		return table(w, strings.TrimPrefix(format, "table "), rows)
	}
	t, err := Parse(format)
	if err != nil {
		return err
	}
	for _, r := range rows {
		if err := execute(w, t, r); err != nil {
			return err
		}
	}
	return nil
}

func table[T any](w io.Writer, text string, rows []T) error {
	t, err := Parse(text)
	if err != nil {
		return err
	}
	out := bufio.NewWriter(w) // a tabwriter writes cell by cell
	tw := tabwriter.NewWriter(out, 8, 1, 3, ' ', 0)
	var zero T
	if err := execute(tw, t, headers(reflect.TypeOf(zero))); err != nil {
		return err
	}
	for _, r := range rows {
		if err := execute(tw, t, r); err != nil {
			return err
		}
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	return out.Flush()
}

// headers gives, for a row type, the map from field name to column header.
func headers(t reflect.Type) map[string]string {
	m := map[string]string{}
	for i := range t.NumField() {
		f := t.Field(i)
		h := f.Tag.Get("header")
		if h == "" {
			h = strings.ToUpper(f.Name)
		}
		m[f.Name] = h
	}
	return m
}

// Parse compiles a template with Docker's functions: json, join, lower, upper, split, truncate, println.
func Parse(text string) (*template.Template, error) {
	text = strings.NewReplacer(`\t`, "\t", `\n`, "\n").Replace(text)
	t, err := template.New("format").Funcs(functions).Parse(text)
	if err != nil {
		return nil, fmt.Errorf("template in --format: %s", strings.TrimPrefix(err.Error(), "template: "))
	}
	return t, nil
}

var functions = template.FuncMap{
	"json": func(v any) (string, error) {
		b, err := json.Marshal(v)
		return string(b), err
	},
	"join":  strings.Join,
	"lower": strings.ToLower,
	"upper": strings.ToUpper,
	"split": strings.Split,
	"truncate": func(s string, n int) string {
		if len(s) <= n {
			return s
		}
		return s[:n]
	},
	"println": fmt.Sprintln,
}

func execute(w io.Writer, t *template.Template, v any) error {
	if err := t.Execute(w, v); err != nil {
		return fmt.Errorf("template in --format: %s", strings.TrimPrefix(err.Error(), "template: "))
	}
	_, err := io.WriteString(w, "\n")
	return err
}

// Values writes structured values (inspect): a JSON array without a format, otherwise the template for each value. A
// template walks the value's JSON shape, so that the field names of the JSON are those of the template.
func Values(w io.Writer, format string, values []any) error {
	if format == "" || format == "json" {
		enc := json.NewEncoder(w)
		enc.SetEscapeHTML(false)
		if format == "" {
			enc.SetIndent("", "    ")
		}
		return enc.Encode(values)
	}
	t, err := Parse(format)
	if err != nil {
		return err
	}
	t = t.Option("missingkey=error")
	for _, v := range values {
		if err := execute(w, t, v); err != nil {
			return err
		}
	}
	return nil
}
