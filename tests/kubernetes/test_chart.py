"""The chart, without a cluster: what it renders is valid, agrees with its sources, and bad values are refused."""

import itertools
import json
import os
import pathlib
import re
import subprocess
import tomllib

import kubernetes_validate
import pytest
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy/chart"
VERSIONS = ["1.33", "1.34", "1.35", "1.36"]
# Custom resources: kubernetes-validate has no schemas of them; tests/kubernetes/run.sh asks an API server.
CUSTOM = {"PodMonitor", "ServiceMonitor", "PrometheusRule", "ScaledObject", "InferenceService"}
HELM = subprocess.run([ROOT / "deploy/tools", "helm"], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def helm(*arguments):
    environment = {**os.environ, "LC_ALL": "C"}
    return subprocess.run([HELM, *map(str, arguments)], capture_output=True, text=True, env=environment)


def render(*values, version="1.36", sets=(), chart=CHART):
    """The objects that the chart makes of these values files and `--set`s."""
    options = [option for file in values for option in ("--values", CHART / "examples" / f"{file}.yaml")]
    options += [option for one in sets for option in ("--set-json", one)]
    done = helm("template", "camlens", chart, "--namespace", "vision", "--kube-version", version, *options)
    assert done.returncode == 0, done.stderr
    return [made for made in yaml.safe_load_all(done.stdout) if made]


def refusal(*sets, version="1.36"):
    options = [option for one in sets for option in ("--set-json", one)]
    done = helm("template", "camlens", CHART, "--kube-version", version, *options)
    assert done.returncode != 0, f"accepted: {sets}"
    return done.stderr


def one(objects, kind):
    found = [made for made in objects if made["kind"] == kind]
    assert len(found) == 1, f"{len(found)} objects of kind {kind}"
    return found[0]


def pod_of(objects):
    """The pod's specification, and the container of camlens."""
    for made in objects:
        if made["kind"] in ("Deployment", "InferenceService"):
            pod = made["spec"]["template"]["spec"] if made["kind"] == "Deployment" else made["spec"]["predictor"]
            containers = pod.get("initContainers", []) + pod.get("containers", [])
            return pod, next(c for c in containers if c["name"] == "camlens")
    raise AssertionError("no pod")


EXAMPLES = ["bare", "triton", "kserve", "standalone"]
DEVICES = {"cpu": [], "gpu": ["gpu"]}
SECURITY = {"plain": ["tls={}", 'insecure=true', "tokens={}"],
            "tls": ['tls.secret="camlens-tls"', 'tls.clientCaKey="ca.crt"', 'tokens.secret="camlens-tokens"',
                    'listen.scope="pod"']}
# What else changes the shape of the objects.
SHAPES = {
    "models-included": ['models.source="included"'],
    "models-image": ['models.source="image"', 'models.image.reference="registry.example/models:1"'],
    "models-fetched": ['models.source="initContainer"', 'models.initContainer.image="fetch:1"',
                       'models.initContainer.args=["/models"]'],
    "grpc-probes": ['probes.protocol="grpc"'],
    "not-held": ["probes.holdPod=false"],
    "no-cache-no-socket": ["cache.enabled=false", "listen.socket=false"],
    "shm": ["shm.enabled=true", "server.mountModels=true"],
    "policy": ["networkPolicy.enabled=true", 'networkPolicy.ingress=[{"ports": [{"port": 8000}]}]'],
    "mps": ["gpu.enabled=true", 'gpu.sharing="mps"', "gpu.mpsActiveThreadPercentage=25", 'gpu.memoryLimit="6GiB"'],
    "mig": ["gpu.enabled=true", 'gpu.sharing="mig"', 'gpu.resource="nvidia.com/mig-1g.10gb"'],
    "claim": ["gpu.enabled=true", 'gpu.sharing="claim"', 'gpu.claimTemplate="card"', 'gpu.memoryLimit="25%"'],
    "config": ["config={\"limits\": {\"max_batch\": 4}, \"server\": {\"max_connections\": 8192}}"],
    "cpu-limit": ['resources.limits.cpu="2"', "background=false"],
}


def validate(objects, version):
    for made in objects:
        if made["kind"] not in CUSTOM:
            kubernetes_validate.validate(made, version, strict=True)


@pytest.mark.parametrize("example, device, security", itertools.product(EXAMPLES, DEVICES, SECURITY))
def test_each_mode_device_and_security_is_valid_in_every_version(example, device, security):
    for version in VERSIONS:
        validate(render(example, *DEVICES[device], version=version, sets=SECURITY[security]), version)


@pytest.mark.parametrize("shape", SHAPES)
def test_each_shape_is_valid(shape):
    for example in ("bare", "standalone", "kserve"):
        validate(render(example, sets=SHAPES[shape]), "1.36")


@pytest.mark.parametrize("kind", ["hpa", "keda"])
def test_an_autoscaled_deployment_has_no_replicas(kind):
    objects = render("bare", sets=[f'autoscaling.kind="{kind}"', 'autoscaling.prometheus="http://prometheus:9090"'])
    validate(objects, "1.36")
    assert "replicas" not in one(objects, "Deployment")["spec"]
    assert one(objects, {"hpa": "HorizontalPodAutoscaler", "keda": "ScaledObject"}[kind])
    assert one(render("bare"), "Deployment")["spec"]["replicas"] == 1


def test_camlens_is_a_native_sidecar_of_a_restricted_pod():
    for example in ("bare", "triton", "kserve"):
        pod, camlens = pod_of(render(example))
        assert camlens["restartPolicy"] == "Always"
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        context = camlens["securityContext"]
        assert context["readOnlyRootFilesystem"] and context["capabilities"] == {"drop": ["ALL"]}
        assert context["allowPrivilegeEscalation"] is False and context["runAsUser"] == 65532
        assert not any("hostPath" in volume for volume in pod["volumes"])


def test_every_mount_has_its_volume():
    for example, sets in itertools.product(EXAMPLES, SHAPES.values()):
        pod, _ = pod_of(render(example, sets=sets))
        volumes = [volume["name"] for volume in pod["volumes"]]
        assert len(set(volumes)) == len(volumes)
        containers = pod.get("initContainers", []) + pod.get("containers", []) + [pod.get("model", {})]
        mounted = {mount["name"] for container in containers for mount in container.get("volumeMounts", [])}
        assert mounted <= set(volumes), f"{example}: {mounted - set(volumes)}"


def test_camlens_port_names_are_its_own():
    """A model server has ports of names such as grpc, and a probe by name would ask the first of them."""
    for example in EXAMPLES:
        _, camlens = pod_of(render(example, sets=SECURITY["tls"]))
        assert all(port["name"].startswith("camlens-") for port in camlens["ports"])


def test_the_grace_period_holds_the_servers_end_and_the_drain():
    shutdown = {"settleSeconds": 7, "drainSeconds": 11, "serverSeconds": 40}
    pod, camlens = pod_of(render("bare", sets=[f"shutdown={json.dumps(shutdown)}"]))
    assert camlens["lifecycle"]["preStop"] == {"sleep": {"seconds": 7}}
    assert pod["terminationGracePeriodSeconds"] >= 40 + 11
    assert configuration(render("bare", sets=["shutdown.drainSeconds=11"]))["server"]["drain_timeout_s"] == 11


def configuration(objects):
    return tomllib.loads(next(o for o in objects if o["kind"] == "ConfigMap")["data"]["camlens.toml"])


def test_the_configuration_has_only_keys_that_camlens_knows():
    known = settings()
    for example, sets in itertools.product(EXAMPLES, SHAPES.values()):
        for section, keys in configuration(render(example, sets=sets)).items():
            for key in keys:
                assert key in known[section] or key == "tls", f"{section}.{key}"


def settings():
    """The settings of the block of camlens.toml in deploy/README.md, which a test of camlens compares with its own."""
    block = re.search(r"```toml\n(\[server\].*?)```", (ROOT / "deploy/README.md").read_text(), re.S)[1]
    found, section = {}, None
    for line in block.split("\n"):
        if head := re.match(r"\[([\w.]+)\]", line):
            section = found.setdefault(head[1], set())
        elif key := re.match(r"(?:# )?(\w+) = ", line):
            section.add(key[1])
    return found


def test_config_takes_every_setting_that_no_value_makes():
    known = settings()
    schema = json.loads((CHART / "values.schema.json").read_text())["properties"]["config"]["properties"]
    by_values = {"server": {"listen", "insecure", "token_file", "drain_timeout_s"}, "models": {"repository"},
                 "device": {"name", "libraries", "memory_limit", "background", "cache"}, "telemetry": {"otlp_endpoint"}}
    # The keys of device.models are names of models.
    assert "device.models" in schema
    for section, keys in known.items():
        if section not in ("server.tls", "probes", "device.models"):
            assert set(schema[section]["properties"]) == keys - by_values.get(section, set()), section


def test_config_wins_over_what_the_chart_sets_and_keeps_whole_numbers_whole():
    made = configuration(render("standalone", sets=['config={"server": {"max_connection_age_s": 60}, '
                                                    '"limits": {"queued_bytes": 2147483648}}']))
    assert made["server"]["max_connection_age_s"] == 60
    assert made["limits"]["queued_bytes"] == 2147483648 and isinstance(made["limits"]["queued_bytes"], int)


def test_a_new_configuration_rolls_the_pods():
    def checksum(*sets):
        template = one(render("bare", sets=sets), "Deployment")["spec"]["template"]
        return template["metadata"]["annotations"]["checksum/camlens.toml"]

    assert checksum() != checksum("config={\"limits\": {\"max_batch\": 4}}")


def test_alerts_and_dashboard_are_those_of_deploy():
    objects = render("standalone")
    alerts = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yaml").read_text())
    assert one(objects, "PrometheusRule")["spec"] == alerts
    boards = [o for o in objects if o["kind"] == "ConfigMap" and "camlens.json" in o["data"]]
    board = json.loads((ROOT / "deploy/grafana/camlens.json").read_text())
    assert json.loads(boards[0]["data"]["camlens.json"]) == board


def test_templates_serve_another_chart(tmp_path):
    """A chart that depends on this one, as README.md shows it."""
    (tmp_path / "templates").mkdir()
    dependency = f'[{{name: camlens, version: {version()}, repository: "file://{CHART}"}}]'
    (tmp_path / "Chart.yaml").write_text(f"apiVersion: v2\nname: server\nversion: 1.0.0\ndependencies: {dependency}\n")
    readme = (CHART / "README.md").read_text().split("## In a chart of your own")[1].split("## Values")[0]
    values, template = re.findall(r"```yaml\n(.*?)```", readme, re.S)
    (tmp_path / "values.yaml").write_text(values.split("# values.yaml\n")[1])
    body = "apiVersion: v1\nkind: Pod\n" + template.replace("- name: server", "- name: server\n      image: server:1")
    body = body.replace("metadata:\n", "metadata:\n  name: server\n")
    (tmp_path / "templates/pod.yaml").write_text(body)
    assert helm("dependency", "update", tmp_path).returncode == 0
    objects = render(chart=tmp_path)
    validate(objects, "1.36")
    pod = one(objects, "Pod")["spec"]
    assert pod["initContainers"][0]["restartPolicy"] == "Always"
    assert {m["name"] for m in pod["containers"][0]["volumeMounts"]} == {"camlens-socket"}
    assert not [made for made in objects if made["kind"] == "Deployment"]


def version():
    return re.search(r'^version = "(.*)"', (ROOT / "Cargo.toml").read_text(), re.M)[1]


def test_the_chart_has_camlens_version():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == version()


def test_plain_manifests_and_the_table_of_values_are_current():
    assert subprocess.run([ROOT / "deploy/manifests/render", "--check"]).returncode == 0
    assert subprocess.run([CHART / "table"]).returncode == 0


def test_helm_lint_finds_nothing():
    for example in EXAMPLES:
        done = helm("lint", "--strict", CHART, "--values", CHART / "examples" / f"{example}.yaml")
        assert done.returncode == 0, done.stdout + done.stderr


MISTAKES = {
    # by the schema: where, and what is wrong there
    'replica=2': "additional properties 'replica' not allowed",
    'models.clam={"name": "x"}': "at '/models': additional properties 'clam' not allowed",
    'mode="side-car"': "at '/mode': value must be one of 'standalone', 'sidecar', 'kserve', 'library'",
    'listen.port="grpc"': "at '/listen/port': got string, want integer",
    'probes.port=70000': "at '/probes/port': maximum: got 70,000, want 65,535",
    'resources.requests.memory="512MB"': "at '/resources/requests/memory': '512MB' does not match pattern",
    'gpu.memoryLimit="6GB"': "at '/gpu/memoryLimit': '6GB' does not match pattern",
    'image.digest="latest"': "at '/image/digest': 'latest' does not match pattern",
    'config={"limits": {"max_batsh": 4}}': "at '/config/limits': additional properties 'max_batsh' not allowed",
    'config={"device.models": {"m": "cpu"}}': "at '/config/device.models/m': 'cpu' does not match pattern",
    'config={"server": {"insecure": true}}': "at '/config/server': additional properties 'insecure' not allowed",
    'telemetry.traceRatio=2': "at '/telemetry/traceRatio': maximum: got 2, want 1",
    'shutdown.settleSeconds=0': "at '/shutdown/settleSeconds': minimum: got 0, want 1",
    # by the templates: values that contradict each other
    'insecure=false': "camlens would serve beyond loopback in plaintext: set tls.secret, or insecure: true",
    'mode="sidecar"': "mode: sidecar needs server.containers",
    'mode="kserve"': "mode: kserve needs kserve.predictor",
    'models.source="claim"': "models.source: claim needs models.claim.name",
    'models.source="initContainer"': "models.source: initContainer needs models.initContainer.image",
    'gpu={"enabled": true, "sharing": "time-slicing"}': "gpu.sharing: time-slicing needs gpu.memoryLimit",
    'gpu={"enabled": true, "sharing": "mig"}': "gpu.sharing: mig needs a slice as gpu.resource",
    'gpu={"enabled": true, "mpsActiveThreadPercentage": 50}': "needs gpu.sharing: mps, not exclusive",
    'autoscaling={"kind": "keda"}': "autoscaling.kind: keda needs autoscaling.prometheus",
    'autoscaling={"kind": "hpa", "minReplicas": 0}': "a HorizontalPodAutoscaler keeps at least 1 pod",
    'autoscaling={"kind": "hpa", "minReplicas": 5, "maxReplicas": 2}': "autoscaling.minReplicas is more than",
    'rollout={"maxSurge": 0}': "no pod could ever be replaced",
    'probes.port=8033': "listen.port and probes.port are the same",
    'tls.clientCaKey="ca.crt"': "tls.clientCaKey needs tls.secret",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_values_is_refused_in_a_sentence(mistake):
    others = [] if mistake == "insecure=false" else ["insecure=true"]
    assert MISTAKES[mistake] in refusal(*others, mistake)


def test_what_a_version_of_kubernetes_lacks_is_refused():
    image = ['insecure=true', 'models.source="image"', 'models.image.reference="models:1"']
    assert "models.source: image needs Kubernetes 1.35 or later" in refusal(*image, version="1.34")
    claim = ['insecure=true', 'gpu={"enabled": true, "sharing": "claim", "claimTemplate": "x", "memoryLimit": "25%"}']
    assert "gpu.sharing: claim needs Kubernetes 1.34 or later" in refusal(*claim, version="1.33")
