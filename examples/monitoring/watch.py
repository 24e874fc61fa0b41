"""Watches the desk through Prometheus: which alerts fired and cleared, and whether the counters add up to the ledger."""

import json
import subprocess
import sys
import time
import urllib.parse
import urllib.request

desk, metrics, prometheus = sys.argv[1:]
EXPECTED = {
    "ClientParked": "strategy",
    "ClientRestartsInARow": "strategy",
    "HandlerStalled": "strategy",
    "FeedStale": "feed",
    "OrdersUncertain": "feed",
    "ReaderBehind": "feed",
}


def get(url):
    with urllib.request.urlopen(url, timeout=5) as answer:
        return answer.read().decode()


def query(expression):
    answer = json.loads(get(f"{prometheus}/api/v1/query?" + urllib.parse.urlencode({"query": expression})))
    return answer["data"]["result"]


def firing():
    try:
        alerts = json.loads(get(f"{prometheus}/api/v1/alerts"))["data"]["alerts"]
    except OSError:
        return set()
    return {(a["labels"]["alertname"], a["labels"]["client"]) for a in alerts if a["state"] == "firing"}


def lines():
    with open(desk) as file:
        return file.read().splitlines()


# What the desk serves is what Prometheus takes.
deadline = time.time() + 30
while True:
    try:
        text = get(metrics)
        break
    except OSError:
        assert time.time() < deadline, "the desk serves no metrics"
        time.sleep(0.1)
lint = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True)
assert lint.returncode == 0, lint.stdout + lint.stderr
print(f"promtool check metrics: {len(text.splitlines())} lines, no fault")

fired, said = set(), 0
deadline = time.time() + 240
while not any(line == "done" for line in lines()):
    assert time.time() < deadline, "the desk does not come to an end"
    news = firing() - fired
    for line in lines()[said:]:
        print(line, flush=True)
    said = len(lines())
    for alert in sorted(news):
        print("   fires:", *alert, flush=True)
    fired |= news
    time.sleep(0.3)
missing = set(EXPECTED.items()) - fired
assert not missing, f"did not fire: {missing}"

# The counters, as Prometheus has them, against the desk's ledger.
time.sleep(1.5)
for line in lines():
    if not line.startswith("ledger "):
        continue
    _, name, client, value = line.split()
    if name == "sum":
        assert value == "0", line
        continue
    name, _, reason = name.partition("{")
    label = f',reason="{reason[:-1]}"' if reason else ""
    found = query(f'{name}{{client="{client}"{label}}}')
    found = sum(float(row["value"][1]) for row in found)
    assert found == float(value), f"{line}: Prometheus has {found}"
    print(f"{name} of {client}: {value} in the ledger, as many at Prometheus")

# Every panel of the dashboard asks for something that there is.
with open("dashboard.json") as file:
    targets = [target["expr"] for panel in json.load(file)["panels"] for target in panel["targets"]]
for expression in targets:
    expression = expression.replace("$client", ".*").replace("$__rate_interval", "2m").replace(" > 0", "")
    assert query(expression) or "time_in_socket" in expression, f"a panel without data: {expression}"
print(f"dashboard: {len(targets)} queries, all with data")

deadline = time.time() + 60
while left := firing() - {("LineDown", c) for c in ("feed", "strategy")}:
    # The desk may have ended: then all is cleared by its absence within five minutes, which is no proof.
    assert time.time() < deadline, f"never cleared: {left}"
    time.sleep(0.3)
print("all alerts that fired have cleared")
