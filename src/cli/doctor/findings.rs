//! The findings of an examination, as text and as JSON.

use serde_json::{Value, json};

use crate::cli::terminal::Ink;
use crate::model::dimension::{self, Dimension};
use crate::model::{InputInfo, Metadata};

/// The result of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Good,
    /// The model works, but in a way that may be unexpected.
    Note,
    Bad,
}

/// One check: its name, its result, what was observed, and advice.
#[derive(Debug, Clone, PartialEq)]
pub struct Check {
    pub name: &'static str,
    pub verdict: Verdict,
    pub seen: String,
    /// Empty when there is nothing to do.
    pub advice: String,
}

/// All findings about one model.
#[derive(Debug)]
pub struct Findings {
    name: String,
    metadata: Option<Metadata>,
    checks: Vec<Check>,
    /// Median times of one row, in milliseconds: forward alone, and forward with all maps.
    times_ms: Option<(f64, f64)>,
}

impl Findings {
    pub fn new(name: String) -> Self {
        Findings { name, metadata: None, checks: Vec::new(), times_ms: None }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn describe(&mut self, metadata: Metadata) {
        self.metadata = Some(metadata);
    }

    pub fn time(&mut self, forward_ms: f64, explained_ms: f64) {
        self.times_ms = Some((forward_ms, explained_ms));
    }

    pub fn good(&mut self, name: &'static str, seen: impl Into<String>) {
        self.checks.push(Check { name, verdict: Verdict::Good, seen: seen.into(), advice: String::new() });
    }

    pub fn note(&mut self, name: &'static str, seen: impl Into<String>, advice: impl Into<String>) {
        self.checks.push(Check { name, verdict: Verdict::Note, seen: seen.into(), advice: advice.into() });
    }

    pub fn bad(&mut self, name: &'static str, seen: impl Into<String>, advice: impl Into<String>) {
        self.checks.push(Check { name, verdict: Verdict::Bad, seen: seen.into(), advice: advice.into() });
    }

    /// Records a measured difference: bad if it exceeds `allowed`.
    pub fn compare(&mut self, name: &'static str, difference: f64, allowed: f64, advice: &str) {
        let seen = format!("relative difference {difference:.1e}, at most {allowed:e} is allowed");
        // NaN compares as false and is bad.
        if difference <= allowed { self.good(name, seen) } else { self.bad(name, seen, advice) }
    }

    /// Whether no check is bad.
    pub fn fit(&self) -> bool {
        self.checks.iter().all(|check| check.verdict != Verdict::Bad)
    }

    /// Whether each request for a CAM has to name a target layer.
    fn needs_named_layer(&self) -> bool {
        self.metadata.as_ref().is_some_and(|model| model.default_target_problem.is_some())
    }

    pub fn text(&self, all_layers: bool, ink: Ink) -> String {
        let mut lines = vec![ink.bold(&self.name)];
        if let Some(model) = &self.metadata {
            describe(model, all_layers, ink, &mut lines);
        }
        for check in &self.checks {
            let mark = match check.verdict {
                Verdict::Good => ink.good("ok  "),
                Verdict::Note => ink.bold("note"),
                Verdict::Bad => ink.bad("BAD "),
            };
            lines.push(format!("  {mark} {:<22} {}", check.name, check.seen));
            if !check.advice.is_empty() {
                lines.push(format!("       {:<22} {}", "", check.advice));
            }
        }
        if let Some((forward, explained)) = self.times_ms {
            let ratio = explained / forward;
            lines.push(format!("  one row: forward {forward:.1} ms, with all maps {explained:.1} ms ({ratio:.1} ×)"));
        } else if self.metadata.is_some() {
            lines.push("  not timed: --runs 10 times it, and checks the kernels that a server chooses".to_owned());
        }
        lines.push(match (self.fit(), self.needs_named_layer()) {
            (true, false) => ink.good("  fit to be served"),
            (true, true) => ink.bold("  fit to be served only with a named layer"),
            (false, _) => ink.bad("  not fit to be served"),
        });
        lines.push(String::new());
        lines.iter().map(|line| format!("{line}\n")).collect()
    }

    pub fn json(&self, all_layers: bool) -> Value {
        let checks: Value = self
            .checks
            .iter()
            .map(|check| {
                let verdict = match check.verdict {
                    Verdict::Good => "good",
                    Verdict::Note => "note",
                    Verdict::Bad => "bad",
                };
                json!({"check": check.name, "verdict": verdict, "seen": check.seen, "advice": check.advice})
            })
            .collect();
        let model = self.metadata.as_ref().map(|model| {
            let layers: Value = shown(model, all_layers)
                .map(|layer| json!({"names": layer.names, "shape": layer.shape, "spatial": layer.spatial}))
                .collect();
            json!({
                "name": model.name,
                "version": model.version,
                "digest": model.digest,
                "class_count": model.class_count(),
                "label_count": model.labels.len(),
                "rectifiers": model.guided_operators(),
                "parameters": model.parameter_count,
                "default_target_layers": model.default_target_layers,
                "layers": layers,
            })
        });
        let times = self.times_ms.map(|(forward, explained)| json!({"forward": forward, "explained": explained}));
        json!({"model": model, "name": self.name, "fit": self.fit(), "checks": checks, "times_ms": times})
    }
}

fn describe(model: &Metadata, all_layers: bool, ink: Ink, lines: &mut Vec<String>) {
    lines.push(format!("  digest   {}", model.digest));
    lines.push(format!("  input    {} {}", model.input.name, allowed(&model.input)));
    for output in &model.outputs {
        let logits = if output.name == model.scores.output { ", explained" } else { "" };
        lines.push(format!("  output   {} {:?}{logits}", output.name, output.shape));
    }
    lines.push(format!(
        "  {} nodes, {:.1} million parameters, {} rectifiers, {} labels",
        model.node_count,
        model.parameter_count as f64 / 1e6,
        model.guided_operators(),
        model.labels.len()
    ));
    let shown: Vec<_> = shown(model, all_layers).collect();
    lines.push(format!("  layers   {} of {}", shown.len(), model.layers.len()));
    for layer in shown {
        lines.push(format!("    {:<44} {}", layer.names.join(", "), ink.faint(&format!("{:?}", layer.shape))));
    }
}

/// The shapes that the input may have, and the example's size where sizes vary.
fn allowed(input: &InputInfo) -> String {
    let order = if input.channels_last { " ([N, H, W, C] in the file)" } else { "" };
    let shape = format!("{}{order}", dimension::described_input(input.shape));
    let [_, _, height, width] = input.shape;
    match (height, width) {
        (Dimension::Fixed(_), Dimension::Fixed(_)) => shape,
        _ => format!("{shape}, exported with {}×{}", height.example(), width.example()),
    }
}

fn shown(model: &Metadata, all: bool) -> impl Iterator<Item = &crate::model::LayerInfo> {
    model.layers.iter().filter(move |layer| all || layer.spatial)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bad_check_makes_a_model_unfit_and_prints_its_advice() {
        let mut findings = Findings::new("net@1".to_owned());
        findings.good("load", "fine");
        findings.note("rectifiers", "none", "expect the plain gradient");
        assert!(findings.fit());
        findings.compare("rows", 0.5, 1e-4, "export it in eval mode");
        assert!(!findings.fit());
        let text = findings.text(false, Ink::plain());
        assert!(text.contains("BAD  rows") && text.contains("export it in eval mode"), "{text}");
        assert!(text.contains("not fit to be served"), "{text}");
        assert_eq!(findings.json(false)["checks"][2]["verdict"], "bad");
    }

    #[test]
    fn a_difference_of_nan_is_bad() {
        let mut findings = Findings::new("net@1".to_owned());
        findings.compare("logits", f64::NAN, 1.0, "");
        assert!(!findings.fit());
    }
}
