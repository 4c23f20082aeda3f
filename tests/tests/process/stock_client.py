"""A client with nothing of ours but the .proto files.

Arguments: stubs, coordinator, agent, identity directory, identity directory of another coordinator.
"""
import pathlib
import sys
import uuid

stubs, coordinator, agent, identity, foreign = sys.argv[1:]
sys.path.insert(0, stubs)

import grpc
from google.rpc import error_details_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status
from regent.agent.v1 import agent_pb2 as agent_wire
from regent.agent.v1 import agent_pb2_grpc as agent_services
from regent.coordinator.v1 import coordinator_pb2 as wire
from regent.coordinator.v1 import coordinator_pb2_grpc as services

files = pathlib.Path(identity)
credentials = grpc.ssl_channel_credentials(
    root_certificates=(files / "ca.pem").read_bytes(),
    private_key=(files / "key.pem").read_bytes(),
    certificate_chain=(files / "cert.pem").read_bytes(),
)


def reason(error):
    for detail in rpc_status.from_call(error).details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            assert info.domain == "regent", info
            return info.reason
    raise AssertionError(f"no reason in {error}")


with grpc.secure_channel(coordinator, credentials) as channel:
    listed = set(ProtoReflectionDescriptorDatabase(channel).get_services())
    described = {f"regent.coordinator.v1.{name}" for name in wire.DESCRIPTOR.services_by_name}
    assert described <= listed, f"reflection lacks {described - listed}"
    assert "grpc.health.v1.Health" in listed, listed

    clusters = services.ClusterServiceStub(channel)
    operations = services.OperationServiceStub(channel)
    try:
        clusters.CreateCluster(wire.CreateClusterRequest(cluster="py", engine="nothing", nodes=["n1"], request_id=str(uuid.uuid4())))
        raise AssertionError("an unknown engine was taken")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT, error
        assert reason(error) == "UNKNOWN_ENGINE", error

    request = wire.CreateClusterRequest(cluster="py", engine="postgresql", nodes=["n1", "n2"], request_id=str(uuid.uuid4()))
    operation = clusters.CreateCluster(request)
    states = []
    for seen in operations.WatchOperation(wire.WatchOperationRequest(name=operation.name), timeout=180):
        states.append(wire.OperationState.Name(seen.state))
    assert states[-1] == "OPERATION_STATE_SUCCEEDED", (states, seen)
    assert len(states) > 2, states
    cluster = clusters.GetCluster(wire.GetClusterRequest(name="clusters/py"))
    assert cluster.primary == "py1" and len(cluster.members) == 2, cluster

with grpc.secure_channel(agent, credentials) as channel:
    listed = set(ProtoReflectionDescriptorDatabase(channel).get_services())
    wanted = {f"regent.agent.v1.{name}Service" for name in ("Step", "Job", "Session", "Peer")} | {"grpc.health.v1.Health"}
    assert wanted <= listed, f"reflection lacks {wanted - listed}"

# Strangers: without a certificate, and with one of another authority. Both daemons say why.
other = pathlib.Path(foreign)
authority = (files / "ca.pem").read_bytes()
strangers = {
    "NO_CERTIFICATE": grpc.ssl_channel_credentials(root_certificates=authority),
    "UNKNOWN_AUTHORITY": grpc.ssl_channel_credentials(
        root_certificates=authority,
        private_key=(other / "key.pem").read_bytes(),
        certificate_chain=(other / "cert.pem").read_bytes(),
    ),
}
for wanted, stranger in strangers.items():
    with grpc.secure_channel(coordinator, stranger) as at_coordinator, grpc.secure_channel(agent, stranger) as at_agent:
        calls = [
            lambda: services.ClusterServiceStub(at_coordinator).ListClusters(wire.ListClustersRequest()),
            lambda: agent_services.StepServiceStub(at_agent).GetLedger(agent_wire.GetLedgerRequest()),
            lambda: next(agent_services.StepServiceStub(at_agent).Execute(agent_wire.ExecuteRequest())),
            lambda: agent_services.JobServiceStub(at_agent).ListJobs(agent_wire.ListJobsRequest()),
            lambda: agent_services.PeerServiceStub(at_agent).ConfirmWhole(agent_wire.ConfirmWholeRequest()),
        ]
        for number, call in enumerate(calls):
            try:
                call()
                raise AssertionError(f"call {number} was answered to a stranger ({wanted})")
            except grpc.RpcError as error:
                assert error.code() == grpc.StatusCode.UNAUTHENTICATED, (number, error)
                assert reason(error) == wanted, (number, error)

print("all is well")
