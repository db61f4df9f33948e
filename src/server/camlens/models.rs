//! `ModelService`: the models that are served.

use tonic::{Request, Response, Status};

use crate::model::description::{ColorOrder, Interpolation, Preprocessing, Resize};
use crate::model::dimension::Dimension;
use crate::model::{Activation, Metadata, dtype};
use crate::proto::v1;
use crate::proto::v1::model_service_server::ModelService;
use crate::schedule::Served;

use super::response::identity;
use crate::server::devices::Devices;
use crate::server::service::Service;

#[tonic::async_trait]
impl ModelService for Service {
    async fn list_models(&self, _: Request<v1::ListModelsRequest>) -> Result<Response<v1::ListModelsResponse>, Status> {
        let known = self.engine.models();
        let mut models: Vec<_> = known.available().map(|model| summary(model)).collect();
        models.sort_by(|a, b| (&a.name, a.version).cmp(&(&b.name, b.version)));
        let problem = |((name, version), reason): (&(String, Option<i64>), &String)| v1::ModelProblem {
            name: name.clone(),
            version: *version,
            reason: reason.clone(),
        };
        Ok(Response::new(v1::ListModelsResponse { models, problems: known.problems.iter().map(problem).collect() }))
    }

    async fn get_model(&self, request: Request<v1::GetModelRequest>) -> Result<Response<v1::GetModelResponse>, Status> {
        let selector = request.into_inner().model;
        let model = self.model(selector.as_ref()).await.map_err(|refusal| refusal.into_status())?;
        let metadata = metadata(&model, self.limits.max_frame_bytes, &self.devices);
        Ok(Response::new(v1::GetModelResponse { metadata: Some(metadata) }))
    }
}

fn summary(about: &Metadata) -> v1::ModelSummary {
    v1::ModelSummary {
        name: about.name.clone(),
        version: about.version,
        digest: about.digest.clone(),
        summary: about.summary.clone(),
        class_count: about.class_count(),
    }
}

fn metadata(model: &Served, max_frame_bytes: u64, devices: &Devices) -> v1::ModelMetadata {
    let about = &model.metadata;
    v1::ModelMetadata {
        identity: Some(identity(about, model.mode)),
        summary: about.summary.clone(),
        input: Some(v1::TensorInfo {
            name: about.input.name.clone(),
            element_type: dtype::name(about.input.kind),
            shape: about.input.shape.iter().map(|&dimension| input_dimension(dimension, &about.input.shape)).collect(),
        }),
        outputs: about
            .outputs
            .iter()
            .map(|output| v1::TensorInfo {
                name: output.name.clone(),
                element_type: dtype::name(about.input.kind),
                shape: output.shape.iter().map(|&size| v1::DimensionInfo { size, ..Default::default() }).collect(),
            })
            .collect(),
        class_count: about.class_count(),
        labels: about.labels.clone(),
        layers: about
            .layers
            .iter()
            .map(|layer| v1::LayerInfo {
                names: layer.names.clone(),
                shape: layer.shape.clone(),
                spatial: layer.spatial,
            })
            .collect(),
        default_target_layers: about.default_target_layers.clone(),
        default_target_problem: about
            .default_target_problem
            .as_ref()
            .map_or_else(String::new, |problem| format!("{problem}; layers that can be named: {}", about.candidates())),
        rectifier_count: about.guided_operators(),
        unguided_gates: about.unguided_gates.clone(),
        devices: devices.names_of(model),
        device_fallback: devices.fallback.clone().unwrap_or_default(),
        preprocessing: Some(preprocessing(&about.preprocessing)),
        limits: Some(v1::ModelLimits {
            max_batch: model.limits.max_batch,
            max_targets: model.limits.max_targets,
            max_frame_bytes,
            max_frame_pixels: model.limits.frame.max_pixels,
        }),
        reduced_precision: model.reduced_precision().map(|found| v1::ReducedPrecision {
            map_cosine: found.map_cosine,
            logit_difference: found.logit_difference,
        }),
        activation: match about.scores.activation {
            Activation::None => v1::Activation::None,
            Activation::Softmax => v1::Activation::Softmax,
            Activation::Sigmoid => v1::Activation::Sigmoid,
        }
        .into(),
        activation_is_known: about.scores.activation_is_known,
        widened_precision: model.widened_from().map(|kind| v1::WidenedPrecision { saved_in: dtype::name(kind) }),
    }
}

/// A dimension of the input, which is one of `all`.
fn input_dimension(dimension: Dimension, all: &[Dimension]) -> v1::DimensionInfo {
    let variable_of = |dimension: &Dimension| match dimension {
        Dimension::Fixed(_) => None,
        Dimension::Dynamic { sizes, .. } => Some(sizes.variable),
    };
    let (step, variable) = match dimension {
        Dimension::Fixed(_) => (0, String::new()),
        Dimension::Dynamic { sizes, .. } => {
            let together = all.iter().filter(|other| variable_of(other) == Some(sizes.variable)).count() > 1;
            (sizes.step, if together { format!("k{}", sizes.variable) } else { String::new() })
        }
    };
    v1::DimensionInfo {
        size: dimension.example(),
        dynamic: dimension.fixed().is_none(),
        min_size: dimension.smallest(),
        max_size: dimension.largest(),
        step,
        variable,
    }
}

fn preprocessing(description: &Preprocessing) -> v1::Preprocessing {
    v1::Preprocessing {
        resize: match description.resize {
            Some(Resize::Shorter(side)) => vec![side],
            Some(Resize::Exact(size)) => size.to_vec(),
            None => Vec::new(),
        },
        crop: description.crop.map_or_else(Vec::new, |size| size.to_vec()),
        sample_bits: description.sample_bits,
        interpolation: match description.interpolation {
            Interpolation::Nearest => "nearest",
            Interpolation::Bilinear => "bilinear",
            Interpolation::Bicubic => "bicubic",
            Interpolation::Lanczos => "lanczos",
        }
        .to_owned(),
        color: match description.color {
            ColorOrder::Rgb => "rgb",
            ColorOrder::Bgr => "bgr",
            ColorOrder::Gray => "gray",
        }
        .to_owned(),
        mean: description.mean.clone(),
        std: description.std.clone(),
    }
}
