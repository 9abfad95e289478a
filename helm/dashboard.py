"""The Grafana dashboard: its panels, row by row. `helm/generate.py` writes it to the chart's files/dashboard.json.

A row answers a question of an operator. What all replicas know from the shared store is shown once (`max`), and what each replica did
itself is added up (`sum`).
"""

import json

# The variables at the top of the dashboard.
SELECTED = 'namespace=~"$namespace",job=~"$job",instance=~"$replica"'
PER_SECOND = "rate({}[$__rate_interval])"
WIDTH = 24
METHODS = {"rpc_method": "~thingspace.esim.v1.EsimService/.+"}
UNARY = {"rpc_method": "~thingspace.esim.v1.EsimService/(DownloadProfile|GetRequestStatus)"}
# The reasons that count for the objective in files/alerts.yaml.
FAILED = {
    "reason": "~INTERNAL|DEADLINE|DRAINING|STORE_UNAVAILABLE|STORE_FULL|UPSTREAM_UNAVAILABLE|UPSTREAM_CREDENTIALS_.+|UPSTREAM_LOGIN_BLOCKED"
}

GREEN, ORANGE, RED = "green", "orange", "red"


def series(metric: str, **labels: str) -> str:
    """Selects a metric of the selected replicas. A value that begins with ~ is a regular expression."""
    matchers = [f'{name}=~"{value[1:]}"' if value.startswith("~") else f'{name}="{value}"' for name, value in labels.items()]
    return f"{metric}{{{','.join([SELECTED, *matchers])}}}"


def own(metric: str, **labels: str) -> str:
    return series(f"thingspace_gateway_{metric}", **labels)


def rate(selector: str, by: str = "") -> str:
    return f"sum{f' by ({by})' if by else ''} ({PER_SECOND.format(selector)})"


def quantile(q: float, histogram: str, by: str = "", **labels: str) -> str:
    """A quantile of a histogram in seconds."""
    bucket = series(f"{histogram}_seconds_bucket", **labels)
    return f"histogram_quantile({q}, {rate(bucket, f'{by}, le' if by else 'le')})"


def shared(metric: str, by: str = "") -> str:
    """What each replica reads from the shared store."""
    inner = f"sum by (instance{f', {by}' if by else ''}) ({own(metric)})"
    return f"max{f' by ({by})' if by else ''} ({inner})"


def panel(kind: str, title: str, width: int, height: int, description: str, unit: str, *targets, **field) -> dict:
    """A panel. Each target is an expression and its legend."""
    defaults = {"unit": unit, "color": {"mode": field.pop("color", "palette-classic")}, **field}
    options = {
        "timeseries": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi", "sort": "desc"}},
        "stat": {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "background", "textMode": "auto"},
        "state-timeline": {"legend": {"displayMode": "list", "placement": "bottom"}, "showValue": "auto"},
        "bargauge": {"reduceOptions": {"calcs": ["lastNotNull"]}, "orientation": "horizontal", "displayMode": "basic"},
    }[kind]
    instant = kind in ("stat", "bargauge")
    return {
        "type": kind,
        "title": title,
        "description": description,
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "gridPos": {"w": width, "h": height},
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "targets": [
            {
                "refId": chr(ord("A") + number),
                "datasource": {"type": "prometheus", "uid": "${datasource}"},
                "expr": expression,
                "legendFormat": legend,
                "instant": instant,
                "range": not instant,
            }
            for number, (expression, legend) in enumerate(targets)
        ],
    }


def graph(title, description, unit, *targets, stacked=False, width=8, **field):
    custom = {"fillOpacity": 30 if stacked else 10, "lineWidth": 1, "showPoints": "never", "stacking": {"mode": "normal" if stacked else "none"}}
    return panel("timeseries", title, width, 8, description, unit, *targets, custom=custom, min=0, **field)


def stat(title, description, unit, expression, legend="", good=None, bad=None, mappings=(), worse="above"):
    """A number. Green up to `good`, red from `bad` on, or the other way round with `worse="below"`."""
    steps = [{"color": GREEN, "value": None}]
    if worse == "below":
        steps = [{"color": RED, "value": None}, {"color": ORANGE, "value": bad}, {"color": GREEN, "value": good}]
    elif bad is not None:
        steps += [{"color": ORANGE, "value": good}] * (good is not None) + [{"color": RED, "value": bad}]
    thresholds = {"mode": "absolute", "steps": steps}
    return panel("stat", title, 3, 4, description, unit, (expression, legend), color="thresholds", thresholds=thresholds, mappings=list(mappings))


def words(**values) -> list[dict]:
    """Words in place of 0 and 1."""
    texts = {number: {"text": text} for number, text in zip("01", (values["no"], values["yes"]), strict=True)}
    return [{"type": "value", "options": texts}]


ROWS = {
    "Is it healthy?": [
        stat(
            "Alerts", "Alerts of the gateway that fire. docs/runbooks.md has a section for each.", "short",
            'count(ALERTS{alertname=~"ThingspaceGateway.+",alertstate="firing",namespace=~"$namespace",job=~"$job"}) or vector(0)', bad=1,
        ),
        stat("Replicas that are ready", "Of those that Prometheus can scrape.", "percentunit", f"avg({own('ready')})", good=1, bad=0.01, worse="below"),
        stat("Logins", "Whether the login guard has stopped logins with any credentials.", "short",
             f"max({own('login_state', state='stopped')})", bad=1, mappings=words(no="allowed", yes="STOPPED")),
        stat("ThingSpace", "Whether a breaker is open: calls to a host of ThingSpace failed in a row.", "short",
             f"max({own('breaker_open')})", bad=1, mappings=words(no="answers", yes="FAILING")),
        stat("Store", "Whether every replica can write to its store.", "short",
             f"min({own('store_usable')})", good=1, bad=1, worse="below", mappings=words(no="UNUSABLE", yes="usable")),
        stat("Unknown orders", "Orders that were perhaps placed. An operator settles them.", "short", f"max({own('orders_unknown')})", bad=1),
        stat("Failed calls", "Orders and status calls that failed for a reason against which the caller can do nothing. "
             "The objective is at most 0.1 % within 30 days.", "percentunit",
             f"(sum(increase({own('call_failures_total', **UNARY, **FAILED)}[$__range])) or vector(0)) "
             f"/ sum(increase({series('rpc_server_call_duration_seconds_count', **UNARY)}[$__range]))",
             good=0.001, bad=0.01),
        stat("Version", "One number means that all replicas have the same version.", "short",
             f"count by (version) ({own('build_info')})", legend="{{version}}"),
    ],
    "Are callers served?": [
        graph("Calls", "Calls that ended, by method. A watch counts when it ends.", "reqps",
              (rate(series("rpc_server_call_duration_seconds_count", **METHODS), "rpc_method"), "{{rpc_method}}"), stacked=True),
        graph("Errors by reason", "docs/errors.md explains each reason. Watches end with STREAM_AGE and DRAINING by design.", "reqps",
              (rate(own("call_failures_total"), "reason"), "{{reason}}"), stacked=True),
        graph("Time of unary calls", "An order waits for ThingSpace, and a status call may wait for a change.", "s",
              (quantile(0.5, "rpc_server_call_duration", "rpc_method", **UNARY), "half {{rpc_method}}"),
              (quantile(0.99, "rpc_server_call_duration", "rpc_method", **UNARY), "99 % {{rpc_method}}")),
        graph("Open watches", "By replica.", "short", (own("watches_open"), "{{instance}}"), stacked=True),
        graph("Watches that begin and end", "Ends by reason: FINAL is the end of a request, LEFT a caller that left.", "reqps",
              (rate(own("watches_begun_total"), "start"), "begin: {{start}}"), (rate(own("watches_ended_total"), "reason"), "end: {{reason}}")),
        graph("From a change to a watcher", "Time from the storing of a change to the message of an open watch.", "s",
              (quantile(0.5, "thingspace_gateway_watch_delay"), "half"), (quantile(0.99, "thingspace_gateway_watch_delay"), "99 %")),
    ],
    "Is ThingSpace well?": [
        graph("Requests to ThingSpace", "By HTTP status. Requests without an answer have no status.", "reqps",
              (rate(series("http_client_request_duration_seconds_count"), "http_response_status_code, error_type"),
               "{{http_response_status_code}} {{error_type}}"), stacked=True),
        graph("Time of requests to ThingSpace", "99 of 100 are faster. By endpoint.", "s",
              (quantile(0.99, "http_client_request_duration", "url_template"), "{{url_template}}")),
        graph("Wait for a permit", "99 of 100 calls wait less. Long waits mean that the rate (thingspace.calls_per_second) is too low.", "s",
              (quantile(0.99, "thingspace_gateway_permit_wait", "class"), "{{class}}")),
        panel("state-timeline", "Breakers", 8, 6, "1: calls to the host fail at once, because several in a row failed.", "short",
              (f"max by (host) ({own('breaker_open')})", "{{host}}"), mappings=words(no="closed", yes="OPEN"),
              thresholds={"mode": "absolute", "steps": [{"color": GREEN, "value": None}, {"color": RED, "value": 1}]}, color="thresholds"),
        graph("Polls", "By outcome. `elsewhere`: another replica polled.", "reqps", (rate(own("polls_total"), "outcome"), "{{outcome}}"), stacked=True),
        graph("Polls that wait", "Requests whose poll is due. They wait for permits.", "short",
              (own("poll_backlog"), "{{instance}}")),
    ],
    "Are tokens well?": [
        panel("state-timeline", "Logins", 12, 6, "In the states rejected, stopped and files_unusable an operator has to act.", "short",
              (f"max by (credentials, state) ({own('login_state', state='~rejected|stopped|files_unusable|failing|unknown')})",
               "{{credentials}} {{state}}"),
              mappings=words(no="no", yes="YES"),
              thresholds={"mode": "absolute", "steps": [{"color": GREEN, "value": None}, {"color": RED, "value": 1}]}, color="thresholds"),
        graph("Rejected logins that are left", "With the password in the file. At 0 the login guard sends no more logins.", "short",
              (f"min by (credentials) ({own('login_rejections_left')})", "{{credentials}}"), width=12, max=2),
        graph("Renewals", "By outcome. `shared`: another replica had renewed the token.", "reqps",
              (rate(own("renewals_total"), "credentials, token, outcome"), "{{credentials}} {{token}} {{outcome}}"), width=12),
        graph("Age of tokens", "A session ends after 20 minutes without a call, a bearer token within an hour.", "s",
              (f"max by (credentials, token) ({own('token_age_seconds')})", "{{credentials}} {{token}}"), width=12),
    ],
    "Do requests finish?": [
        graph("Orders", "By outcome.", "reqps", (rate(own("orders_total"), "outcome"), "{{outcome}}"), stacked=True),
        graph("Open requests", "By age.", "short", (shared("requests_open", "age"), "{{age}}"), stacked=True),
        graph("Oldest open request", "By account.", "s", (f"max by (account) ({own('requests_oldest_seconds')})", "{{account}}")),
        graph("Finished requests", "By result, and by what brought it.", "reqps",
              (f"max by (state, by) ({PER_SECOND.format(own('request_duration_seconds_count'))})", "{{state}} by {{by}}"), stacked=True),
        graph("Time until a request is finished", "From the order to the last result.", "s",
              (quantile(0.5, "thingspace_gateway_request_duration"), "half"), (quantile(0.95, "thingspace_gateway_request_duration"), "95 %")),
        graph("Callbacks", "By outcome. Only `stored` ones bring results.", "reqps", (rate(own("callbacks_total"), "outcome"), "{{outcome}}"), stacked=True),
        graph("Time since the last callback", "By account. Silence matters only while requests are open.", "s",
              (f"min by (account) ({own('callback_silence_seconds')})", "{{account}}"), width=12),
        panel("state-timeline", "Registrations for callbacks", 12, 8,
              "Whether ThingSpace sends the callbacks of an account to this gateway, as far as that could be checked.", "short",
              (f"min by (account) ({own('registration_state', state='registered')})", "{{account}}"),
              mappings=words(no="NOT CONFIRMED", yes="registered"),
              thresholds={"mode": "absolute", "steps": [{"color": RED, "value": None}, {"color": GREEN, "value": 1}]}, color="thresholds"),
    ],
    "Who uses it?": [
        panel("bargauge", "Calls by caller", 8, 8, "Within the time range. Callers beyond the first 200 are _OTHER.", "short",
              (f"topk(10, sum by (caller) (increase({own('calls_total')}[$__range])))", "{{caller}}")),
        graph("Open devices", "By account.", "short", (shared("devices_open", "account"), "{{account}}"), stacked=True),
        graph("Orders", "By account.", "reqps", (rate(own("orders_total"), "account"), "{{account}}"), stacked=True),
        graph("Denied calls", "Calls without valid credentials, or that the policy does not allow. The audit log has each.", "reqps",
              (rate(own("calls_denied_total"), "reason"), "{{reason}}"), stacked=True),
        graph("Calls over a limit", "By the key of the limit; and responses that their caller did not read.", "reqps",
              (rate(own("limits_reached_total"), "limit"), "{{limit}}"), (f"{rate(own('slow_readers_total'))} or vector(0)", "slow readers")),
        graph("Open connections", "By listener.", "short", (f"sum by (listener) ({own('connections_open')})", "{{listener}}"), stacked=True),
    ],
    "Store and process": [
        graph("Time of operations of the store", "99 of 100 are faster. An order is seven writes.", "s",
              (quantile(0.99, "thingspace_gateway_store_duration", "operation"), "{{operation}}")),
        graph("Room in the store", "New orders are refused when there is less than 32 MiB or than 15 % of the size; with NATS, when 85 % of the limit is used.", "bytes",
              (f"max ({own('store_size_bytes')})", "size"), (f"min ({own('store_room_bytes')})", "room")),
        graph("Events that are not read yet", "A replica that stays above 0 returns old states.", "short", (own("follower_lag"), "{{instance}}")),
        graph("Connections to NATS", "1: the connection is up. There are none with the embedded store.", "short",
              (own("nats_connected"), "{{instance}} {{connection}}"), max=1),
        graph("CPU", "Cores in use, by replica.", "short",
              (f"sum by (instance) ({PER_SECOND.format(series('process_cpu_time_seconds_total'))})", "{{instance}}")),
        graph("Memory", "By replica.", "bytes", (series("process_memory_usage_bytes"), "{{instance}}")),
        graph("Files and tasks", "Open file descriptors, and tasks of the runtime, by replica.", "short",
              (series("process_unix_file_descriptor_count"), "files of {{instance}}"), (own("runtime_tasks"), "tasks of {{instance}}")),
        graph("Certificates", "Time until they expire, and until their renewal is overdue.", "s",
              (f"min by (listener) ({own('certificate_remaining_seconds')})", "{{listener}} expires"),
              (f"min by (listener) ({own('certificate_renewal_seconds')})", "{{listener}} renewal")),
        graph("Files that are not in use", "Watched files whose newest content cannot be used.", "short",
              (f"sum by (files) ({own('files_refused')})", "{{files}}")),
        graph("Files that changed", "Certificates, tokens and credentials: used, or refused because they cannot be used.", "short",
              (f"sum by (files, outcome) ({own('reloads_total')})", "{{files}} {{outcome}}")),
        graph("Refused connections", "By listener and reason.", "cps",
              (rate(own("connections_refused_total"), "listener, reason"), "{{listener}} {{reason}}")),
    ],
}  # fmt: skip


def variable(name: str, label: str, query: str, multi: bool) -> dict:
    return {
        "type": "query",
        "name": name,
        "label": label,
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "sort": 1,
        "multi": multi,
        "includeAll": True,
        "allValue": ".*",
        "current": {"selected": True, "text": "All", "value": "$__all"},
    }


def placed() -> list[dict]:
    """Returns all panels with their ids and positions: rows from top to bottom, panels from left to right."""
    panels, y = [], 0
    for title, row in ROWS.items():
        panels.append({"type": "row", "title": title, "collapsed": False, "gridPos": {"x": 0, "y": y, "w": WIDTH, "h": 1}, "panels": []})
        x, y, height = 0, y + 1, 0
        for it in row:
            size = it["gridPos"]
            if x + size["w"] > WIDTH:
                x, y, height = 0, y + height, 0
            panels.append({**it, "gridPos": {"x": x, "y": y, **size}})
            x, height = x + size["w"], max(height, size["h"])
        y += height
    return [{"id": number, **it} for number, it in enumerate(panels, 1)]


def dashboard() -> dict:
    return {
        "uid": "thingspace-gateway",
        "title": "thingspace-gateway",
        "description": "eSIM profile downloads through ThingSpace. docs/runbooks.md says what to do.",
        "tags": ["thingspace-gateway"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": []},
        "links": [],
        "templating": {
            "list": [
                {"type": "datasource", "name": "datasource", "label": "Prometheus", "query": "prometheus"},
                variable("namespace", "Namespace", "label_values(thingspace_gateway_ready, namespace)", multi=False),
                variable("job", "Deployment", 'label_values(thingspace_gateway_ready{namespace=~"$namespace"}, job)', multi=False),
                variable("replica", "Replicas", 'label_values(thingspace_gateway_ready{namespace=~"$namespace",job=~"$job"}, instance)', multi=True),
            ]
        },
        "panels": placed(),
    }


def text() -> str:
    return json.dumps(dashboard(), indent=2) + "\n"
