#!/usr/bin/python3
"""Runs a container through the engine's gRPC API, as `berth run --rm` does.

The stubs that protoc generates from proto/ must be on PYTHONPATH; README.md says how to make them.
"""

import argparse
import os
import sys

import grpc
from berth.api.v1 import container_pb2, container_pb2_grpc, image_pb2, image_pb2_grpc, system_pb2, system_pb2_grpc


def pull(channel, reference):
    """Fetches an image; progress goes to stderr. Returns its id."""
    images = image_pb2_grpc.ImageServiceStub(channel)
    for answer in images.Pull(image_pb2.ImageServicePullRequest(reference=reference)):
        if answer.HasField("result"):
            return answer.result.image_id
        progress = answer.progress
        print(progress.step, progress.item, progress.status, file=sys.stderr)
    raise RuntimeError("the engine ended the pull without a result")


def run(channel, image, command):
    """Runs a command in a new container of an image, which is removed when it exits. Returns the exit code."""
    open_message = container_pb2.RunRequest.Open(
        spec=container_pb2.ContainerSpec(image=image, args=command, auto_remove=True, labels={"client": "python"}),
        attach=container_pb2.AttachOptions(stdout=True, stderr=True),
    )
    containers = container_pb2_grpc.ContainerServiceStub(channel)
    # The call is a stream both ways; a client without input for the container sends one message and is done.
    answers = containers.Run(iter([container_pb2.RunRequest(open=open_message)]))
    for answer in answers:
        kind = answer.WhichOneof("message")
        if kind == "created":
            print("container", answer.created.id[:12], file=sys.stderr)
            for warning in answer.created.warnings:
                print("warning:", warning, file=sys.stderr)
        elif kind == "output":
            is_error = answer.output.stream == container_pb2.OutputChunk.STREAM_STDERR
            stream = (sys.stderr if is_error else sys.stdout).buffer
            stream.write(answer.output.data)
            stream.flush()
        elif kind == "exited":
            return answer.exited.code
    raise RuntimeError("the engine ended the run without an exit status")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = os.environ.get("BERTH_HOST") or "unix://" + os.environ.get("BERTH_RUN", "/run/berth") + "/apid.sock"
    parser.add_argument("--host", default=default, help="gRPC target of the engine (default %(default)s)")
    parser.add_argument("--pull", action="store_true", help="fetch the image first, although it may be there")
    parser.add_argument("image")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    # A unix socket has no host name, so this one goes with every call instead.
    with grpc.insecure_channel(args.host, options=[("grpc.default_authority", "localhost")]) as channel:
        try:
            version = system_pb2_grpc.SystemServiceStub(channel).Version(system_pb2.SystemServiceVersionRequest())
            print("engine", version.version, file=sys.stderr)
            if args.pull:
                print("image", pull(channel, args.image), file=sys.stderr)
            return run(channel, args.image, args.command)
        except grpc.RpcError as error:
            print("error:", error.details(), f"({error.code().name})", file=sys.stderr)
            return 125


if __name__ == "__main__":
    sys.exit(main())
