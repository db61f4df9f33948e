//! `camlens explain`: explains picture files.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};

use super::answer::{self, OutputFolder, Written, class_name};
use super::connection::{ConnectArgs, Connection};
use super::failure::{Exit, Failure};
use super::options::{ExpectedClass, ExplainArgs, MapKind, PictureFormat, PictureKind};
use super::scene::{SceneMaps, color_order};
use super::source::{file_name, read_picture};
use super::summary::stage_rows;
use super::terminal::{self, Ink};
use crate::client;
use crate::client::latency::Stages;
use crate::client::names;
use crate::proto::v1;
use crate::render::Scene;
use crate::render::report::{Card, Figure, Frames, Report};

/// Explain pictures: the classes that the model predicts, and where it looks
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  camlens explain coffee.png --out out
  camlens explain *.jpg --out out --target espresso --target top:2
  camlens explain cup.jpg --expected espresso:0.95 --server unix:/run/camlens.sock
  camlens explain cat.jpg --out out --layer layer3 --map grad-cam --html report.html
  camlens explain cat.jpg --out out --server unix:/run/camlens.sock --json")]
pub struct ExplainCommand {
    /// Pictures to explain: JPEG, PNG or WebP files
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<PathBuf>,

    /// Folder for the results
    #[arg(long, env = "CAMLENS_OUT", value_name = "FOLDER", default_value = "camlens-out")]
    out: PathBuf,

    /// Picture to write for each target; may be repeated [default: overlay, heat-map, guided-grad-cam]
    #[arg(long = "picture", env = "CAMLENS_PICTURE", value_name = "KIND", value_enum, value_delimiter = ',')]
    pictures: Vec<PictureKind>,

    /// Map to write as a float32 array, in a NumPy file; may be repeated [default: none]
    #[arg(long = "map", env = "CAMLENS_MAP", value_name = "KIND", value_enum, value_delimiter = ',')]
    maps: Vec<MapKind>,

    /// File format of the pictures
    #[arg(long, env = "CAMLENS_FORMAT", value_enum, default_value = "png")]
    format: PictureFormat,

    /// Also write a report: one HTML file with all pictures
    #[arg(long, env = "CAMLENS_HTML", value_name = "FILE")]
    html: Option<PathBuf>,

    /// Print JSON instead of text
    #[arg(long, env = "CAMLENS_JSON", value_parser = clap::builder::FalseyValueParser::new())]
    json: bool,

    /// Class that another server predicted for the pictures, by label or index, and its probability: the answer says
    /// whether this model agrees, within 0.01 [default: nothing is compared]
    #[arg(long, env = "CAMLENS_EXPECTED", value_name = "CLASS[:PROBABILITY]")]
    expected: Option<ExpectedClass>,

    #[command(flatten)]
    explain: ExplainArgs,

    #[command(flatten)]
    connect: ConnectArgs,
}

const DEFAULT_PICTURES: [PictureKind; 3] = [PictureKind::Overlay, PictureKind::HeatMap, PictureKind::GuidedGradCam];

impl ExplainCommand {
    pub fn run(self) -> Result<(), Failure> {
        super::runtime()?.block_on(self.explain_all())
    }

    async fn explain_all(self) -> Result<(), Failure> {
        let connection = Connection::open(&self.connect).await?;
        let mut client = client::explain_client(connection.channel());
        let pictures = if self.pictures.is_empty() { &DEFAULT_PICTURES[..] } else { &self.pictures };
        let mut options = self.explain.options(pictures, self.format, &self.maps);
        let scenes = match &self.html {
            Some(_) => SceneMaps::of(pictures, &self.maps, color_order(&connection, self.explain.selector()).await),
            None => None,
        };
        if let Some(scenes) = scenes {
            scenes.ask(&mut options);
        }
        let mut out = OutputFolder::create(&self.out)?;
        let bar = terminal::progress(Some(self.images.len() as u64), self.json || self.images.len() < 2);
        let mut results = Results::new(self.html.is_some());
        for (index, path) in self.images.iter().enumerate() {
            let name = file_name(path);
            bar.set_message(name.clone());
            let image = read_picture(path)?;
            let request = v1::ExplainRequest {
                model: self.explain.selector(),
                options: Some(options.clone()),
                frame: Some(v1::Frame {
                    sequence: index as u64 + 1,
                    tag: name.clone().into_bytes().into(),
                    expected: self.expected.as_ref().map(ExpectedClass::message),
                    payload: Some(v1::frame::Payload::Encoded(v1::EncodedImage {
                        data: image.clone(),
                        ..Default::default()
                    })),
                    ..Default::default()
                }),
            };
            match client.explain(request).await {
                Ok(response) => {
                    let answer = response.into_inner().explanation.unwrap_or_default();
                    let scene =
                        scenes.and_then(|scenes| scenes.scene(&answer, &client::Payload::Encoded(image.clone())));
                    let stem = out.stem(path.file_stem().map_or("frame", |stem| stem.to_str().unwrap_or("frame")));
                    let written = out.write(&stem, &answer, self.maps.len())?;
                    results.reported(&path.display().to_string(), &answer, scene);
                    bar.suspend(|| results.answered(&path.display().to_string(), &answer, &written, self.json))?;
                }
                Err(status) if status.code() == tonic::Code::Unavailable => {
                    return Err(Failure::from_status(&format!("explain {name}"), &status));
                }
                Err(status) => {
                    let failure = Failure::from_status(&format!("explain {name}"), &status);
                    bar.suspend(|| results.failed(&path.display().to_string(), failure, self.json))?;
                }
            }
            bar.inc(1);
        }
        bar.finish_and_clear();
        if let Some(path) = &self.html {
            std::fs::write(path, results.report().html()).map_err(|error| Failure::from_io("write", path, &error))?;
        }
        results.finish(&self, self.images.len())
    }
}

/// The results so far, for the output and the report.
struct Results {
    json: Vec<Value>,
    /// What the report shows. `None`: there is no report.
    shown: Option<(Frames, Vec<Card>)>,
    model: Option<v1::ModelIdentity>,
    stages: Stages,
    failures: Vec<Failure>,
    ink: Ink,
}

impl Results {
    fn new(with_report: bool) -> Self {
        Results {
            json: Vec::new(),
            shown: with_report.then(Default::default),
            model: None,
            stages: Stages::default(),
            failures: Vec::new(),
            ink: Ink::for_stdout(),
        }
    }

    fn answered(
        &mut self,
        image: &str,
        answer: &v1::Explanation,
        written: &[Vec<Written>],
        as_json: bool,
    ) -> Result<(), Failure> {
        if as_json {
            let mut value = answer::to_json(answer, written);
            value["image"] = image.into();
            self.json.push(value);
        } else {
            io::stdout().lock().write_all(text(image, answer, written, self.ink).as_bytes())?;
        }
        Ok(())
    }

    /// Adds an answer to the report, if there is one: as a scene, or else with the pictures of the server.
    fn reported(&mut self, image: &str, answer: &v1::Explanation, scene: Option<Scene>) {
        let Some((frames, cards)) = &mut self.shown else { return };
        let drawn = scene.map(|scene| frames.push(Scene { tag: image.to_owned(), ..scene }));
        if !matches!(drawn, Some(Ok(()))) {
            cards.push(card(image, answer));
        }
        self.model = answer.model.clone();
        for timing in &answer.timings {
            let duration = std::time::Duration::from_nanos(timing.duration_ns);
            self.stages.record(&names::stage(timing.stage), duration);
        }
    }

    fn failed(&mut self, image: &str, failure: Failure, as_json: bool) -> Result<(), Failure> {
        if as_json {
            self.json.push(json!({"image": image, "error": failure.to_string()}));
        } else {
            writeln!(io::stdout().lock(), "{}\n  {}\n", self.ink.bold(image), self.ink.bad(&failure.to_string()))?;
        }
        self.failures.push(failure);
        Ok(())
    }

    fn report(&mut self) -> Report {
        let mut facts = Vec::new();
        if let Some(model) = &self.model {
            facts.push(("model".to_owned(), format!("{} version {}", model.name, model.version)));
            facts.push(("digest".to_owned(), model.digest.clone()));
        }
        let (frames, cards) = self.shown.take().unwrap_or_default();
        let title = "What the model looks at".to_owned();
        Report { title, facts, frames, cards, stages: stage_rows(&self.stages) }
    }

    /// Prints the JSON, or where the results are. The failure of a single image is the command's own; a failure among
    /// several images is [`Exit::Partly`].
    fn finish(mut self, command: &ExplainCommand, count: usize) -> Result<(), Failure> {
        let mut stdout = io::stdout().lock();
        if command.json {
            writeln!(stdout, "{:#}", Value::Array(std::mem::take(&mut self.json)))?;
        } else if self.failures.len() < count {
            writeln!(stdout, "the results are in {}", command.out.display())?;
            if let Some(html) = &command.html {
                writeln!(stdout, "the report is {}", html.display())?;
            }
        }
        match (self.failures.len(), count) {
            (0, _) => Ok(()),
            (1, 1) => Err(self.failures.remove(0)),
            (failed, _) => {
                Err(Failure::new(Exit::Partly, format!("{failed} of {count} images could not be explained")))
            }
        }
    }
}

fn text(image: &str, answer: &v1::Explanation, written: &[Vec<Written>], ink: Ink) -> String {
    let mut lines = vec![ink.bold(image)];
    for (rank, prediction) in answer.predictions.iter().enumerate() {
        let name = class_name(&prediction.label, prediction.class_index);
        let share = format!("{:5.1} %", prediction.probability * 100.0);
        let detail = ink.faint(&format!("class {}, logit {:.2}", prediction.class_index, prediction.logit));
        lines.push(format!("  {}. {name:<28} {share}   {detail}", rank + 1));
    }
    if let Some(found) = &answer.agreement {
        lines.push(agreement(found, ink));
    }
    for (target, files) in answer.targets.iter().zip(written) {
        let name = class_name(&target.label, target.class_index);
        let layer = if target.target_layer.is_empty() { String::new() } else { format!(" at {}", target.target_layer) };
        lines.push(format!("  evidence for {}{layer}", ink.bold(&name)));
        lines.extend(files.iter().map(|file| format!("    {:<16} {}", file.kind, file.path.display())));
    }
    lines.extend(answer.notices.iter().map(|notice| format!("  note: {}", notice.message)));
    let total: u64 = answer.timings.iter().map(|timing| timing.duration_ns).sum();
    lines.push(ink.faint(&format!("  {:.1} ms in the server", total as f64 / 1e6)));
    lines.push(String::new());
    lines.iter().map(|line| format!("{line}\n")).collect()
}

/// Whether the model predicts what was expected.
fn agreement(found: &v1::Agreement, ink: Ink) -> String {
    let own = found.own.clone().unwrap_or_default();
    let name = class_name(&own.label, own.class_index);
    let expected = found.expected_probability.map_or(String::new(), |probability| format!(" with {probability}"));
    let verdict = if found.agrees { "agrees".to_owned() } else { ink.bad("disagrees") };
    format!("  {verdict} with what was expected: {name}{expected}, which has {:.4} here", own.probability)
}

fn card(image: &str, answer: &v1::Explanation) -> Card {
    let predictions = answer.predictions.iter().map(|p| (class_name(&p.label, p.class_index), p.probability)).collect();
    let several = answer.targets.len() > 1;
    let figures = answer.targets.iter().flat_map(|target| {
        let class = class_name(&target.label, target.class_index);
        target.pictures.iter().map(move |picture| {
            let kind = names::picture(picture.picture).replace('_', " ");
            Figure {
                caption: if several { format!("{kind}: {class}, {}", target.target_layer) } else { kind },
                media_type: names::image_format(picture.format).1,
                data: picture.data.to_vec(),
            }
        })
    });
    Card { title: image.to_owned(), predictions, figures: figures.collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer() -> v1::Explanation {
        v1::Explanation {
            predictions: vec![v1::Prediction {
                class_index: 967,
                label: "espresso".to_owned(),
                logit: 12.25,
                probability: 0.953,
            }],
            targets: vec![v1::TargetExplanation {
                class_index: 967,
                label: "espresso".to_owned(),
                target_layer: "_swish".to_owned(),
                ..Default::default()
            }],
            timings: vec![v1::StageTiming { stage: v1::Stage::Forward as i32, start_ns: 0, duration_ns: 40_000_000 }],
            ..Default::default()
        }
    }

    #[test]
    fn text_names_classes_files_and_time() {
        let written = vec![vec![Written { kind: "overlay".to_owned(), path: "out/coffee.overlay.png".into() }]];
        let text = text("coffee.png", &answer(), &written, Ink::plain());
        for part in [
            "coffee.png\n",
            "1. espresso",
            " 95.3 %",
            "class 967, logit 12.25",
            "evidence for espresso at _swish",
            "overlay          out/coffee.overlay.png",
            "40.0 ms",
        ] {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
    }

    #[test]
    fn of_several_targets_each_figure_says_which() {
        let mut answer = answer();
        answer.targets[0].pictures =
            vec![v1::EncodedPicture { picture: v1::Picture::HeatMap as i32, ..Default::default() }];
        assert_eq!(card("a", &answer).figures[0].caption, "heat map");
        answer.targets.push(answer.targets[0].clone());
        assert_eq!(card("a", &answer).figures[1].caption, "heat map: espresso, _swish");
    }
}
