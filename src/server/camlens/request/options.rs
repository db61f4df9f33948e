//! A frame's options: merged, checked, with defaults filled in.

use tonic::Code;

use crate::config::LimitsConfig;
use crate::explain::{self, CamMethod, Convention, MapKind, Method, Mode, Target};
use crate::model::description::Precision;
use crate::proto::v1;
use crate::render::{
    ColorMap, DEFAULT_DARKNESS, DEFAULT_OPACITY, DEFAULT_QUALITY, ElementType, PictureFormat, ValueRange,
};
use crate::schedule::{Outputs, PictureKind, PictureOutput, Resolution, Served, TensorOutput};
use crate::server::camlens::response;
use crate::server::refusal::Refusal;
use crate::server::submit::CheckedOptions;

use super::unknown_value;

const DEFAULT_TOP_PREDICTIONS: u32 = 5;

/// Merges `over` into `base`, field by field. A list that is not empty replaces the whole list.
pub(in crate::server) fn merge(base: &v1::ExplainOptions, over: &v1::ExplainOptions) -> v1::ExplainOptions {
    let v1::ExplainOptions {
        targets,
        target_layers,
        cam_method,
        convention,
        tensors,
        pictures,
        top_predictions,
        condition,
        precision,
        predictions_only,
        allow_damaged_frames,
    } = over.clone();
    fn list<T: Clone>(base: &[T], over: Vec<T>) -> Vec<T> {
        if over.is_empty() { base.to_vec() } else { over }
    }
    let number = |base: i32, over: i32| if over == 0 { base } else { over };
    // Maps in `over` revoke `predictions_only` in `base`, and the other way round.
    let asks_for_maps = !tensors.is_empty() || !pictures.is_empty();
    let maps_are_off = predictions_only == Some(true);
    v1::ExplainOptions {
        targets: list(&base.targets, targets),
        target_layers: list(&base.target_layers, target_layers),
        cam_method: number(base.cam_method, cam_method),
        convention: number(base.convention, convention),
        tensors: if maps_are_off { tensors } else { list(&base.tensors, tensors) },
        pictures: if maps_are_off { pictures } else { list(&base.pictures, pictures) },
        top_predictions: top_predictions.or(base.top_predictions),
        condition: condition.or_else(|| base.condition.clone()),
        precision: number(base.precision, precision),
        predictions_only: predictions_only.or(base.predictions_only.filter(|_| !asks_for_maps)),
        allow_damaged_frames: allow_damaged_frames.or(base.allow_damaged_frames),
    }
}

/// Checks options against a model and the server's limits, and fills in defaults.
pub(in crate::server) fn resolve(
    options: &v1::ExplainOptions,
    model: &Served,
    limits: &LimitsConfig,
) -> Result<CheckedOptions, Refusal> {
    if options.condition.is_some() {
        return Err(Refusal::not_built("options.condition", "conditions are"));
    }
    let cam = cam_method(options.cam_method)?;
    let convention = convention(options.convention)?;
    let mode = mode(options.precision, model)?;
    let targets = targets(&options.targets, model)?;
    let predictions_only = options.predictions_only.unwrap_or(false);
    let outputs = outputs(options, predictions_only, limits)?;
    let too_many_layers = options.target_layers.len() > limits.max_outputs as usize;
    if too_many_layers {
        return Err(too_many("options.target_layers", options.target_layers.len(), limits.max_outputs));
    }
    let target_layers = options.target_layers.clone();
    let method = Method { target_layers, cam, convention, maps: outputs.maps(), mode };
    explain::check_method(&model.metadata, &method).map_err(|error| Refusal::from(&error))?;
    let allow_damaged_frames = options.allow_damaged_frames.unwrap_or(false);
    Ok(CheckedOptions { method, targets, outputs, allow_damaged_frames })
}

/// Refuses options whose tensors alone are larger than `max_bytes`; 0 is no limit. Sizes that depend on the frame are
/// not counted.
pub(in crate::server) fn check_response_size(
    options: &CheckedOptions,
    model: &Served,
    max_bytes: u64,
) -> Result<(), Refusal> {
    let input = model.input_size();
    let (Some(height), Some(width)) = (input.fixed_height(), input.fixed_width()) else { return Ok(()) };
    if max_bytes == 0 {
        return Ok(());
    }
    let area = u64::from(height) * u64::from(width);
    let one: u64 = options
        .outputs
        .tensors
        .iter()
        .filter(|tensor| tensor.resolution == Resolution::Model)
        .map(|tensor| {
            let channels = if tensor.map.has_channels() { u64::from(input.channels) } else { 1 };
            let bytes = match tensor.element_type {
                ElementType::F32 => 4,
                ElementType::F16 => 2,
                ElementType::U8 => 1,
            };
            area * channels * bytes
        })
        .sum();
    let layers = match options.method.convention {
        Convention::Captum => target_layers(&options.method, model).len().max(1),
        Convention::PytorchGradCam => 1,
    };
    let total = one * count_targets(&options.targets) * layers as u64;
    if total > max_bytes {
        let message = format!(
            "options.tensors make answers of at least {total} bytes, and policy.max_response_bytes is {max_bytes}: ask \
             for fewer targets or layers, or for FLOAT16 or UINT8"
        );
        return Err(Refusal::new(Code::ResourceExhausted, "options.tensors", message));
    }
    Ok(())
}

fn cam_method(value: i32) -> Result<CamMethod, Refusal> {
    match v1::CamMethod::try_from(value) {
        Ok(v1::CamMethod::Unspecified | v1::CamMethod::GradCam) => Ok(CamMethod::GradCam),
        Ok(other) => {
            let message =
                format!("options.cam_method: {} is not built yet; CAM_METHOD_GRAD_CAM is", other.as_str_name());
            Err(Refusal::new(Code::Unimplemented, "options.cam_method", message))
        }
        Err(_) => Err(unknown_value("options.cam_method", value, "GRAD_CAM is allowed")),
    }
}

fn convention(value: i32) -> Result<Convention, Refusal> {
    match v1::Convention::try_from(value) {
        Ok(v1::Convention::Unspecified | v1::Convention::Captum) => Ok(Convention::Captum),
        Ok(v1::Convention::PytorchGradCam) => Ok(Convention::PytorchGradCam),
        Err(_) => Err(unknown_value("options.convention", value, "CAPTUM and PYTORCH_GRAD_CAM are allowed")),
    }
}

/// A model that is described as exact always runs exactly.
fn mode(value: i32, model: &Served) -> Result<Mode, Refusal> {
    let refused = |code, message| Err(Refusal::new(code, "options.precision", message));
    let asked = match v1::Precision::try_from(value) {
        Ok(v1::Precision::Unspecified) => model.mode,
        Ok(v1::Precision::Float32) => Mode::Default,
        Ok(v1::Precision::Exact) => Mode::Exact,
        Ok(v1::Precision::Bfloat16) => Mode::Bfloat16,
        Ok(other @ v1::Precision::Float16) => {
            let name = other.as_str_name();
            let message = format!("options.precision: {name} is not built yet; FLOAT32, EXACT and BFLOAT16 are");
            return refused(Code::Unimplemented, message);
        }
        Err(_) => return Err(unknown_value("options.precision", value, "FLOAT32, EXACT and BFLOAT16 are allowed")),
    };
    match (model.mode, asked) {
        (Mode::Exact, _) => Ok(Mode::Exact),
        (Mode::Bfloat16, _) | (Mode::Default, Mode::Default | Mode::Exact) => Ok(asked),
        (Mode::Default, Mode::Bfloat16) => {
            let cause = match model.metadata.precision {
                Precision::Bfloat16 => "the server's processor has no bfloat16 (AVX-512 BF16 or Arm BF16)",
                _ => "the model is not offered in it: its model.toml has no explain.precision = \"bfloat16\"",
            };
            refused(
                Code::FailedPrecondition,
                format!("options.precision: BFLOAT16: {cause}; FLOAT32 and EXACT are allowed"),
            )
        }
    }
}

fn targets(asked: &[v1::Target], model: &Served) -> Result<Vec<Target>, Refusal> {
    use v1::target::Kind;
    let max = model.limits.max_targets;
    let classes = model.metadata.class_count();
    let mut targets = Vec::with_capacity(asked.len());
    for (index, target) in asked.iter().enumerate() {
        let field = |name: &str| format!("options.targets[{index}].{name}");
        targets.push(match &target.kind {
            Some(Kind::ClassIndex(class)) => {
                if let Some(classes) = classes.filter(|classes| class >= classes) {
                    let field = field("class_index");
                    let message = format!("{field} is {class}: the model has {classes} classes, 0 to {}", classes - 1);
                    return Err(Refusal::invalid(field, message));
                }
                Target::Class(*class)
            }
            Some(Kind::Label(label)) => {
                let field = field("label");
                let class = model.metadata.class_of_label(label);
                Target::Class(class.map_err(|error| Refusal::invalid(field.clone(), format!("{field}: {error}")))?)
            }
            Some(Kind::Top(count)) => {
                let most = classes.map_or(max, |classes| classes.min(max));
                if !(1..=most).contains(count) {
                    let field = field("top");
                    let message = format!("{field} is {count}: 1 to {most} are allowed");
                    return Err(Refusal::invalid(field, message));
                }
                Target::Top(*count)
            }
            None => {
                let field = format!("options.targets[{index}]");
                let message = format!("{field} names no class: give class_index, label or top");
                return Err(Refusal::invalid(field, message));
            }
        });
    }
    if targets.is_empty() {
        targets.push(Target::Top(1));
    }
    let count = count_targets(&targets);
    if count > u64::from(max) {
        let message = format!("options.targets name up to {count} classes: at most {max} are allowed");
        return Err(Refusal::invalid("options.targets", message));
    }
    Ok(targets)
}

fn count_targets(targets: &[Target]) -> u64 {
    targets.iter().map(|target| u64::from(target.count())).sum()
}

fn too_many(field: &str, count: usize, max: u32) -> Refusal {
    Refusal::invalid(field, format!("{field} has {count} entries: at most {max} are allowed (limits.max_outputs)"))
}

fn outputs(options: &v1::ExplainOptions, predictions_only: bool, limits: &LimitsConfig) -> Result<Outputs, Refusal> {
    let top_predictions = options.top_predictions.unwrap_or(DEFAULT_TOP_PREDICTIONS) as usize;
    let asks_for_maps = !options.tensors.is_empty() || !options.pictures.is_empty();
    if predictions_only {
        if asks_for_maps {
            let message =
                "options.predictions_only means no maps, but options.tensors or options.pictures ask for some";
            return Err(Refusal::invalid("options.predictions_only", message));
        }
        return Ok(Outputs { top_predictions, ..Outputs::default() });
    }
    for (field, count) in [("options.tensors", options.tensors.len()), ("options.pictures", options.pictures.len())] {
        if count > limits.max_outputs as usize {
            return Err(too_many(field, count, limits.max_outputs));
        }
    }
    let tensors = if asks_for_maps {
        options.tensors.iter().enumerate().map(|(index, output)| tensor(index, output)).collect::<Result<_, _>>()?
    } else {
        let map = MapKind::GuidedGradCam;
        vec![TensorOutput { map, element_type: ElementType::F32, resolution: Resolution::Model }]
    };
    let pictures =
        options.pictures.iter().enumerate().map(|(index, output)| picture(index, output)).collect::<Result<_, _>>()?;
    Ok(Outputs { tensors, pictures, top_predictions, expected: None })
}

fn tensor(index: usize, output: &v1::TensorOutput) -> Result<TensorOutput, Refusal> {
    let field = |name: &str| format!("options.tensors[{index}].{name}");
    let map = match v1::Map::try_from(output.map) {
        Ok(v1::Map::GuidedGradCam) => MapKind::GuidedGradCam,
        Ok(v1::Map::GradCam) => MapKind::GradCam,
        Ok(v1::Map::GuidedBackprop) => MapKind::GuidedBackprop,
        Ok(v1::Map::Input) => MapKind::Input,
        Ok(v1::Map::Unspecified) | Err(_) => {
            let allowed = "GUIDED_GRAD_CAM, GRAD_CAM, GUIDED_BACKPROP and INPUT are allowed";
            return Err(unknown_value(field("map"), output.map, allowed));
        }
    };
    let element_type = match v1::ElementType::try_from(output.element_type) {
        Ok(v1::ElementType::Unspecified | v1::ElementType::Float32) => ElementType::F32,
        Ok(v1::ElementType::Float16) => ElementType::F16,
        Ok(v1::ElementType::Uint8) => ElementType::U8,
        Err(_) => {
            let allowed = "FLOAT32, FLOAT16 and UINT8 are allowed";
            return Err(unknown_value(field("element_type"), output.element_type, allowed));
        }
    };
    let resolution = match v1::Resolution::try_from(output.resolution) {
        Ok(v1::Resolution::Unspecified | v1::Resolution::Model) => Resolution::Model,
        Ok(v1::Resolution::Frame) => Resolution::Frame,
        Ok(v1::Resolution::Layer) if map.has_layer_resolution() => Resolution::Layer,
        Ok(v1::Resolution::Layer) => {
            let field = field("resolution");
            let message = format!("{field} is LAYER, which only GRAD_CAM has; MODEL and FRAME are allowed");
            return Err(Refusal::invalid(field, message));
        }
        Err(_) => {
            let allowed = "MODEL, FRAME and LAYER are allowed";
            return Err(unknown_value(field("resolution"), output.resolution, allowed));
        }
    };
    Ok(TensorOutput { map, element_type, resolution })
}

fn picture(index: usize, output: &v1::PictureOutput) -> Result<PictureOutput, Refusal> {
    let field = |name: &str| format!("options.pictures[{index}].{name}");
    let kind = match v1::Picture::try_from(output.picture) {
        Ok(v1::Picture::Overlay) => PictureKind::Overlay,
        Ok(v1::Picture::HeatMap) => PictureKind::HeatMap,
        Ok(v1::Picture::GuidedGradCam) => PictureKind::GuidedGradCam,
        Ok(v1::Picture::GuidedBackprop) => PictureKind::GuidedBackprop,
        Ok(v1::Picture::Light) => PictureKind::Light,
        Ok(v1::Picture::Unspecified) | Err(_) => {
            let allowed = "OVERLAY, HEAT_MAP, GUIDED_GRAD_CAM, GUIDED_BACKPROP and LIGHT are allowed";
            return Err(unknown_value(field("picture"), output.picture, allowed));
        }
    };
    let quality = output.quality.unwrap_or(DEFAULT_QUALITY);
    if !(1..=100).contains(&quality) {
        let message = format!("{} is {quality}: 1 to 100 are allowed", field("quality"));
        return Err(Refusal::invalid(field("quality"), message));
    }
    let format = match v1::ImageFormat::try_from(output.format) {
        Ok(v1::ImageFormat::Unspecified | v1::ImageFormat::Jpeg) => PictureFormat::Jpeg { quality },
        Ok(v1::ImageFormat::Png) => PictureFormat::Png,
        Ok(v1::ImageFormat::Webp) => return Err(Refusal::not_built(field("format"), "WebP pictures are")),
        Err(_) => return Err(unknown_value(field("format"), output.format, "JPEG and PNG are allowed")),
    };
    let color_map = match v1::ColorMap::try_from(output.color_map) {
        Ok(v1::ColorMap::Unspecified | v1::ColorMap::Turbo) => ColorMap::Turbo,
        Ok(v1::ColorMap::Viridis) => ColorMap::Viridis,
        Ok(v1::ColorMap::Jet) => ColorMap::Jet,
        Err(_) => {
            return Err(unknown_value(field("color_map"), output.color_map, "TURBO, VIRIDIS and JET are allowed"));
        }
    };
    let opacity = output.opacity.unwrap_or(if kind == PictureKind::Light { DEFAULT_DARKNESS } else { DEFAULT_OPACITY });
    if !(0.0..=1.0).contains(&opacity) {
        let message = format!("{} is {opacity}: 0 to 1 is allowed", field("opacity"));
        return Err(Refusal::invalid(field("opacity"), message));
    }
    let range = match &output.fixed_range {
        None => ValueRange::OfTheMap,
        Some(range) if range.min.is_finite() && range.max.is_finite() && range.min < range.max => {
            ValueRange::Fixed { low: range.min, high: range.max }
        }
        Some(range) => {
            let field = field("fixed_range");
            let message = format!("{field} is {} to {}: min must lie below max", range.min, range.max);
            return Err(Refusal::invalid(field, message));
        }
    };
    Ok(PictureOutput { kind, format, color_map, opacity, range })
}

/// The target layers that a method uses: its own, or else the model's default ones.
fn target_layers<'a>(method: &'a Method, model: &'a Served) -> &'a [String] {
    if method.target_layers.is_empty() { &model.metadata.default_target_layers } else { &method.target_layers }
}

/// `options` with every default filled in as `checked` has it, for the client.
pub(in crate::server) fn effective(
    options: &v1::ExplainOptions,
    checked: &CheckedOptions,
    model: &Served,
) -> v1::ExplainOptions {
    let CheckedOptions { method, outputs, allow_damaged_frames, .. } = checked;
    let mut effective = options.clone();
    if effective.targets.is_empty() {
        effective.targets = vec![v1::Target { kind: Some(v1::target::Kind::Top(1)) }];
    }
    effective.target_layers = target_layers(method, model).to_vec();
    effective.cam_method = v1::CamMethod::GradCam as i32;
    effective.convention = response::convention(method.convention) as i32;
    if effective.tensors.is_empty() {
        effective.tensors = outputs.tensors.iter().map(response::tensor_output).collect();
    }
    effective.top_predictions = Some(outputs.top_predictions as u32);
    effective.precision = response::precision(method.mode) as i32;
    effective.predictions_only = Some(outputs.maps().is_empty() && outputs.tensors.is_empty());
    effective.allow_damaged_frames = Some(*allow_damaged_frames);
    effective
}
