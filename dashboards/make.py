"""Writes the dashboards from the tables below: `python3 dashboards/make.py`.

Each panel is one line of a table: title, kind, unit, and its queries as pairs of legend and
expression. Sizes, places, ids and all that Grafana wants beside are the same for all.
"""

import json
import pathlib
import sys

FOLDER = pathlib.Path(__file__).parent
RATE = "[$__rate_interval]"


def rate(metric, by=""):
    """A counter's rise per second, summed up."""
    return f"sum by ({by}) (rate({metric}{RATE}))" if by else f"sum(rate({metric}{RATE}))"


def quantile(q, metric, by=""):
    """A quantile of a histogram."""
    by = f"le, {by}" if by else "le"
    return f"histogram_quantile({q}, sum by ({by}) (rate({metric}_bucket{RATE})))"


def quantiles(metric, *qs):
    """Several, named as people say them."""
    return [(f"p{q * 100:g}", quantile(q, metric)) for q in qs]


def mean(metric, by=""):
    """A histogram's mean."""
    return f"{rate(metric + '_sum', by)} / {rate(metric + '_count', by)}"


OVERVIEW = ("mtplx: overview", "Is it well? The golden signals, and who serves.", [
    ("Serving", "stat", "bool_yes_no", [("", "mtplx_serving_ratio")]),
    ("Generation of the engine", "stat", "none", [("", "mtplx_generation")]),
    ("Up for", "stat", "s", [("", "time() - mtplx_start_timestamp_seconds")]),
    ("Engine last seen at work", "stat", "s", [("", "time() - mtplx_heartbeat_timestamp_seconds")]),
    ("Engine", "names", "none", [("{{device}}, MTP: {{mtp}}", "mtplx_engine_info")]),
    ("Build", "names", "none", [("{{version}}", "mtplx_build_info")]),
    ("Tokens generated", "lines", "tokens/s", [("generated", rate("mtplx_generated_tokens_total"))]),
    ("Requests by how they ended", "lines", "reqps",
     [("{{finish}}", rate("mtplx_requests_total", "finish"))]),
    ("Requests by route and class", "lines", "reqps",
     [("{{route}} {{class}}", rate("mtplx_requests_total", "route, class"))]),
    ("Time to first token", "lines", "s",
     quantiles("mtplx_time_to_first_token_seconds", 0.5, 0.95, 0.99)),
    ("Time between tokens", "lines", "s", quantiles("mtplx_inter_token_seconds", 0.5, 0.95, 0.99)),
    ("Whole requests", "lines", "s", quantiles("mtplx_request_duration_seconds", 0.5, 0.95)),
    ("Where a request's time goes, p95", "lines", "s", [
        ("tokenise", quantile(0.95, "mtplx_tokenize_seconds")),
        ("queue", quantile(0.95, "mtplx_queue_seconds")),
        ("prefill", quantile(0.95, "mtplx_prefill_seconds")),
        ("decode", quantile(0.95, "mtplx_decode_seconds"))]),
    ("Refusals by reason", "lines", "reqps", [("{{reason}}", rate("mtplx_refusals_total", "reason"))]),
    ("HTTP answers by code", "lines", "reqps",
     [("{{code}}", rate("mtplx_http_requests_total", "code"))]),
    ("Rows", "lines", "none",
     [("running", "mtplx_rows_running"), ("waiting", "mtplx_rows_waiting")]),
    ("Requests in the house", "lines", "none",
     [("taken", "mtplx_permits_taken"), ("most", "mtplx_permits_max")]),
    ("Memory", "lines", "bytes", [
        ("in use", "mtplx_memory_used_bytes"), ("budget", "mtplx_memory_budget_bytes"),
        ("as the system counts", "mtplx_process_footprint_bytes")]),
    ("What went wrong, in the last hour", "lines", "none", [
        ("generations ended: {{part}}", "increase(mtplx_generations_ended_total[1h])"),
        ("books contradicted", "increase(mtplx_integrity_failures_total[1h])"),
        ("prompts unaccounted", "increase(mtplx_prompt_unaccounted_total[1h])"),
        ("fault files written", "increase(mtplx_flight_files_total[1h])"),
        ("answers resumed", "increase(mtplx_requests_resumed_total[1h])"),
        ("connections used up", "increase(mtplx_places_waited_total[1h])")]),
    ("Settings read anew, in the last hour", "lines", "none",
     [("{{outcome}}", "increase(mtplx_config_reloads_total[1h])")]),
    ("Settings hold since", "lines", "s", [("read", "time() - mtplx_config_loaded_timestamp_seconds")]),
])

ENGINE = ("mtplx: engine", "Cycles, drafts, phases, slots, memory.", [
    ("Cycles by kind", "lines", "ops", [("{{kind}}", rate("mtplx_cycles_total", "kind"))]),
    ("Time of a cycle, p50", "lines", "s",
     [("{{kind}}", quantile(0.5, "mtplx_cycle_seconds", "kind"))]),
    ("Time of a cycle, p99", "lines", "s",
     [("{{kind}}", quantile(0.99, "mtplx_cycle_seconds", "kind"))]),
    ("Phases of a cycle, mean", "lines", "s",
     [("{{phase}}", mean("mtplx_cycle_phase_seconds", "phase"))]),
    ("Device's share of the time", "lines", "percentunit", [
        ("device", rate('mtplx_cycle_phase_seconds_sum{phase="device"}')),
        ("host", rate('mtplx_cycle_phase_seconds_sum{phase="host"}'))]),
    ("Rows of a cycle, mean", "lines", "none", [("rows", mean("mtplx_cycle_rows"))]),
    ("Depth of a cycle, mean", "lines", "tokens", [("depth", mean("mtplx_cycle_depth_tokens"))]),
    ("Drafts", "lines", "tokens/s", [
        ("drafted", rate("mtplx_drafted_tokens_total")),
        ("judged", rate("mtplx_draft_judged_tokens_total")),
        ("accepted", rate("mtplx_draft_accepted_tokens_total"))]),
    ("Acceptance by position", "lines", "percentunit", [
        ("{{position}}", rate("mtplx_draft_accepted_tokens_total", "position") + " / "
         + rate("mtplx_draft_judged_tokens_total", "position"))]),
    ("Readers' stall while prompts are fed", "lines", "s",
     quantiles("mtplx_decode_stall_seconds", 0.5, 0.99)),
    ("Prompt tokens by source", "lines", "tokens/s",
     [("{{source}}", rate("mtplx_prompt_tokens_total", "source"))]),
    ("Sizes of requests, p50", "lines", "tokens", [
        ("prompt", quantile(0.5, "mtplx_request_prompt_tokens")),
        ("answer", quantile(0.5, "mtplx_request_generated_tokens"))]),
    ("Waits for the device in a cycle", "lines", "none",
     [("waits", rate("mtplx_synchronisations_total") + " / " + rate("mtplx_cycles_total"))]),
    ("Kernels compiled", "lines", "none", [("compiled", "increase(mtplx_kernel_compilations_total[5m])")]),
    ("Kernels that are on", "lines", "bool_on_off", [("{{kernel}}", "mtplx_kernel_enabled_ratio")]),
    ("Free slots and parked states", "lines", "none", [
        ("free slots", "mtplx_slots_free"), ("parked states", "mtplx_snapshots_alive")]),
    ("KV pages in use", "lines", "percentunit", [("pages", "1 - mtplx_pages_free / mtplx_pages_max")]),
    ("Memory of the engine", "lines", "bytes", [
        ("active", "mtplx_engine_active_bytes"), ("cached", "mtplx_engine_cached_bytes"),
        ("peak", "mtplx_engine_peak_bytes"), ("limit", "mtplx_engine_limit_bytes")]),
    ("Actors answer after", "lines", "s", [("{{actor}}", "mtplx_actor_answer_seconds")]),
])

BANK = ("mtplx: bank", "Warm prefixes: what is found, what is missed and why, what is kept.", [
    ("Look-ups", "lines", "ops", [("{{result}}", rate("mtplx_bank_lookups_total", "result"))]),
    ("Share of look-ups that found something", "lines", "percentunit",
     [("found", rate('mtplx_bank_lookups_total{result="hit"}') + " / "
       + rate("mtplx_bank_lookups_total"))]),
    ("Found, by where it was", "lines", "ops", [("{{tier}}", rate("mtplx_bank_hits_total", "tier"))]),
    ("Missed, by reason", "lines", "ops", [("{{reason}}", rate("mtplx_bank_misses_total", "reason"))]),
    ("Tokens computed that might have been warm", "lines", "tokens/s",
     [("{{reason}}", rate("mtplx_bank_missed_tokens_total", "reason"))]),
    ("Share of prompt tokens that was warm", "lines", "percentunit",
     [("warm", rate('mtplx_prompt_tokens_total{source="restored"}') + " / "
       + rate("mtplx_prompt_seated_tokens_total"))]),
    ("Taken over from others at work", "lines", "tokens/s",
     [("tokens", rate("mtplx_bank_taken_over_tokens_total"))]),
    ("States offered", "lines", "ops", [("{{result}}", rate("mtplx_bank_deposits_total", "result"))]),
    ("States let go, by cause", "lines", "ops", [("{{cause}}", rate("mtplx_bank_evictions_total", "cause"))]),
    ("Warm prefixes", "lines", "none", [("prefixes", "mtplx_bank_entries")]),
    ("Memory of warm prefixes", "lines", "bytes",
     [("held", "mtplx_bank_held_bytes"), ("most", "mtplx_bank_capacity_bytes")]),
    ("Files", "lines", "none", [("files", "mtplx_bank_files")]),
    ("Bytes of files", "lines", "bytes", [("files", "mtplx_bank_files_bytes")]),
    ("What became of files", "lines", "ops", [("{{event}}", rate("mtplx_bank_file_events_total", "event"))]),
    ("A stretch of carrying, p99", "lines", "s", [("p99", quantile(0.99, "mtplx_bank_carried_seconds"))]),
])

TEAM = ("mtplx: team", "Who gets what: by key.", [
    ("Generated tokens by key", "lines", "tokens/s",
     [("{{key}}", rate('mtplx_client_tokens_total{kind="generated"}', "key"))]),
    ("Prompt tokens by key and kind", "lines", "tokens/s",
     [("{{key}} {{kind}}", rate('mtplx_client_tokens_total{kind!="generated"}', "key, kind"))]),
    ("Answers by key and end", "lines", "reqps",
     [("{{key}} {{outcome}}", rate("mtplx_client_requests_total", "key, outcome"))]),
    ("Wait for a slot by key, p95", "lines", "s",
     [("{{key}}", quantile(0.95, "mtplx_client_queue_seconds", "key"))]),
    ("Service by key", "lines", "none", [("{{key}}", rate("mtplx_client_service_total", "key"))]),
    ("Service by key and weight: equal while all want more", "lines", "none",
     [("{{key}}", rate("mtplx_client_service_total", "key") + " / max by (key) (mtplx_client_weight)")]),
    ("Spread of virtual counters", "lines", "none", [("spread", "mtplx_fairness_spread")]),
    ("Clients present", "lines", "none", [("clients", "mtplx_clients_present")]),
    ("Rows that stepped back for others", "lines", "ops",
     [("rows", rate("mtplx_rows_stepped_back_total"))]),
    ("Requests that a retry replaced", "lines", "reqps",
     [("requests", rate("mtplx_requests_superseded_total"))]),
    ("Nodes: rows", "lines", "none", [("{{node}}", "mtplx_node_rows")]),
    ("Nodes: state", "lines", "none",
     [("{{node}} {{state}}", "mtplx_node_state_ratio")]),
    ("Nodes: there and back", "lines", "s", [("{{node}}", "mtplx_node_rtt_seconds")]),
])

THERMAL_TUNER = ("mtplx: thermal and tuner", "Heat, and what the knobs are set to.", [
    ("Temperature", "lines", "celsius", [
        ("hottest", "mtplx_temperature_celsius"), ("target", "mtplx_thermal_target_celsius")]),
    ("Temperatures by sensor", "lines", "celsius",
     [("{{source}} {{sensor}}", "mtplx_sensor_celsius")]),
    ("Pauses between cycles", "lines", "percentunit",
     [("share", "mtplx_thermal_pause_ratio")]),
    ("Pauses", "lines", "ops", [("pauses", rate("mtplx_thermal_pauses_total"))]),
    ("Thermal pressure, as the system says", "lines", "percentunit",
     [("pressure", "mtplx_thermal_pressure_ratio")]),
    ("Power by sensor", "lines", "watt", [("{{source}} {{sensor}}", "mtplx_sensor_watts")]),
    ("Clocks by sensor, MHz", "lines", "none",
     [("{{source}} {{sensor}}", "mtplx_sensor_megahertz")]),
    ("Busy by sensor", "lines", "percentunit",
     [("{{source}} {{sensor}}", "mtplx_sensor_busy_ratio")]),
    ("Fans: turns a minute", "lines", "none",
     [("{{source}} {{sensor}}", "mtplx_sensor_fan_rpm")]),
    ("Fans: share of their most", "lines", "percentunit",
     [("{{source}} {{sensor}}", "mtplx_sensor_fan_ratio")]),
    ("Fans held at their most", "lines", "bool_yes_no", [("held", "mtplx_fans_pinned_ratio")]),
    ("Watchdogs of fans started, in the last hour", "lines", "none",
     [("watchdogs", "increase(mtplx_fan_watchdogs_total[1h])")]),
    ("Share of the rows that heat allows", "lines", "percentunit",
     [("ceiling", "mtplx_thermal_ceiling_ratio")]),
    ("Sensor: silences and restarts in the last hour", "lines", "none", [
        ("silences", "increase(mtplx_thermal_silences_total[1h])"),
        ("restarts", "increase(mtplx_thermal_restarts_total[1h])")]),
    ("Tokens to draft", "lines", "tokens", [("depth", "mtplx_draft_depth_tokens")]),
    ("Rows that may run", "lines", "none", [("rows", "mtplx_rows_max")]),
    ("Acceptance as the tuner believes it", "lines", "percentunit",
     [("{{position}}", "mtplx_draft_acceptance_ratio")]),
    ("Times the knobs were set", "lines", "ops", [("set", rate("mtplx_knob_settings_total"))]),
    ("Depth by rows, as the tuner chose", "lines", "tokens",
     [("{{rows}} rows", "mtplx_tuner_depth_tokens")]),
    ("Why", "lines", "none", [("{{reason}}", "mtplx_tuner_reason_info == 1")]),
    ("What the tuner does", "lines", "ops", [
        ("trials", rate("mtplx_tuner_trials_total")),
        ("changes of depth", rate("mtplx_tuner_switches_total")),
        ("changes of the text", rate("mtplx_tuner_changes_total"))]),
])

BOARDS = {
    "overview": OVERVIEW, "engine": ENGINE, "bank": BANK, "team": TEAM,
    "thermal-tuner": THERMAL_TUNER,
}
KINDS = {"stat": "stat", "names": "stat", "lines": "timeseries"}
SMALL, LARGE = (4, 4), (8, 8)


def options(kind):
    """What a panel of this kind shows."""
    if kind == "lines":
        return {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True,
                       "calcs": []},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    return {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "textMode": "name" if kind == "names" else "auto",
        "colorMode": "none", "graphMode": "none", "justifyMode": "auto", "orientation": "auto",
        "wideLayout": True, "showPercentChange": False, "percentChangeColorMode": "standard",
    }


def panel(number, place, title, kind, unit, queries):
    """One panel as Grafana reads it."""
    unit = {"tokens": "short", "tokens/s": "cps"}.get(unit, unit)
    source = {"type": "prometheus", "uid": "${datasource}"}
    targets = [
        {"refId": chr(ord("A") + i), "datasource": source, "editorMode": "code", "expr": expr,
         "legendFormat": legend or "__auto", "range": True}
        for i, (legend, expr) in enumerate(queries)
    ]
    custom = {"fillOpacity": 8, "lineWidth": 1, "showPoints": "never"} if kind == "lines" else {}
    return {
        "id": number, "type": KINDS[kind], "title": title, "datasource": source,
        "gridPos": place, "targets": targets, "options": options(kind),
        "fieldConfig": {"defaults": {"unit": unit, "custom": custom}, "overrides": []},
    }


def board(uid, title, description, rows):
    """One dashboard: small panels first, six in a row, then large ones, three in a row."""
    panels, x, y, high = [], 0, 0, 0
    for number, (name, kind, unit, queries) in enumerate(rows, 1):
        width, height = LARGE if kind == "lines" else SMALL
        if x + width > 24 or (high and height != high):
            x, y = 0, y + high
        high = height
        place = {"x": x, "y": y, "w": width, "h": height}
        panels.append(panel(number, place, name, kind, unit, queries))
        x += width
    choice = {"name": "datasource", "type": "datasource", "query": "prometheus",
              "label": "Data source"}
    links = [{"type": "dashboards", "tags": ["mtplx"], "title": "mtplx", "asDropdown": True,
              "icon": "external link", "includeVars": True, "keepTime": True,
              "targetBlank": False, "tooltip": "", "url": ""}]
    return {
        "uid": f"mtplx-{uid}", "title": title, "description": description, "tags": ["mtplx"],
        "schemaVersion": 41, "editable": True, "graphTooltip": 1, "refresh": "5s",
        "time": {"from": "now-15m", "to": "now"}, "timezone": "browser", "links": links,
        "templating": {"list": [choice]}, "panels": panels,
    }


def main():
    """Writes all, or with --check says which differ from what would be written."""
    wrong = []
    for uid, (title, description, rows) in BOARDS.items():
        text = json.dumps(board(uid, title, description, rows), indent=1) + "\n"
        path = FOLDER / f"{uid}.json"
        if "--check" not in sys.argv:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            wrong.append(path.name)
    if wrong:
        sys.exit(f"not as make.py writes them: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
