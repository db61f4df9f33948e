//! `camlens models`: the models that a server serves, and their layers; and what a server does with its repository.

mod repository;

use std::io::{self, Write};

use clap::Args;
use serde_json::{Value, json};

use self::repository::Administer;
use super::answer::identity_json;
use super::connection::{ConnectArgs, Connection};
use super::failure::Failure;
use super::options::ModelName;
use super::terminal::Ink;
use crate::client;
use crate::model::dimension::{self, Dimension, Sizes};
use crate::proto::v1;

/// List the models, show one model with its layers, or load and unload the models of a server
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    disable_help_subcommand = true,
    after_help = "\
Examples:
  camlens models
  camlens models lite0
  camlens models lite0@1 --layers --json
  camlens models repository --admin 127.0.0.1:9464
  camlens models reload lite0 --admin 127.0.0.1:9464"
)]
pub struct ModelsCommand {
    #[command(subcommand)]
    administer: Option<Administer>,

    /// Model to show, in its newest version or in VERSION [default: list all models]
    #[arg(value_name = "NAME[@VERSION]")]
    model: Option<ModelName>,

    /// Show every layer, not only those that can be target layers of Grad-CAM
    #[arg(long, env = "CAMLENS_LAYERS", value_parser = clap::builder::FalseyValueParser::new())]
    layers: bool,

    /// Print JSON instead of text
    #[arg(long, env = "CAMLENS_JSON", value_parser = clap::builder::FalseyValueParser::new())]
    json: bool,

    #[command(flatten)]
    connect: ConnectArgs,
}

impl ModelsCommand {
    pub fn run(self) -> Result<(), Failure> {
        if let Some(administer) = self.administer {
            return super::runtime()?.block_on(administer.run());
        }
        super::runtime()?.block_on(async {
            let connection = Connection::open(&self.connect).await?;
            let mut client = client::model_client(connection.channel());
            let output = match &self.model {
                Some(model) => {
                    let request = v1::GetModelRequest { model: Some(model.selector()) };
                    let response = client.get_model(request).await;
                    let response =
                        response.map_err(|status| Failure::from_status(&format!("show {}", model.name), &status))?;
                    let metadata = response.into_inner().metadata.unwrap_or_default();
                    if self.json {
                        format!("{:#}\n", model_json(&metadata, self.layers))
                    } else {
                        model_text(&metadata, self.layers, Ink::for_stdout())
                    }
                }
                None => {
                    let response = client.list_models(v1::ListModelsRequest {}).await;
                    let response = response.map_err(|status| Failure::from_status("list models", &status))?;
                    let v1::ListModelsResponse { models, problems } = response.into_inner();
                    if self.json {
                        format!("{:#}\n", list_json(&models))
                    } else {
                        list_text(&models, &problems, Ink::for_stdout())
                    }
                }
            };
            Ok(io::stdout().lock().write_all(output.as_bytes())?)
        })
    }
}

fn list_text(models: &[v1::ModelSummary], problems: &[v1::ModelProblem], ink: Ink) -> String {
    let problem = |problem: &v1::ModelProblem| {
        let name = problem.version.map_or_else(|| problem.name.clone(), |v| format!("{}@{v}", problem.name));
        format!("{}  cannot be served: {}\n", ink.bold(&format!("{name:<24}")), problem.reason)
    };
    let problems: String = problems.iter().map(problem).collect();
    if models.is_empty() {
        return format!("no model is served\n{problems}");
    }
    let line = |model: &v1::ModelSummary| {
        let name = format!("{}@{}", model.name, model.version);
        let classes = model.class_count.map_or_else(|| "?".to_owned(), |count| count.to_string());
        let digest: String = model.digest.chars().take(12).collect();
        format!(
            "{}  {classes:>6} classes  {}  {}\n",
            ink.bold(&format!("{name:<24}")),
            ink.faint(&digest),
            model.summary
        )
    };
    models.iter().map(line).chain([problems]).collect()
}

fn list_json(models: &[v1::ModelSummary]) -> Value {
    let model = |model: &v1::ModelSummary| {
        json!({
            "name": model.name,
            "version": model.version,
            "digest": model.digest,
            "summary": model.summary,
            "class_count": model.class_count,
        })
    };
    models.iter().map(model).collect()
}

fn model_text(model: &v1::ModelMetadata, all_layers: bool, ink: Ink) -> String {
    let identity = model.identity.clone().unwrap_or_default();
    let mut lines = vec![ink.bold(&format!("{}@{}", identity.name, identity.version))];
    let mut fact = |name: &str, value: String| lines.push(format!("  {name:<14} {value}"));
    if !model.summary.is_empty() {
        fact("summary", model.summary.clone());
    }
    fact("digest", identity.digest.clone());
    if let Some(input) = &model.input {
        fact("input", format!("{} {} {}", input.name, input.element_type, dimensions(&input.shape)));
    }
    for output in &model.outputs {
        fact("output", format!("{} {}", output.name, dimensions(&output.shape)));
    }
    fact("classes", model.class_count.map_or_else(|| "unknown before the first frame".to_owned(), |c| c.to_string()));
    fact("labels", if model.labels.is_empty() { "none".to_owned() } else { model.labels.len().to_string() });
    fact(
        "rectifiers",
        match model.rectifier_count {
            0 => "none: guided backpropagation is the plain gradient".to_owned(),
            count => count.to_string(),
        },
    );
    if !model.unguided_gates.is_empty() {
        fact("not guided", model.unguided_gates.join(", "));
    }
    fact(
        "target layer",
        match model.default_target_layers.as_slice() {
            [] => format!("none by default: {}", model.default_target_problem),
            layers => layers.join(", "),
        },
    );
    let precision = crate::client::names::precision(identity.precision);
    fact(
        "precision",
        match (&model.reduced_precision, &model.widened_precision) {
            (Some(found), _) => format!(
                "{precision} (map cosine {:.4}, logits within {:.2} of float32, at start)",
                found.map_cosine, found.logit_difference
            ),
            (None, Some(widened)) if identity.precision != v1::Precision::Exact as i32 => format!(
                "{precision} (saved in {}, for which the server's processor has no instructions)",
                widened.saved_in
            ),
            _ => precision,
        },
    );
    match (model.devices.is_empty(), model.device_fallback.as_str()) {
        (true, _) => {}
        (false, "") => fact("devices", model.devices.join(", ")),
        (false, why) => fact("devices", format!("{}, since CUDA cannot be used: {why}", model.devices.join(", "))),
    }
    let shown: Vec<_> = model.layers.iter().filter(|layer| all_layers || layer.spatial).collect();
    lines.push(format!("  layers ({} of {})", shown.len(), model.layers.len()));
    for layer in shown {
        let shape: Vec<String> = layer.shape.iter().map(ToString::to_string).collect();
        lines.push(format!("    {:<44} {}", layer.names.join(", "), ink.faint(&format!("[{}]", shape.join(", ")))));
    }
    lines.iter().map(|line| format!("{line}\n")).collect()
}

fn model_json(model: &v1::ModelMetadata, all_layers: bool) -> Value {
    let tensor = |info: &v1::TensorInfo| {
        let shape: Value = info.shape.iter().map(|d| json!({"size": d.size, "dynamic": d.dynamic})).collect();
        json!({"name": info.name, "element_type": info.element_type, "shape": shape})
    };
    let layers: Value = model
        .layers
        .iter()
        .filter(|layer| all_layers || layer.spatial)
        .map(|layer| json!({"names": layer.names, "shape": layer.shape, "spatial": layer.spatial}))
        .collect();
    json!({
        "identity": model.identity.as_ref().map(identity_json),
        "summary": model.summary,
        "input": model.input.as_ref().map(tensor),
        "outputs": model.outputs.iter().map(tensor).collect::<Value>(),
        "class_count": model.class_count,
        "labels": model.labels,
        "layers": layers,
        "default_target_layers": model.default_target_layers,
        "default_target_problem": model.default_target_problem,
        "rectifier_count": model.rectifier_count,
        "unguided_gates": model.unguided_gates,
        "devices": model.devices,
        "device_fallback": model.device_fallback,
        "widened_precision": model.widened_precision.as_ref().map(|widened| json!({"saved_in": widened.saved_in})),
        "reduced_precision": model.reduced_precision.as_ref().map(|found| {
            json!({"map_cosine": found.map_cosine, "logit_difference": found.logit_difference})
        }),
    })
}

/// The shapes that an input may have. A server that does not say which sizes are allowed gives the example's.
fn dimensions(shape: &[v1::DimensionInfo]) -> String {
    if let [batch, channels, height, width] = shape
        && shape.iter().all(|info| !info.dynamic || info.step > 0)
    {
        return dimension::described_input([batch, channels, height, width].map(|info| dimension(info, shape)));
    }
    let sizes: Vec<String> =
        shape.iter().map(|d| if d.dynamic { format!("{} or other", d.size) } else { d.size.to_string() }).collect();
    format!("[{}]", sizes.join(", "))
}

/// A dimension, which is one of `all`.
fn dimension(info: &v1::DimensionInfo, all: &[v1::DimensionInfo]) -> Dimension {
    if !info.dynamic {
        return Dimension::Fixed(info.size);
    }
    let together = |other: &v1::DimensionInfo| !info.variable.is_empty() && info.variable == other.variable;
    let variable = all.iter().position(|other| std::ptr::eq(info, other) || together(other));
    let sizes = Sizes {
        variable: variable.unwrap_or_default() as u32,
        step: info.step,
        offset: info.min_size.saturating_sub(info.step),
        least: 1,
        most: info.max_size.map(|largest| largest.saturating_sub(info.min_size) / info.step + 1),
    };
    Dimension::Dynamic { example: info.size, sizes }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn varying(size: i64, min_size: i64, max_size: Option<i64>, step: i64, variable: &str) -> v1::DimensionInfo {
        v1::DimensionInfo { size, dynamic: true, min_size, max_size, step, variable: variable.to_owned() }
    }

    fn model() -> v1::ModelMetadata {
        let layer = |name: &str, spatial: bool| v1::LayerInfo {
            names: vec![name.to_owned()],
            shape: vec![1, 8, 7, 7],
            spatial,
        };
        v1::ModelMetadata {
            identity: Some(v1::ModelIdentity { name: "lite0".to_owned(), version: 1, ..Default::default() }),
            input: Some(v1::TensorInfo {
                name: "x".to_owned(),
                element_type: "float32".to_owned(),
                shape: vec![
                    varying(2, 1, None, 1, ""),
                    v1::DimensionInfo { size: 3, ..Default::default() },
                    varying(64, 32, Some(128), 4, "k"),
                    varying(64, 32, Some(128), 4, "k"),
                ],
            }),
            layers: vec![layer("_swish", true), layer("_fc", false)],
            default_target_layers: vec!["_swish".to_owned()],
            ..Default::default()
        }
    }

    #[test]
    fn a_model_shows_its_possible_target_layers() {
        let text = model_text(&model(), false, Ink::plain());
        let input = "[any batch, 3, a height that is a multiple of 4, 32 to 128, the same width]";
        assert!(text.contains(&format!("input          x float32 {input}")), "{text}");
        assert!(text.contains("target layer   _swish") && text.contains("layers (1 of 2)"), "{text}");
        assert!(!text.contains("_fc"), "{text}");
        assert!(model_text(&model(), true, Ink::plain()).contains("_fc"));
    }

    #[test]
    fn a_model_that_was_saved_in_less_than_float32_and_runs_in_it_says_so() {
        let mut model = model();
        model.identity.as_mut().expect("an identity").precision = v1::Precision::Float32 as i32;
        model.widened_precision = Some(v1::WidenedPrecision { saved_in: "bfloat16".to_owned() });
        let text = model_text(&model, false, Ink::plain());
        assert!(text.contains("precision      float32 (saved in bfloat16, for which the server's processor"), "{text}");
        assert_eq!(model_json(&model, false)["widened_precision"]["saved_in"], "bfloat16");
        model.identity.as_mut().expect("an identity").precision = v1::Precision::Exact as i32;
        assert!(!model_text(&model, false, Ink::plain()).contains("saved in"));
    }

    #[test]
    fn a_model_without_a_default_layer_or_rectifier_says_so() {
        let mut model = model();
        model.default_target_layers.clear();
        model.default_target_problem = "tokens have no spatial axes".to_owned();
        model.devices = vec!["cpu".to_owned()];
        model.device_fallback = "no driver".to_owned();
        let text = model_text(&model, false, Ink::plain());
        assert!(text.contains("none by default: tokens have no spatial axes"), "{text}");
        assert!(text.contains("rectifiers     none"), "{text}");
        assert!(text.contains("devices        cpu, since CUDA cannot be used: no driver"), "{text}");
        assert_eq!(model_json(&model, false)["devices"], json!(["cpu"]));
    }

    #[test]
    fn a_list_has_one_line_per_model() {
        let summary = |name: &str| v1::ModelSummary { name: name.to_owned(), version: 2, ..Default::default() };
        let reason = "it is broken".to_owned();
        let problem = v1::ModelProblem { name: "c".to_owned(), version: Some(1), reason };
        let text = list_text(&[summary("a"), summary("b")], &[problem], Ink::plain());
        assert_eq!(text.lines().count(), 3);
        assert!(text.starts_with("a@2") && text.ends_with("cannot be served: it is broken\n"), "{text}");
        assert_eq!(list_json(&[summary("a")])[0]["name"], "a");
        assert_eq!(list_text(&[], &[], Ink::plain()), "no model is served\n");
    }
}
