#!/usr/bin/env python3
"""grpcurl, grpc-health-probe, ghz and k6 as they are, on plain TCP, TLS with a token, and a Unix socket."""

import base64
import json
import os
import pathlib
import subprocess
import tempfile

from setting import ROOT, TOKEN, Table, Transport, expect, folder_of_frames

PROTO = ROOT / "proto"
K6_STREAMS, K6_FRAMES = 50, 4
UNARY_CALLS = 40
# A small answer: it is calls that are tried here, not maps.
SMALL = {"tensors": [{"map": "MAP_GRAD_CAM", "elementType": "ELEMENT_TYPE_UINT8", "resolution": "RESOLUTION_LAYER"}]}


def run(command, stdin=None, environment=None, code=0):
    done = subprocess.run(
        [str(part) for part in command], input=stdin, capture_output=True, text=True, timeout=180,
        env={**os.environ, **(environment or {})},
    )  # fmt: skip
    said = f"{done.stdout[-800:]} {done.stderr[-800:]}"
    expect(done.returncode == code, f"{command[0]} ended with {done.returncode}: {said}")
    return done.stdout


def frame(folder, number, sequence=0):
    data = base64.b64encode((folder / f"{number:04}.jpg").read_bytes()).decode()
    return {"sequence": sequence, "encoded": {"data": data}}


class Grpcurl:
    """grpcurl with the flags of a transport."""

    def __init__(self, transport):
        flags = {"plain": ["-plaintext"], "unix": ["-plaintext", "-authority", "localhost"],
                 "tls": ["-cacert", transport.folder / "ca.crt", "-H", f"authorization: Bearer {TOKEN}"]}  # fmt: skip
        self.flags, self.address = flags[transport.kind], transport.address

    def __call__(self, *arguments, stdin=None):
        data = ["-d", "@"] if stdin is not None else []
        return run(["grpcurl", "-max-msg-sz", 1 << 30, *self.flags, *data, self.address, *arguments], stdin)


def lists(call, frames):
    services = call("list").split()
    expect({"camlens.v1.ExplainService", "camlens.v1.ModelService", "grpc.health.v1.Health"} <= set(services), services)


def describes(call, frames):
    text = call("describe", "camlens.v1.ExplainService")
    expect("rpc ExplainStream ( stream .camlens.v1.ExplainStreamRequest )" in text, text)
    expect("max_in_flight" in call("describe", "camlens.v1.Opened"), "Opened has no max_in_flight")


def calls(call, frames):
    request = json.dumps({"options": SMALL, "frame": frame(frames, 1)})
    answer = json.loads(call("camlens.v1.ExplainService/Explain", stdin=request))
    expect(len(answer["explanation"]["predictions"]) == 5, answer)


def streams(call, frames):
    messages = [{"open": {"options": SMALL, "policy": {"overflow": "OVERFLOW_BLOCK"}}}]
    messages += [{"frame": frame(frames, number, number)} for number in range(1, 11)]
    text = call("camlens.v1.ExplainService/ExplainStream", stdin="\n".join(json.dumps(one) for one in messages))
    decoder, at, kinds = json.JSONDecoder(), 0, []
    while at < len(text.rstrip()):
        one, at = decoder.raw_decode(text, at)
        at += len(text[at:]) - len(text[at:].lstrip())
        kinds += list(one)
    expect(kinds == ["opened"] + ["explanation"] * 10, kinds)


def health(transport):
    flags = {"plain": [], "unix": [], "tls": ["-tls", "-tls-ca-cert", transport.folder / "ca.crt"]}[transport.kind]
    address = transport.address
    for service in ("", "camlens.v1.ExplainService", "efficientnet-lite0"):
        run(["grpc-health-probe", "-addr", address, "-connect-timeout", "10s", "-service", service, *flags])
    # Exit code 3: there is no such service.
    run(["grpc-health-probe", "-addr", address, "-connect-timeout", "10s", "-service", "none", *flags], code=3)


def ghz(transport, frames):
    request = transport.folder / "request.json"
    request.write_text(json.dumps({"options": SMALL, "frame": frame(frames, 1)}))
    flags = {"plain": ["--insecure"], "unix": ["--insecure", "--authority", "localhost"],
             "tls": ["--cacert", transport.folder / "ca.crt", "-m", json.dumps({"authorization": f"Bearer {TOKEN}"})]}
    report = json.loads(run([
        "ghz", "--import-paths", PROTO, "--proto", PROTO / "camlens/v1/explain.proto", "--call",
        "camlens.v1.ExplainService.Explain", "--data-file", request, "-n", UNARY_CALLS, "-c", 4, "-O", "json",
        *flags[transport.kind], transport.address,
    ]))  # fmt: skip
    expect(report["statusCodeDistribution"] == {"OK": UNARY_CALLS}, report["statusCodeDistribution"])


def k6(transport, frames):
    """50 bidirectional streams at a time, each of which reads as many explanations as it sent frames."""
    environment = {
        "K6_NO_USAGE_REPORT": "true", "STREAMS": str(K6_STREAMS), "FRAMES": str(K6_FRAMES), "PROTO": str(PROTO),
        "PICTURE": str(frames / "0001.jpg"), "ADDRESS": transport.address, "TOKEN": TOKEN,
        "CA": str(transport.folder / "ca.crt") if transport.kind == "tls" else "",
    }  # fmt: skip
    summary = transport.folder / "k6.json"
    run(["k6", "run", "--quiet", "--no-color", f"--summary-export={summary}", ROOT / "tests/interop/streams.js"],
        environment=environment)  # fmt: skip
    metrics = json.loads(summary.read_text())["metrics"]
    counts = {name: metrics[name]["count"] for name in ("explained", "ended") if name in metrics}
    wanted = {"explained": K6_STREAMS * K6_FRAMES, "ended": K6_STREAMS}
    expect(counts == wanted, f"{counts}, not {wanted}")


def main():
    steps = {"grpcurl list": lists, "grpcurl describe": describes, "grpcurl call": calls, "grpcurl stream": streams}
    others = {"grpc-health-probe": lambda t, f: health(t), f"ghz, {UNARY_CALLS} calls": ghz,
              f"k6, {K6_STREAMS} streams": k6}  # fmt: skip
    names = {"plain": "plain", "tls": "TLS + token", "unix": "Unix socket"}
    table = Table("tool")
    with tempfile.TemporaryDirectory(prefix="camlens-", ignore_cleanup_errors=True) as folder:
        folder = pathlib.Path(folder)
        frames = folder_of_frames(folder / "frames", 10)
        for kind, name in names.items():
            transport = Transport(kind, folder / kind)
            transport.serve()
            for step, check in {**steps, **others}.items():
                if kind == "unix" and check is k6:
                    table.cells[step, name] = "– (k6 dials TCP alone)"
                    continue
                against = Grpcurl(transport) if step in steps else transport
                table.check(step, name, lambda: check(against, frames))
            transport.stop()
        table.end("tools.md")


if __name__ == "__main__":
    main()
