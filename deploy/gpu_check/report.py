"""What was found, as one JSON document and as a table."""

import dataclasses
import math
import time
import traceback

PASSED, FAILED, NOT_RUN, NOT_JUDGED = "passed", "failed", "not run", "not judged"
SCHEMA = "camlens.gpu-check/1"


class Trouble(Exception):
    """Something that a check cannot go on from: what failed, what that means, what to do."""

    def __init__(self, what, meaning="", advice=""):
        super().__init__(what)
        self.what, self.meaning, self.advice = what, meaning, advice


class CannotRun(Exception):
    """Why something could not be run here."""


@dataclasses.dataclass
class Finding:
    name: str
    status: str
    value: float | None = None
    unit: str = ""
    target: str = ""
    what: str = ""
    meaning: str = ""
    advice: str = ""
    figures: dict = dataclasses.field(default_factory=dict)

    def document(self):
        """The fields that say something; a value of 0 does."""
        fields = plain(dataclasses.asdict(self))
        return {name: value for name, value in fields.items() if value is not None and value not in ("", {})}


def plain(value):
    """The same for JSON, which has no infinity."""
    if isinstance(value, dict):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


class Check:
    """One check's findings. With `is_judged` false, figures of speed and memory are made and not judged."""

    def __init__(self, name, is_judged):
        self.name, self.is_judged = name, is_judged
        self.findings = []
        self.began, self.seconds = time.monotonic(), 0.0

    def add(self, name, status, **fields):
        self.findings.append(Finding(name, status, **fields))

    def passed(self, name, **fields):
        self.add(name, PASSED, **fields)

    def failed(self, name, what, meaning="", advice="", **fields):
        self.add(name, FAILED, what=what, meaning=meaning, advice=advice, **fields)

    def not_run(self, name, reason):
        self.add(name, NOT_RUN, what=str(reason))

    def figure(self, name, value, unit, **fields):
        """A figure without a target."""
        self.add(name, NOT_JUDGED, value=value, unit=unit, **fields)

    def judge(self, name, value, unit, *, least=None, most=None, meaning="", advice="", **fields):
        """A figure with a target: at least, or at most, so much."""
        target = f">= {least:g}" if least is not None else f"<= {most:g}"
        fields |= {"value": value, "unit": unit, "target": target}
        if not self.is_judged:
            self.add(name, NOT_JUDGED, **fields)
        elif value >= least if least is not None else value <= most:
            self.passed(name, **fields)
        else:
            self.failed(name, f"{value:.4g} {unit}, where {target} is wanted", meaning, advice, **fields)

    def demand(self, name, is_met, what, meaning, advice, **fields):
        """Something that must hold on any device."""
        if is_met:
            self.passed(name, **fields)
        else:
            self.failed(name, what, meaning, advice, **fields)

    def attempt(self, name, step, *arguments):
        """Runs a step that records its own findings; what stops it is a finding, and the next step still runs."""
        try:
            step(*arguments)
        except CannotRun as reason:
            self.not_run(name, reason)
        except Trouble as trouble:
            self.failed(name, trouble.what, trouble.meaning, trouble.advice)
        except Exception as error:      # the next checks still run, and this one has failed
            self.failed(
                name,
                f"{type(error).__name__}: {error}",
                "the check met something that it does not expect",
                "report it with the lines in figures.traceback",
                figures={"traceback": traceback.format_exc().splitlines()[-12:]},
            )

    def close(self):
        self.seconds = time.monotonic() - self.began

    @property
    def status(self):
        found = {finding.status for finding in self.findings}
        return next((status for status in (FAILED, PASSED, NOT_JUDGED) if status in found), NOT_RUN)

    def document(self):
        return {
            "name": self.name,
            "status": self.status,
            "seconds": round(self.seconds, 1),
            "findings": [finding.document() for finding in self.findings],
        }


def has_passed(checks):
    """Whether everything that could run has passed, and something has."""
    return any(check.status == PASSED for check in checks) and all(check.status != FAILED for check in checks)


def document(checks, **about):
    counts = {status: 0 for status in (PASSED, FAILED, NOT_RUN, NOT_JUDGED)}
    for finding in (finding for check in checks for finding in check.findings):
        counts[finding.status] += 1
    listed = [check.document() for check in checks]
    return {"schema": SCHEMA, "passed": has_passed(checks), **about, "findings": counts, "checks": listed}


def shown(value):
    """A figure with four digits that count."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def table(check):
    """The findings as lines of text; what failed, or was not run, says why below its line."""
    lines = [f"{check.name}: {check.status} ({check.seconds:.0f} s)"]
    for finding in check.findings:
        figure = f"{shown(finding.value)} {finding.unit}".strip()
        target = f"({finding.target})" if finding.target else ""
        lines.append(f"  {finding.status:<10}  {finding.name:<64}  {figure:<16} {target}".rstrip())
        for said in filter(None, (finding.what, finding.meaning, finding.advice and f"do: {finding.advice}")):
            lines.append(f"  {'':<10}    {said}")
    return "\n".join(lines)
