"""Which room of `src/` may import which: the arrows of the map in `src/lib.rs`.

Rooms stand in the order in which a frame meets them. A room imports only rooms below it, and of those only the ones in
its row. A row for a folder (`server/camlens`) holds for that folder in place of the room's row, which it extends.
"""

ROOMS = {
    "cli": "client view http config server explain frame model plan render schedule telemetry torch process resources"
           " build_facts proto",
    "client": "credentials frame telemetry proto",
    "server": "view http config credentials stream schedule render frame explain plan model torch process resources"
              " build_facts telemetry",
    "view": "render frame model",
    "http": "",
    "config": "schedule model telemetry",
    "credentials": "",
    "stream": "",
    "schedule": "render frame explain plan model torch process telemetry",
    "render": "frame model",
    "frame": "model",
    "explain": "plan model torch",
    "plan": "model torch process",
    "model": "torch",
    "torch": "",
    "process": "",
    "resources": "",
    "build_facts": "",
    "telemetry": "",
    "proto": "",
}

FOLDERS = {
    # The one face that speaks `camlens.v1`: generated types stop here.
    "server/camlens": "proto",
    # Runs sessions and the queue together in simulated time.
    "schedule/simulation": "stream",
}

# No async runtime, no transport, no telemetry: values in, values out.
PURE = ["stream", "schedule/queue", "render", "frame", "explain", "plan", "model"]

# Time is passed in, so that it can be simulated.
TIMELESS = ["stream", "schedule/queue"]

# Where `unsafe` may be written.
UNSAFE = ["torch", "process"]
