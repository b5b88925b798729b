package apid

import (
	"context"
	"errors"
	"io"
	"strconv"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"berth/internal/daemon"
	"berth/internal/fault"
	"berth/services/apid/backend"
)

// target says who answers a method of the public API.
type target int

const (
	denied target = iota // not in the table
	self                 // apid: it spans daemons, or is about jobs
	imaged
	netd
	execd
)

// table names every method of berth.api.v1. What is not in it is refused,
// whatever a backend would make of it; a test walks the descriptors so that
// nothing is forgotten.
var table = map[string]target{
	"/berth.api.v1.ContainerService/Run":     self,
	"/berth.api.v1.ContainerService/Create":  self,
	"/berth.api.v1.ContainerService/Start":   self,
	"/berth.api.v1.ContainerService/Stop":    self,
	"/berth.api.v1.ContainerService/Restart": self,
	"/berth.api.v1.ContainerService/Remove":  self,
	"/berth.api.v1.ContainerService/Prune":   self,
	"/berth.api.v1.ContainerService/Diff":    self, // execd knows the name, imaged the files
	"/berth.api.v1.ContainerService/Commit":  self,
	"/berth.api.v1.ContainerService/Export":  self,
	"/berth.api.v1.ContainerService/Kill":    execd,
	"/berth.api.v1.ContainerService/Pause":   execd,
	"/berth.api.v1.ContainerService/Unpause": execd,
	"/berth.api.v1.ContainerService/Rename":  execd,
	"/berth.api.v1.ContainerService/Update":  execd,
	"/berth.api.v1.ContainerService/List":    execd,
	"/berth.api.v1.ContainerService/Inspect": execd,
	"/berth.api.v1.ContainerService/Wait":    execd,
	"/berth.api.v1.ContainerService/Logs":    execd,
	"/berth.api.v1.ContainerService/Stats":   execd,
	"/berth.api.v1.ContainerService/Top":     execd,
	"/berth.api.v1.ContainerService/Attach":  execd,
	"/berth.api.v1.ContainerService/Exec":    execd,

	"/berth.api.v1.ImageService/Pull":    self,
	"/berth.api.v1.ImageService/Push":    self,
	"/berth.api.v1.ImageService/Import":  self,
	"/berth.api.v1.ImageService/Remove":  self,
	"/berth.api.v1.ImageService/Prune":   self,
	"/berth.api.v1.ImageService/Load":    imaged,
	"/berth.api.v1.ImageService/Save":    imaged,
	"/berth.api.v1.ImageService/Tag":     imaged,
	"/berth.api.v1.ImageService/List":    imaged,
	"/berth.api.v1.ImageService/Inspect": imaged,
	"/berth.api.v1.ImageService/History": imaged,
	"/berth.api.v1.ImageService/Check":   imaged,
	"/berth.api.v1.ImageService/Undo":    imaged,
	"/berth.api.v1.ImageService/Login":   imaged,

	"/berth.api.v1.RegistryService/ListTags":         imaged,
	"/berth.api.v1.RegistryService/ListRepositories": imaged,
	"/berth.api.v1.RegistryService/GetManifest":      imaged,
	"/berth.api.v1.RegistryService/Delete":           imaged,
	"/berth.api.v1.RegistryService/CreateIndex":      imaged,
	"/berth.api.v1.RegistryService/Copy":             self,
	"/berth.api.v1.RegistryService/ListReferrers":    imaged,
	"/berth.api.v1.RegistryService/PushArtifact":     imaged,
	"/berth.api.v1.RegistryService/PullArtifact":     imaged,
	"/berth.api.v1.RegistryService/GetLimits":        imaged,
	"/berth.api.v1.RegistryService/SetLimits":        imaged,

	"/berth.api.v1.VolumeService/List":    imaged,
	"/berth.api.v1.VolumeService/Inspect": imaged,
	"/berth.api.v1.VolumeService/Create":  imaged,
	"/berth.api.v1.VolumeService/Remove":  imaged,
	"/berth.api.v1.VolumeService/Prune":   imaged,

	"/berth.api.v1.NetworkService/List":       netd,
	"/berth.api.v1.NetworkService/Inspect":    netd,
	"/berth.api.v1.NetworkService/Create":     netd,
	"/berth.api.v1.NetworkService/Remove":     netd,
	"/berth.api.v1.NetworkService/Prune":      netd,
	"/berth.api.v1.NetworkService/Connect":    self, // execd knows the container's name
	"/berth.api.v1.NetworkService/Disconnect": self,

	"/berth.api.v1.JobService/List":   self,
	"/berth.api.v1.JobService/Get":    self,
	"/berth.api.v1.JobService/Watch":  self,
	"/berth.api.v1.JobService/Cancel": self,

	"/berth.api.v1.EventService/Watch": self,

	"/berth.api.v1.SystemService/Version":       self,
	"/berth.api.v1.SystemService/Info":          self,
	"/berth.api.v1.SystemService/DiskUsage":     self,
	"/berth.api.v1.SystemService/GetDaemonInfo": self,
}

// callerKey tells a backend on whose behalf apid calls: "uid=1000".
const callerKey = "berth-caller"

// register adds to s those methods of impl's service that the table gives to
// apid itself; calls of the others reach the router as unknown ones. impl is
// nil for a service that is forwarded whole: reflection lists it then.
func register(s *grpc.Server, desc *grpc.ServiceDesc, impl any) {
	own := *desc
	own.Methods, own.Streams = nil, nil
	for _, m := range desc.Methods {
		if table["/"+desc.ServiceName+"/"+m.MethodName] == self {
			own.Methods = append(own.Methods, m)
		}
	}
	for _, m := range desc.Streams {
		if table["/"+desc.ServiceName+"/"+m.StreamName] == self {
			own.Streams = append(own.Streams, m)
		}
	}
	s.RegisterService(&own, impl)
}

// router forwards calls to the one daemon that answers them, message by message
// and undecoded. There is no buffer in between: each side reads the next
// message when the other has taken the last, so that HTTP/2's flow control
// reaches from one end to the other.
type router struct {
	backends *backend.Set
}

var passStream = &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}

// forward is the server's handler of methods not registered.
func (r *router) forward(_ any, client grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(client)
	to := r.backend(table[method])
	if to == nil {
		return fault.Unimplemented.Errorf("UNKNOWN_METHOD", "the engine has no method %s", method).With("method", method)
	}
	// Leaving the function ends the call to the backend, whatever its state.
	ctx, cancel := context.WithCancel(outgoing(client.Context()))
	defer cancel()
	server, err := to.Conn.NewStream(ctx, passStream, method, grpc.ForceCodecV2(newPassCodec()))
	if err != nil {
		return err
	}
	// gRPC ends this goroutine's RecvMsg when forward returns.
	go copyRequests(cancel, server, client)
	return copyResponses(client, server)
}

func (r *router) backend(t target) *backend.Backend {
	switch t {
	case imaged:
		return r.backends.Imaged
	case netd:
		return r.backends.Netd
	case execd:
		return r.backends.Execd
	}
	return nil
}

// outgoing is the context of a forwarded call. Of the client's metadata nothing
// goes along but the request id, which daemon.Dial adds from the context.
func outgoing(ctx context.Context) context.Context {
	p, _ := daemon.PeerOf(ctx)
	return metadata.NewOutgoingContext(ctx, metadata.Pairs(callerKey, "uid="+strconv.Itoa(p.UID)))
}

func copyRequests(cancel context.CancelFunc, server grpc.ClientStream, client grpc.ServerStream) {
	for {
		f := new(frame)
		if err := client.RecvMsg(f); err != nil {
			if errors.Is(err, io.EOF) {
				server.CloseSend()
			} else {
				cancel() // the client is gone
			}
			return
		}
		if err := server.SendMsg(f); err != nil {
			return // RecvMsg on the other side has the reason
		}
	}
}

func copyResponses(client grpc.ServerStream, server grpc.ClientStream) error {
	for {
		f := new(frame)
		if err := server.RecvMsg(f); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if err := client.SendMsg(f); err != nil {
			return err
		}
	}
}
