"""The generated code of the gateway's API: messages in `esim_pb2`, stubs in `esim_pb2_grpc`."""
