// Package warm does at a daemon's start what its first call would wait for.
package warm

import (
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Messages has protobuf learn how to encode and decode messages and all that they can contain. It works that out, by
// reflection, when it meets the first of a type (BenchmarkFirst).
func Messages(messages ...proto.Message) {
	seen := map[protoreflect.FullName]bool{}
	for _, m := range messages {
		visit(m.ProtoReflect(), seen)
	}
}

func visit(m protoreflect.Message, seen map[protoreflect.FullName]bool) {
	d := m.Descriptor()
	if seen[d.FullName()] {
		return
	}
	seen[d.FullName()] = true
	proto.Size(m.Interface())
	for i := range d.Fields().Len() {
		switch f := d.Fields().Get(i); {
		case f.IsMap():
			if f.MapValue().Message() != nil {
				visit(m.NewField(f).Map().NewValue().Message(), seen)
			}
		case f.Message() == nil:
		case f.IsList():
			visit(m.NewField(f).List().NewElement().Message(), seen)
		default:
			visit(m.NewField(f).Message(), seen)
		}
	}
}
