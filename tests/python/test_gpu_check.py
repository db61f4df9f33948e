"""`deploy/gpu-check`: its report, its distances, and its own definition of the maps beside the committed references."""

import json
import math
import shutil
import sys
import tarfile

import numpy as np
import pytest

from conftest import ROOT

sys.path.insert(0, str(ROOT / "deploy"))

from gpu_check import conformance, distances, environment, libraries, models, pack, report, setting  # noqa: E402

FIXTURES = ROOT / "tests/fixtures/conformance"


def check_with(*statuses):
    check = report.Check("speed", is_judged=True)
    for status in statuses:
        check.add("a figure", status)
    return check


def test_a_figure_beyond_its_target_fails_and_says_what_to_do():
    check = report.Check("speed", is_judged=True)
    check.judge("ratio", 3.0, "x", least=4, meaning="it is slow", advice="look at the stages")
    check.judge("growth", 3.0, "x", most=4, meaning="it grows", advice="look at the buffers")
    low, high = check.findings
    assert (low.status, high.status) == (report.FAILED, report.PASSED)
    assert "3 x, where >= 4 is wanted" in low.what and low.advice == "look at the stages"
    assert "do: look at the stages" in report.table(check)


def test_on_the_fake_device_figures_are_made_and_not_judged():
    check = report.Check("speed", is_judged=False)
    check.judge("ratio", 3.0, "x", least=4)
    assert check.findings[0].document() == {
        "name": "ratio", "status": report.NOT_JUDGED, "value": 3.0, "unit": "x", "target": ">= 4"
    }


def test_a_step_that_stops_is_a_finding_and_names_its_reason():
    check = report.Check("memory", is_judged=True)

    def raises(error):
        raise error

    check.attempt("peers", raises, report.CannotRun("there is no PyTorch"))
    check.attempt("server", raises, report.Trouble("it ended", "it cannot serve", "read the log"))
    check.attempt("answer", raises, KeyError("frames"))
    skipped, ended, broken = check.findings
    assert (skipped.status, skipped.what) == (report.NOT_RUN, "there is no PyTorch")
    assert (ended.status, ended.advice) == (report.FAILED, "read the log")
    assert broken.status == report.FAILED and "KeyError" in broken.what and broken.figures["traceback"]


@pytest.mark.parametrize(
    "statuses, passed",
    [
        ([report.PASSED, report.NOT_RUN, report.NOT_JUDGED], True),
        ([report.PASSED, report.FAILED], False),
        ([report.NOT_RUN, report.NOT_JUDGED], False),
        ([], False),
    ],
)
def test_a_run_passes_if_something_has_passed_and_nothing_has_failed(statuses, passed):
    document = report.document([check_with(*statuses)], seconds=1)
    assert document["passed"] is passed
    assert document["findings"][report.NOT_RUN] == statuses.count(report.NOT_RUN)


def test_distances_of_maps():
    wanted = np.array([3.0, 4.0])
    near = distances.distance([3.0, 4.5], wanted)
    assert near.relative_l2 == pytest.approx(0.1) and near.largest == pytest.approx(0.125)
    assert not near.is_within(distances.FLOAT32) and distances.distance(wanted, wanted).is_within(distances.FLOAT32)
    zero = np.zeros(2)
    assert distances.distance(zero, zero) == distances.Distance(0, 0, 1)
    assert not distances.distance([0, 1e-2], zero).is_within(distances.FLOAT32)
    assert not distances.distance([math.nan, 4.0], wanted).is_within(distances.REDUCED)
    with pytest.raises(ValueError, match="shape"):
        distances.distance(np.zeros(3), wanted)


def test_the_bound_follows_the_error_of_exact_float32_only_where_that_is_large():
    assert distances.allowed(1e-6) == distances.FLOAT32
    assert distances.allowed(2e-3) == distances.Bounds(6e-3, math.inf, 0.9999)


def test_a_map_out_of_bounds_fails_and_is_named():
    wanted, worst, check = np.array([3.0, 4.0]), conformance.Worst(), report.Check("conformance", is_judged=False)
    worst.add("grad_cam of coffee.png", distances.distance(wanted, wanted), distances.FLOAT32)
    worst.add("grad_cam of rocket.jpg", distances.distance(wanted + 0.01, wanted), distances.FLOAT32)
    worst.record(check, "lite0")
    (finding,) = check.findings
    assert finding.status == report.FAILED and "1 of 2 maps" in finding.what and "rocket.jpg" in finding.what
    assert "TF32" in finding.meaning and finding.figures["the_farthest"] == "grad_cam of rocket.jpg"


def test_logits_are_compared_class_by_class():
    assert distances.logits_agree({1: 10.0, 2: 5.0005}, {1: 10.0, 2: 5.0, 3: 1.0}) == (True, pytest.approx(5e-5))
    assert not distances.logits_agree({1: 10.01}, {1: 10.0})[0]
    assert not distances.logits_agree({4: 10.0}, {1: 10.0})[0]


def test_libraries_of_this_python_are_found_without_importing_torch(tmp_path, monkeypatch):
    for library in ("torch/lib/libtorch_cpu.so", "nvidia/cu13/lib/libcudart.so.13", "nvidia/cudnn/lib/libcudnn.so.9"):
        (tmp_path / library).parent.mkdir(parents=True)
        (tmp_path / library).touch()
    (tmp_path / "torch/__init__.py").write_text("raise ImportError\n")
    (tmp_path / "torch/version.py").write_text("__version__ = '2.11.0+cu130'\ncuda: Optional[str] = '13.0'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    expected = ["torch/lib", "nvidia/cu13/lib", "nvidia/cudnn/lib"]
    # NVIDIA's folder may have parts elsewhere.
    found = [folder for folder in libraries.library_folders() if folder.is_relative_to(tmp_path)]
    assert found == [tmp_path / name for name in expected]
    assert environment.cuda_of_torch() == "13.0"


def test_a_model_in_bfloat16_keeps_its_other_settings(tmp_path):
    about = setting.Setting(tmp_path, "cuda:0", None, None, True)
    about.has_torch = False
    networks = models.Networks(about)
    shelf = networks.shelf(models.LITE0, ("another", models.SMALL), precision="bfloat16")
    text = (shelf / models.LITE0 / "1/model.toml").read_text()
    assert 'target_layers = ["_bn1"]' in text and text.count('precision = "bfloat16"') == 1
    assert (shelf / models.LITE0 / "1/labels.txt").exists() and (shelf / "another/1/model.pt2").exists()
    assert "bfloat16" not in (setting.LITE0 / "1/model.toml").read_text()
    with pytest.raises(report.CannotRun, match="PyTorch"):
        networks.shelf(models.RESNET50)


@pytest.mark.skipif(shutil.which("strip") is None, reason="an archive needs strip")
def test_an_archive_holds_what_a_machine_with_a_card_needs_and_no_more(tmp_path, monkeypatch):
    for name in ("camlens", setting.BRIDGE):
        shutil.copy("/bin/true", tmp_path / name)
    monkeypatch.setattr(pack, "BINARY", tmp_path / "camlens")
    packed, unpacked = pack.pack(tmp_path / "out.tar")
    with tarfile.open(tmp_path / "out.tar") as archive:
        names = {name.removeprefix(f"{pack.TOP}/") for name in archive.getnames()}
    assert packed == (tmp_path / "out.tar").stat().st_size < unpacked
    assert {"deploy/gpu-check", "deploy/gpu_check/__main__.py", "target/release/camlens",
            "target/release/libcamlens_cuda.so", "deploy/models/efficientnet-lite0/1/model.pt2"} <= names
    assert not any("pycache" in name or "/." in name for name in names)
    monkeypatch.setattr(pack, "MOST_BYTES", 1000)
    with pytest.raises(pack.PackError, match="at most"):
        pack.pack(tmp_path / "out.tar")


# All in float32 with one output; no network of the check has a maximum with zeros, which the definition does not know.
CASES = ["clamps", "densenet", "functional_inplace", "mobilenet_v2", "resnet_basic", "resnet_bottleneck", "vgg_bn"]


@pytest.mark.parametrize("name", CASES)
def test_the_definition_gives_the_committed_references(name):
    torch = pytest.importorskip("torch", reason="the definition is PyTorch's autograd")
    from gpu_check import definition

    folder = FIXTURES / name / "reference"
    case = json.loads((folder / "case.json").read_text())
    arrays = np.load(folder / "arrays.npz")
    module = definition.loaded(str(FIXTURES / name / "1/model.pt2"))
    for row, target in enumerate(case["targets"]):
        x = torch.from_numpy(arrays["input"][row:row + 1]).double()
        found = definition.explain(module, x, target, case["layers"][0]["name"])
        for kind, wanted in (("guided_backprop", "R64"), ("heat", "0/L64")):
            reference = arrays[wanted][row].reshape(found[kind].shape)
            assert distances.distance(found[kind].numpy(), reference).relative_l2 < 1e-12, kind
        fused = distances.distance(found["guided_grad_cam"].numpy(), arrays["0/F"][row:row + 1])
        assert fused.is_within(distances.FLOAT32)
