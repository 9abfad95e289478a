const SCHEMES = ["dns", "ipv4", "ipv6", "unix", "xds"];

/** Returns the target in the form of gRPC: `host:port` becomes `dns:///host:port`. */
export function grpcTarget(target: string): string {
  const scheme = /^([A-Za-z][A-Za-z0-9+.-]*):/.exec(target)?.[1];
  if (scheme !== undefined && SCHEMES.includes(scheme) && !/^[a-z0-9]+:\d+$/.test(target))
    return target;
  if (target === "" || target.includes("/")) {
    throw new TypeError(
      `the target is neither host:port nor an address with a scheme of gRPC: ${target}`,
    );
  }
  return `dns:///${target}`;
}

/** Whether a target of gRPC leads to this machine only. */
export function isLoopback(target: string): boolean {
  const [scheme = "", rest = ""] = target.split(/:(?:\/\/[^/]*\/)?(.*)/s);
  if (scheme === "unix") return true;
  return rest.split(",").every((address) => {
    const host = address.replace(/:\d+$/, "").replace(/^\[(.*)\]$/, "$1");
    return host === "localhost" || host === "::1" || /^127\.\d+\.\d+\.\d+$/.test(host);
  });
}
