"""A client of the coordinator for a platform's backend: what every one of them needs, and nothing else.

Stubs come from the `.proto` files with grpcio-tools, and have to be importable:

    python -m grpc_tools.protoc -I proto --python_out STUBS --grpc_python_out STUBS \
        regent/types/v1/types.proto regent/coordinator/v1/coordinator.proto

Packages: grpcio, grpcio-status, and grpcio-tools for the stubs.
"""

import pathlib
import time
import uuid

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from regent.coordinator.v1 import coordinator_pb2 as wire
from regent.coordinator.v1 import coordinator_pb2_grpc as services

# What is worth another attempt with the same request id: nothing may have been done, and nothing is done twice.
RETRIED = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.ABORTED}


class Refused(Exception):
    """The coordinator said no; trying the same again changes nothing."""

    def __init__(self, reason, message, metadata):
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.metadata = metadata


class OperationFailed(Exception):
    """An operation has ended without success; what it had done is undone, or `report` says what stands."""

    def __init__(self, operation):
        super().__init__(f"{operation.name} ({operation.kind}): {operation.error_reason}: {operation.error}")
        self.operation = operation


class Coordinator:
    """One connection, for any number of threads. `identity` is a directory with cert.pem, key.pem and ca.pem."""

    def __init__(self, address, identity, patience=60.0):
        files = pathlib.Path(identity)
        credentials = grpc.ssl_channel_credentials(
            root_certificates=(files / "ca.pem").read_bytes(),
            private_key=(files / "key.pem").read_bytes(),
            certificate_chain=(files / "cert.pem").read_bytes(),
        )
        # A coordinator that was restarted is noticed within seconds, also by a stream on which nothing happens.
        options = [("grpc.keepalive_time_ms", 20_000), ("grpc.keepalive_timeout_ms", 5_000)]
        self.channel = grpc.secure_channel(address, credentials, options)
        self.clusters = services.ClusterServiceStub(self.channel)
        self.operations = services.OperationServiceStub(self.channel)
        self.event_stream = services.EventServiceStub(self.channel)
        self.patience = patience

    def close(self):
        self.channel.close()

    def call(self, method, request, timeout=10.0):
        """Calls a method until it is answered. A request that changes something has a `request_id`, kept over all attempts: the
        coordinator carries it out once and gives the same answer again."""
        end, pause = time.monotonic() + self.patience, 0.1
        while True:
            try:
                return method(request, timeout=timeout)
            except grpc.RpcError as error:
                if error.code() not in RETRIED or time.monotonic() >= end:
                    raise refusal(error) from error
            time.sleep(pause)
            pause = min(pause * 2, 5.0)

    def change(self, method, request, timeout=3600.0):
        """Asks for a change and waits until it has ended; returns the operation. With `validate_only` nothing is done, and there is
        nothing to wait for."""
        if not request.request_id:
            request.request_id = str(uuid.uuid4())
        operation = self.call(method, request)
        return operation if operation.validate_only else self.wait(operation.name, timeout)

    def wait(self, name, timeout=3600.0):
        """Waits until an operation has ended, over any number of broken streams."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            try:
                request = wire.WatchOperationRequest(name=name)
                for seen in self.operations.WatchOperation(request, timeout=max(end - time.monotonic(), 0.1)):
                    if seen.done:
                        if seen.state != wire.OPERATION_STATE_SUCCEEDED:
                            raise OperationFailed(seen)
                        return seen
            except grpc.RpcError as error:
                if error.code() not in RETRIED:
                    raise refusal(error) from error
            time.sleep(0.2)
        raise TimeoutError(f"{name} has not ended; it goes on, wait for it again")

    def events(self, after):
        """Yields every event after the one with the id `after`, for ever, in order and without a gap: keep the id of each one in the
        same transaction as what you do about it. "0" begins with all that are kept."""
        while True:
            try:
                for event in self.event_stream.WatchEvents(wire.WatchEventsRequest(resume_after=after)):
                    after = event.id
                    yield event
            except grpc.RpcError as error:
                # INVALID_ARGUMENT: some may have been missed, or the store is an old one. Look at the clusters as they
                # are, then begin with "0".
                if error.code() not in RETRIED | {grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN}:
                    raise refusal(error) from error
            time.sleep(0.5)


def refusal(error):
    """The error of a call as a `Refused` with its reason, where it has one."""
    status = rpc_status.from_call(error)
    for detail in status.details if status else ():
        info = error_details_pb2.ErrorInfo()
        if detail.Is(info.DESCRIPTOR) and detail.Unpack(info):
            return Refused(info.reason, error.details(), dict(info.metadata))
    return error
