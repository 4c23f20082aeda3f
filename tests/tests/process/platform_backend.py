"""A platform's backend, as deploy/integration.md describes it: makes a cluster, follows events, repeats requests, reads refusals.

Arguments: stubs, folder of the client, coordinator, identity directory.
"""
import sys
import uuid

stubs, client, address, identity = sys.argv[1:]
sys.path[:0] = [stubs, client]

from regent.coordinator.v1 import coordinator_pb2 as wire
from regent_client import Coordinator, OperationFailed, Refused

regent = Coordinator(address, identity)
wanted = dict(cluster="shop", engine="postgresql", nodes=["n1", "n2"], labels={"project": "42"})
request_id = str(uuid.uuid4())

checked = regent.change(regent.clusters.CreateCluster, wire.CreateClusterRequest(**wanted, validate_only=True))
assert checked.validate_only and checked.report, checked
done = regent.change(regent.clusters.CreateCluster, wire.CreateClusterRequest(**wanted, request_id=request_id))
# The answer was lost: the same request again is the same operation, and makes no second cluster.
again = regent.change(regent.clusters.CreateCluster, wire.CreateClusterRequest(**wanted, request_id=request_id))
assert again.name == done.name, (again, done)

listed = regent.call(regent.clusters.ListClusters, wire.ListClustersRequest(labels={"project": "42"}))
assert [cluster.name for cluster in listed.clusters] == ["clusters/shop"], listed
login = regent.call(regent.clusters.GetCredentials, wire.GetCredentialsRequest(name="clusters/shop"))
assert login.password, "a login comes with its password"

try:
    regent.change(regent.clusters.CreateCluster, wire.CreateClusterRequest(**wanted))
    raise AssertionError("the name was taken twice")
except Refused as refused:
    assert refused.reason == "NAME_TAKEN", refused

replica = next(member.name.split("/")[-1] for member in regent.call(regent.clusters.GetCluster, wire.GetClusterRequest(name="clusters/shop")).members if member.name.split("/")[-1] != "shop1")
regent.change(regent.clusters.PromoteMember, wire.PromoteMemberRequest(name="clusters/shop", member=replica))

kinds, last = [], "0"
for event in regent.events("0"):
    kinds.append(event.kind)
    last = event.id
    if "PROMOT" in event.kind:
        break
assert any("CREATE" in kind for kind in kinds), kinds
regent.close()

# Another process goes on where this one ended.
regent = Coordinator(address, identity)
regent.change(regent.clusters.DeleteCluster, wire.DeleteClusterRequest(name="clusters/shop", confirm_name="shop"))
for event in regent.events(last):
    assert event.id > last, (event, last)
    if "DELETE" in event.kind:
        break
print("all is well")
