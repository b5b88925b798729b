// Package apiv1 is berth.api.v1 as the command line sees it: its messages and a client for each of its services, written
// by tools/protoc-gen-lite from the .proto files. Everybody else uses berth/proto/berth/api/v1, which can do more and
// costs more at the start of a program; package wire says how much.
package apiv1
