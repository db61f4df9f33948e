"""deploy/kubernetes.md: each failure names a test that exists, and each alert has its first look."""

import pathlib
import re
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "deploy/kubernetes.md").read_text(encoding="utf-8")


def rows(heading):
    section = GUIDE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[1:]]


def steps(script):
    listed = subprocess.run([ROOT / script, "--list"], capture_output=True, text=True, check=True)
    return listed.stdout.split()


def test_each_failure_names_a_test_that_exists():
    tests = set()
    for folder in ("src", "tests"):
        for path in (ROOT / folder).rglob("*.rs"):
            tests.update(re.findall(r"\bfn (\w+)\(", path.read_text(encoding="utf-8")))
    failures = rows("What happens when something dies")
    assert len(failures) >= 14
    for dies, _, shown in failures:
        named = re.findall(r"`([^`]+)`", shown)
        assert named, f"nothing shows what happens when this dies: {dies}"
        for one in named:
            script, *wanted = one.split()
            if script.endswith(".sh"):
                assert wanted and set(wanted) <= set(steps(script)), f"{dies}: {one}"
            elif "/" in script:
                assert (ROOT / script).is_file() and "#[tokio::test" in (ROOT / script).read_text(), f"{dies}: {one}"
            else:
                assert script in tests, f"{dies}: there is no test {script}"


def test_each_alert_has_its_first_look():
    alerts = re.findall(r"- alert: (\w+)", (ROOT / "deploy/prometheus/alerts.yaml").read_text(encoding="utf-8"))
    rows = re.findall(r"^\| ((?:`Camlens\w+`(?:, )?)+) \|", GUIDE, re.M)
    assert alerts and sorted(alerts) == sorted(re.findall(r"`(\w+)`", " ".join(rows)))
