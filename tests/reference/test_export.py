"""Runs `deploy/export` as a user does, and `camlens doctor` on the result. Called by tests/reference/full.sh."""

import os
import pathlib
import subprocess
import sys
import tempfile
import textwrap
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
CAMLENS = ROOT / "target/release/camlens"

NETWORKS = textwrap.dedent("""
    import torch
    from torch import nn

    def weld_inspector():
        torch.manual_seed(3)
        return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2),
                             nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1),
                             nn.Flatten(), nn.Linear(16, 3))

    class Standardised(nn.Module):
        """Standardises its weights by a batch normalisation in training mode, in an autocast block that is off."""

        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4)

        def forward(self, x):
            with torch.autocast("cpu", enabled=False):
                w = self.conv.weight
                w = nn.functional.batch_norm(w.reshape(1, 8, -1), None, None, training=True).reshape_as(w)
                x = torch.relu(nn.functional.conv2d(x, w, padding=1))
            return self.fc(x.mean((2, 3)))

    class Autocast(Standardised):
        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16):
                return self.fc(self.conv(x).mean((2, 3)))

    class Branching(nn.Module):
        def forward(self, x):
            return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))

    not_a_model = 3
""")


class Export(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        (self.folder / "networks.py").write_text(NETWORKS)
        (self.folder / "labels.txt").write_text("sound\ncrack\npore\n")

    def run_here(self, *command):
        environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=600)

    def export(self, *arguments):
        return self.run_here(ROOT / "deploy/export", *arguments)

    def assert_doctor_is_content(self, *needles):
        seen = self.run_here(CAMLENS, "doctor", "models/m")
        self.assertEqual(seen.returncode, 0, seen.stdout + seen.stderr)
        for needle in needles:
            self.assertIn(needle, seen.stdout)

    def test_a_network_of_ones_own_is_exported_and_explained(self):
        done = self.export("networks.py:weld_inspector", "--input", "1x96x128", "--mean", "0.5", "--std", "0.25",
                           "--labels", "labels.txt", "--out", "models/m/1")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assert_doctor_is_content("PyTorch")
        seen = self.run_here(
            CAMLENS, "explain", ROOT / "deploy/demo-assets/photographs/coffee.png", "--models", "models", "--out", "out"
        )
        self.assertEqual(seen.returncode, 0, seen.stderr)
        self.assertTrue(any(label in seen.stdout for label in ("sound", "crack", "pore")), seen.stdout)
        self.assertTrue((self.folder / "out/coffee.overlay.png").is_file())
        self.assertNotIn(str(self.folder).encode(), (self.folder / "models/m/1/model.pt2").read_bytes())

    def test_what_camlens_inlines_and_folds_is_exported(self):
        done = self.export("networks.py:Standardised", "--input", "3x32x32", "--out", "models/m/1")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assert_doctor_is_content("PyTorch")

    def test_torchvision_by_name_needs_no_size(self):
        for name in ("mobilenet_v2", "vit_b_16"):
            with self.subTest(name):
                done = self.export(f"torchvision:{name}", "--weights", "none", "--out", "models/m/1", "--force")
                self.assertEqual(done.returncode, 0, done.stderr)
                self.assert_doctor_is_content("PyTorch")

    def test_a_checkpoint_of_timm_or_torchvision_brings_its_own_classes(self):
        make = textwrap.dedent("""
            import timm, torch, torchvision
            torch.manual_seed(5)
            model = timm.create_model("resnet18", num_classes=3)
            torch.save({"epoch": 7, "state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, "t.pth")
            torch.save(torchvision.models.resnet18(num_classes=3).state_dict(), "v.pth")
            torch.save(model, "whole.pth")
        """)
        made = self.run_here(sys.executable, "-c", make)
        self.assertEqual(made.returncode, 0, made.stderr)
        for name, file in (("timm:resnet18", "t.pth"), ("torchvision:resnet18", "v.pth")):
            with self.subTest(name):
                done = self.export(name, "--checkpoint", file, "--classes", "3", "--labels", "labels.txt",
                                   "--out", "models/m/1", "--force")
                self.assertEqual(done.returncode, 0, done.stderr)
                self.assert_doctor_is_content("PyTorch")
        for arguments, word in [
            (["timm:resnet18", "--checkpoint", "whole.pth", "--classes", "3"], "state_dict"),
            (["timm:resnet18", "--checkpoint", "t.pth"], "--classes"),
            (["timm:resnet34", "--checkpoint", "t.pth", "--classes", "3"], "missing"),
            (["timm:resnet18", "--classes", "3"], "--checkpoint"),
            (["networks.py:weld_inspector", "--checkpoint", "t.pth"], "build()"),
            (["timm:resnet19", "--checkpoint", "t.pth"], "resnet18"),
        ]:
            with self.subTest(arguments):
                done = self.export(*arguments, "--out", "models/n/1")
                self.assertNotEqual(done.returncode, 0)
                self.assertIn(word, done.stderr)
                self.assertNotIn("Traceback", done.stderr)

    def test_what_timm_prepares_is_written(self):
        done = self.export("timm:vit_tiny_patch16_224", "--weights", "none", "--out", "models/m/1")
        self.assertEqual(done.returncode, 0, done.stderr)
        text = (self.folder / "models/m/1/model.toml").read_text()
        for line in ("resize = 248", "crop = [224, 224]", 'interpolation = "bicubic"', "token_grid = [14, 14]"):
            self.assertIn(line, text)
        self.assert_doctor_is_content("PyTorch")

    def test_what_cannot_be_exported_is_told_in_a_sentence(self):
        for arguments, word in [
            (["networks.py:Autocast", "--input", "3x32x32", "--out", "models/m/1"], "autocast"),
            (["networks.py:Branching", "--input", "3x32x32", "--out", "models/m/1"], "branch"),
            (["networks.py:not_a_model", "--input", "3x32x32", "--out", "models/m/1"], "nn.Module"),
            (["networks.py:missing", "--input", "3x32x32", "--out", "models/m/1"], "weld_inspector"),
            (["nowhere.py:net", "--input", "3x32x32", "--out", "models/m/1"], "nowhere.py"),
            (["torchvision:resnet51", "--out", "models/m/1"], "resnet50"),
            (["networks.py:weld_inspector", "--out", "models/m/1"], "--input"),
            (["networks.py:weld_inspector", "--input", "3x32x32", "--out", "models/m/1"], "channels"),
        ]:
            with self.subTest(arguments[0]):
                done = self.export(*arguments)
                self.assertNotEqual(done.returncode, 0)
                self.assertIn(word, done.stderr)
                self.assertNotIn("Traceback", done.stderr)
                self.assertFalse((self.folder / "models/m/1/model.pt2").exists())


if __name__ == "__main__":
    unittest.main()
