"""A check on one screen: how the file was taken, findings by cause, and what to type next; or all of it as JSON."""

import sys
from collections.abc import Sequence
from typing import Any

from hina_kohya.check.finding import Finding, Level
from hina_kohya.check.hooks import Hooks
from hina_kohya.check.mending import Remedy
from hina_kohya.check.reading.source import Form
from hina_kohya.check.report import Report
from hina_kohya.check.run import Run
from hina_kohya.trainers.call_sites import Outcome

# Of one cause, and of causes: the rest is counted, or printed with --all.
_OF_ONE_CAUSE, _CAUSES = 5, 12
_WIDEST = 400
_PLAIN = (Level.NOTE, Level.NOT_LOOKED_AT)


def text(report: Report, everything: bool = False) -> list[str]:
    problems = [each for each in report.findings if each.level not in _PLAIN]
    groups = _by_cause(problems)
    causes = groups if everything else groups[:_CAUSES]
    lines = [*_heading(report), ""]
    history: list[Remedy] = []
    for group in causes:
        lines += [*_block(report, group, everything, history), ""]
    if rest := sum(map(len, groups[len(causes) :])):
        lines += [f"... and {rest:,} more; --all prints them", ""]
    for level in _PLAIN:
        plain = [each for each in report.findings if each.level is level]
        head = plain if everything else plain[:_OF_ONE_CAUSE]
        lines += [f"{level.value}: {_said(each)}" for each in head]
        lines += [f"{level.value}: {len(plain) - len(head):,} more"] if len(plain) > len(head) else []
        lines += [""] if plain else []
    return [_short(line) for line in (*lines, _summary(report))]


def next_step(report: Report, failed: bool) -> str:
    """What to type now; no launch line names a trainer that nobody named."""
    run = report.run
    if failed:
        return "next: correct it, and check again"
    if report.to_fill_in:
        return f"next: fill in {', '.join(report.to_fill_in)}"
    if run is None:
        return "next: check the training TOML that names it"
    if not run.trainer.certain:
        return "next: say which trainer it is for, with --script NAME"
    return f"next: {_start(report, run)}"


def _start(report: Report, run: Run) -> str:
    if report.source.form is not Form.TOML:
        return "start it in the GUI" if report.source.form is Form.KOHYA_SS else "start it"
    launcher = "hina-kohya launch" if run.launches else "accelerate launch"
    return f"{launcher} {run.trainer.script} --config_file {report.source.file}"


def as_json(report: Report, failed: bool, forecast: str | None) -> dict[str, Any]:
    """For programs: every finding, with its lines."""
    run = report.run
    return {
        "source": report.source.name,
        "form": report.source.form.value,
        "trainer": run.schema.trainer.name if run else None,
        "script": run.trainer.script if run else None,
        "certain": run.trainer.certain if run else None,
        "why": run.trainer.why if run else None,
        "findings": [_as_json(report, each) for each in report.findings],
        "to_fill_in": list(report.to_fill_in),
        "forecast": forecast,
        "next": next_step(report, failed).removeprefix("next: "),
        "exit_code": 1 if failed and not report.exit_code else report.exit_code,
    }


def _as_json(report: Report, finding: Finding) -> dict[str, Any]:
    remedy = report.remedy(finding)
    return {
        "level": finding.level.value,
        "rule": finding.rule,
        "key": finding.key,
        "what": finding.what,
        "because": finding.evidence,
        "advice": finding.advice,
        "lines": [{"do": verb, "line": line} for verb, line in (remedy.steps if remedy else ())],
    }


def _by_cause(findings: Sequence[Finding]) -> list[list[Finding]]:
    groups: dict[tuple[Level, str, str], list[Finding]] = {}
    for each in findings:
        groups.setdefault((each.level, each.rule, each.evidence), []).append(each)
    return list(groups.values())


def _block(report: Report, group: Sequence[Finding], everything: bool, history: list[Remedy]) -> list[str]:
    """history: changes that stand above; it grows"""
    head = group if everything else group[:_OF_ONE_CAUSE]
    lines = [f"{each.level.value}: {each.key}: {each.what}" for each in head]
    lines += [f"  and {len(group) - len(head):,} more like it"] if len(group) > len(head) else []
    lines += [f"  because  {group[0].evidence}"] if group[0].evidence else []
    remedies = [remedy for each in head if (remedy := report.remedy(each))]
    new = [each for place, each in enumerate(remedies) if each not in history and each not in remedies[:place]]
    lines += [f"  {verb:8s} {line}" for each in new for verb, line in each.steps]
    if remedies and not new:
        lines.append("  (a line above mends it, too)")
    history += new
    advice = [each.advice for each in head if each.advice and report.remedy(each) is None]
    return lines + [f"  then     {each}" for each in dict.fromkeys(advice)]


def _said(finding: Finding) -> str:
    advice = f" ({finding.advice})" if finding.advice else ""
    return f"{finding.key}: {finding.what}{advice}"


def _short(line: str) -> str:
    """A line that is one; the whole text is in the JSON."""
    line = " ".join(line.splitlines())
    return line if len(line) <= _WIDEST else f"{line[:_WIDEST]} ..."


def _heading(report: Report) -> list[str]:
    run = report.run
    if run is None:
        return [f"{report.source.name}: a file for dataset_config"]
    what = (
        report.source.name if report.source.form is Form.TOML else f"{report.source.name}: {report.source.form.value},"
    )
    lines = [f"{what} for {run.trainer.script} of {run.schema.trainer.name} ({run.trainer.why})"]
    lines.append(f"options of {run.schema.origin}")
    checkout = run.schema.checkout
    if checkout is not None and checkout.python != sys.executable:
        lines.append(f"packages were looked up in {sys.executable}, and that checkout has its own: {checkout.python}")
    return [*lines, _hooks(run.hooks)]


def _hooks(hooks: Hooks) -> str:
    if not hooks.installed:
        return "hina_kohya's hooks are not active"
    if hooks.site.outcome is Outcome.NOT_LOOKED_AT:
        return f"hina_kohya's hooks are installed ({hooks.why})"
    return f"hina_kohya's hooks: {hooks.site.outcome.value}, {hooks.why}; {hooks.site.why}"


def _summary(report: Report) -> str:
    counts = report.counts
    plural = {Level.ERROR, Level.WARNING, Level.NOTE}
    parts = [
        f"{counts[level]} {level.value}{'s' * (counts[level] > 1 and level in plural)}"
        for level in Level
        if counts[level]
    ]
    findings = [each for each in parts if not each.endswith(Level.NOT_LOOKED_AT.value)]
    if parts and not findings:
        return f"no findings in what was looked at; {parts[0]}"
    return ", ".join(parts) or "no findings"
