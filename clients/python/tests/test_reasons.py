from thingspace.esim.v1.esim_pb2 import ErrorReason
from thingspace_gateway import Reason


def test_the_reasons_are_those_of_the_api() -> None:
    prefix = "ERROR_REASON_"
    assert [prefix + reason for reason in Reason] == ErrorReason.keys()[1:]
