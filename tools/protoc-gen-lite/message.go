package main

import (
	"fmt"

	"google.golang.org/protobuf/compiler/protogen"
	"google.golang.org/protobuf/reflect/protoreflect"
)

func (g *file) message(m *protogen.Message) error {
	for _, f := range m.Fields {
		if _, ok := g.goType(f); !ok {
			return unknown(f)
		}
	}
	g.structs(m)
	g.getters(m)
	g.encoder(m)
	g.decoder(m)
	return nil
}

// inOneof tells whether a field is a choice of a oneof that the .proto file has.
func inOneof(f *protogen.Field) bool { return f.Oneof != nil && !f.Oneof.Desc.IsSynthetic() }

func (g *file) wire(name string) string { return g.QualifiedGoIdent(wirePackage.Ident(name)) }

// goType is a field's type in its struct, false for one that the generator does not know.
func (g *file) goType(f *protogen.Field) (string, bool) {
	if f.Desc.IsMap() {
		key, value := f.Message.Fields[0], f.Message.Fields[1]
		t, ok := g.single(value)
		return "map[string]" + t, ok && key.Desc.Kind() == protoreflect.StringKind
	}
	t, ok := g.single(f)
	switch {
	case f.Desc.IsList():
		k := f.Desc.Kind()
		return "[]" + t, ok && (isVarint(k) || k == protoreflect.StringKind || k == protoreflect.MessageKind)
	case f.Desc.HasOptionalKeyword() && f.Message == nil:
		return "*" + t, ok && f.Desc.Kind() != protoreflect.BytesKind
	}
	return t, ok
}

// single is the type of one value of a field.
func (g *file) single(f *protogen.Field) (string, bool) {
	switch k := f.Desc.Kind(); k {
	case protoreflect.StringKind, protoreflect.BoolKind, protoreflect.Int32Kind, protoreflect.Int64Kind, protoreflect.Uint32Kind, protoreflect.Uint64Kind:
		return k.String(), true
	case protoreflect.BytesKind:
		return "[]byte", true
	case protoreflect.DoubleKind:
		return "float64", true
	case protoreflect.EnumKind:
		return f.Enum.GoIdent.GoName, true
	case protoreflect.MessageKind:
		return "*" + g.messageType(f.Message), true
	}
	return "", false
}

func (g *file) messageType(m *protogen.Message) string {
	switch m.Desc.FullName() {
	case "google.protobuf.Timestamp":
		return g.wire("Timestamp")
	case "google.protobuf.Duration":
		return g.wire("Duration")
	}
	return m.GoIdent.GoName
}

func (g *file) structs(m *protogen.Message) {
	name := m.GoIdent.GoName
	g.P()
	g.P(m.Comments.Leading, "type ", name, " struct {")
	for _, f := range m.Fields {
		switch t, _ := g.goType(f); {
		case !inOneof(f):
			g.P(f.Comments.Leading, f.GoName, " ", t)
		case f == f.Oneof.Fields[0]:
			g.P("// One of those that implement it below.")
			g.P(f.Oneof.GoName, " is", f.Oneof.GoIdent.GoName)
		}
	}
	g.P("}")
	for _, o := range m.Oneofs {
		if o.Desc.IsSynthetic() {
			continue
		}
		g.P()
		g.P("type is", o.GoIdent.GoName, " interface{ is", o.GoIdent.GoName, "() }")
		for _, f := range o.Fields {
			t, _ := g.goType(f)
			g.P()
			g.P(f.Comments.Leading, "type ", f.GoIdent.GoName, " struct{ ", f.GoName, " ", t, " }")
			g.P()
			g.P("func (*", f.GoIdent.GoName, ") is", o.GoIdent.GoName, "() {}")
		}
	}
}

func (g *file) getters(m *protogen.Message) {
	for _, f := range m.Fields {
		t, _ := g.goType(f)
		pointer := f.Desc.HasOptionalKeyword() && f.Message == nil
		if pointer {
			t = t[1:]
		}
		g.P()
		g.P("// Get", f.GoName, " is the field, or its zero value where there is none.")
		g.P("func (m *", m.GoIdent.GoName, ") Get", f.GoName, "() (v ", t, ") {")
		switch {
		case inOneof(f):
			g.P("if m != nil {")
			g.P("if x, ok := m.", f.Oneof.GoName, ".(*", f.GoIdent.GoName, "); ok {")
			g.P("return x.", f.GoName)
			g.P("}")
			g.P("}")
		case pointer:
			g.P("if m != nil && m.", f.GoName, " != nil {")
			g.P("return *m.", f.GoName)
			g.P("}")
		default:
			g.P("if m != nil {")
			g.P("return m.", f.GoName)
			g.P("}")
		}
		g.P("return v")
		g.P("}")
	}
}

func (g *file) encoder(m *protogen.Message) {
	g.P()
	g.P("// AppendTo implements wire.Message.")
	g.P("func (m *", m.GoIdent.GoName, ") AppendTo(b []byte) []byte {")
	g.P("if m == nil {")
	g.P("return b")
	g.P("}")
	for _, f := range m.Fields {
		field := "m." + f.GoName
		switch {
		case inOneof(f):
			if f == f.Oneof.Fields[0] {
				g.encodeOneof(f.Oneof)
			}
		case f.Desc.IsMap():
			g.P("for k, v := range ", field, " {")
			g.P("var body int")
			g.P("b, body = ", g.wire("Begin"), "(b, ", f.Desc.Number(), ")")
			g.P("b = ", g.wire("AppendBytes"), "(b, 1, k)")
			g.encodeOne(f.Message.Fields[1], "v")
			g.P("b = ", g.wire("End"), "(b, body)")
			g.P("}")
		case f.Desc.IsList() && isVarint(f.Desc.Kind()):
			g.P("if len(", field, ") > 0 {")
			g.P("b = ", g.wire("AppendPacked"), "(b, ", f.Desc.Number(), ", ", field, ")")
			g.P("}")
		case f.Desc.IsList():
			g.P("for _, v := range ", field, " {")
			g.encodeOne(f, "v")
			g.P("}")
		case f.Desc.HasOptionalKeyword() && f.Message == nil:
			g.P("if ", field, " != nil {")
			g.encodeOne(f, "*"+field)
			g.P("}")
		default:
			g.P("if ", present(f, field), " {")
			g.encodeOne(f, field)
			g.P("}")
		}
	}
	g.P("return b")
	g.P("}")
}

// present is the condition for a field without presence to be sent.
func present(f *protogen.Field, field string) string {
	switch f.Desc.Kind() {
	case protoreflect.BoolKind:
		return field
	case protoreflect.StringKind, protoreflect.BytesKind:
		return "len(" + field + ") > 0"
	case protoreflect.MessageKind:
		return field + " != nil"
	}
	return field + " != 0"
}

func (g *file) encodeOneof(o *protogen.Oneof) {
	g.P("switch x := m.", o.GoName, ".(type) {")
	for _, f := range o.Fields {
		g.P("case *", f.GoIdent.GoName, ":")
		g.encodeOne(f, "x."+f.GoName)
	}
	g.P("}")
}

// encodeOne appends the value, whatever it is, as field f.
func (g *file) encodeOne(f *protogen.Field, value string) {
	call := "AppendUint"
	switch k := f.Desc.Kind(); k {
	case protoreflect.BoolKind:
		call = "AppendBool"
	case protoreflect.DoubleKind:
		call = "AppendDouble"
	case protoreflect.StringKind, protoreflect.BytesKind:
		call = "AppendBytes"
	case protoreflect.MessageKind:
		call = "AppendMessage"
	default:
		value = "uint64(" + value + ")"
	}
	g.P("b = ", g.wire(call), "(b, ", f.Desc.Number(), ", ", value, ")")
}

func (g *file) decoder(m *protogen.Message) {
	g.P()
	g.P("// Merge implements wire.Message.")
	g.P("func (m *", m.GoIdent.GoName, ") Merge(b []byte) error {")
	g.P("d := ", g.wire("NewDecoder"), "(b)")
	g.P("for d.Next() {")
	if len(m.Fields) > 0 {
		g.P("switch d.Key {")
		for _, f := range m.Fields {
			g.decodeField(f)
		}
		g.P("}")
	}
	g.P("}")
	g.P("return d.Err()")
	g.P("}")
}

func (g *file) decodeField(f *protogen.Field) {
	field := "m." + f.GoName
	if f.Desc.IsList() && isVarint(f.Desc.Kind()) { // a list may come packed or not
		g.P("case ", f.Desc.Number(), "<<3 | ", g.wire("Bytes"), ":")
		g.P(field, " = ", g.wire("Packed"), "(&d, ", field, ")")
	}
	g.P("case ", f.Desc.Number(), "<<3 | ", g.wireType(f), ":")
	switch {
	case inOneof(f):
		g.decodeChoice(f)
	case f.Desc.IsMap():
		g.decodeEntry(f, field)
	case f.Desc.IsList() && f.Message != nil:
		g.P("v := new(", g.messageType(f.Message), ")")
		g.P("d.Message(v)")
		g.P(field, " = append(", field, ", v)")
	case f.Desc.IsList():
		g.P(field, " = append(", field, ", ", g.decodeOne(f, "d"), ")")
	case f.Message != nil:
		g.P("if ", field, " == nil {")
		g.P(field, " = new(", g.messageType(f.Message), ")")
		g.P("}")
		g.P("d.Message(", field, ")")
	case f.Desc.HasOptionalKeyword():
		g.P("v := ", g.decodeOne(f, "d"))
		g.P(field, " = &v")
	default:
		g.P(field, " = ", g.decodeOne(f, "d"))
	}
}

// decodeChoice: a message of a choice that is set already is merged into, as protocol buffers want it.
func (g *file) decodeChoice(f *protogen.Field) {
	if f.Message == nil {
		g.P("m.", f.Oneof.GoName, " = &", f.GoIdent.GoName, "{", g.decodeOne(f, "d"), "}")
		return
	}
	g.P("x, ok := m.", f.Oneof.GoName, ".(*", f.GoIdent.GoName, ")")
	g.P("if !ok || x.", f.GoName, " == nil {")
	g.P("x = &", f.GoIdent.GoName, "{new(", g.messageType(f.Message), ")}")
	g.P("m.", f.Oneof.GoName, " = x")
	g.P("}")
	g.P("d.Message(x.", f.GoName, ")")
}

func (g *file) decodeEntry(f *protogen.Field, field string) {
	value := f.Message.Fields[1]
	t, _ := g.single(value)
	g.P("var k string")
	if value.Message != nil {
		g.P("v := new(", g.messageType(value.Message), ")")
	} else {
		g.P("var v ", t)
	}
	g.P("e := d.Entry()")
	g.P("for e.Next() {")
	g.P("switch e.Key {")
	g.P("case 1<<3 | ", g.wire("Bytes"), ":")
	g.P("k = e.String()")
	g.P("case 2<<3 | ", g.wireType(value), ":")
	if value.Message != nil {
		g.P("e.Message(v)")
	} else {
		g.P("v = ", g.decodeOne(value, "e"))
	}
	g.P("}")
	g.P("}")
	g.P("d.Fail(e.Err())")
	g.P("if ", field, " == nil {")
	g.P(field, " = map[string]", t, "{}")
	g.P("}")
	g.P(field, "[k] = v")
}

// decodeOne is the value of the current field of a decoder.
func (g *file) decodeOne(f *protogen.Field, decoder string) string {
	switch f.Desc.Kind() {
	case protoreflect.BoolKind:
		return decoder + ".Bool()"
	case protoreflect.DoubleKind:
		return decoder + ".Double()"
	case protoreflect.StringKind:
		return decoder + ".String()"
	case protoreflect.BytesKind:
		return decoder + ".Bytes()"
	case protoreflect.Uint64Kind:
		return decoder + ".Uint()"
	}
	t, _ := g.single(f)
	return fmt.Sprintf("%s(%s.Uint())", t, decoder)
}

func (g *file) wireType(f *protogen.Field) string {
	switch f.Desc.Kind() {
	case protoreflect.DoubleKind:
		return g.wire("Fixed64")
	case protoreflect.StringKind, protoreflect.BytesKind, protoreflect.MessageKind:
		return g.wire("Bytes")
	}
	return g.wire("Varint")
}
