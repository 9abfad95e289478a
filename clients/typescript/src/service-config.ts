/**
 * The service config that the clients of all languages use. The text is the file
 * clients/service-config.json, which `check` compares. It is code, so that bundlers include it.
 */
export const SERVICE_CONFIG = `{
  "loadBalancingConfig": [{ "round_robin": {} }],
  "methodConfig": [
    {
      "name": [
        { "service": "thingspace.esim.v1.EsimService", "method": "DownloadProfile" },
        { "service": "thingspace.esim.v1.EsimService", "method": "GetRequestStatus" }
      ],
      "timeout": "90s",
      "waitForReady": true,
      "retryPolicy": {
        "maxAttempts": 5,
        "initialBackoff": "0.5s",
        "maxBackoff": "10s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"]
      }
    },
    {
      "name": [{ "service": "thingspace.esim.v1.EsimService", "method": "WatchRequest" }],
      "waitForReady": true,
      "retryPolicy": {
        "maxAttempts": 5,
        "initialBackoff": "0.5s",
        "maxBackoff": "10s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"]
      }
    }
  ],
  "retryThrottling": { "maxTokens": 1000, "tokenRatio": 1 }
}
`;
