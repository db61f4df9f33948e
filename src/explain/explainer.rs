//! A model made ready to explain: forward, choose classes, reverse, fuse.

use crate::explain::cam::scale;
use std::sync::Arc;

use tch::{Device, Kind, Tensor};

use crate::model::description::Precision;
use crate::model::{Metadata, Model};
use crate::plan::rule::Gradient;
use crate::plan::{Gradients, Interrupt, Pass, PlanCache, PlanSpec, Until};

use super::cam::grad_cam;
use super::cam::layout::Layout;
use super::check::layout_of;
use super::predictions::choose_classes;
use super::{Convention, ExplainError, Method, Mode, Target};

/// Plans that an explainer keeps: a plan for each combination of target layers, maps, mode and input size in use.
const PLANS_KEPT: usize = 16;

/// One model on one device. A single thread owns it.
pub struct Explainer {
    model: Model,
    device: Device,
    plans: PlanCache,
}

/// A target layer, resolved for one method.
#[derive(Debug, Clone)]
struct TargetLayer {
    name: String,
    layout: Layout,
}

impl Explainer {
    /// Takes a model; nothing is compiled before the first frame.
    pub fn new(model: Model, device: Device) -> Self {
        Explainer { model, device, plans: PlanCache::new(PLANS_KEPT) }
    }

    /// Another one of the same model, for another thread. Weights are shared, plans are its own.
    pub fn share(&self) -> Self {
        Explainer { model: self.model.share(), device: self.device, plans: self.plans.sharing_weights() }
    }

    pub fn metadata(&self) -> &Arc<Metadata> {
        &self.model.metadata
    }

    /// Runs the model on `input`, `[N, C, H, W]` of f32.
    ///
    /// # Errors
    /// As [`super::check_method`], and those of the plan: a wrong input shape, out of memory, interrupted.
    pub fn forward(
        &mut self,
        method: &Method,
        input: &Tensor,
        interrupt: &dyn Interrupt,
    ) -> Result<Forward<'_>, ExplainError> {
        let size = input.size();
        let [_, _, height, width] = *size.as_slice() else {
            return Err(ExplainError::Plan(crate::plan::PlanError::InputShape {
                got: size,
                allowed: format!("{:?}", self.model.metadata.input.shape),
            }));
        };
        let (spec, layers) = self.resolve(method, [height, width])?;
        let needs_layers = method.maps.needs_grad_cam();
        let plan = self.plans.get_or_compile(&self.model.graph, &spec)?;
        let pass = plan.forward(input.shallow_clone(), interrupt)?;
        // The shapes of layers are known for sure only now: sizes may be dynamic.
        let mut targets = Vec::with_capacity(layers.len());
        for (index, name) in layers.into_iter().enumerate() {
            if !needs_layers {
                break;
            }
            let layout = layout_of(&self.model.metadata, &name, &pass.activations(index).size())?;
            targets.push(TargetLayer { name, layout });
        }
        let logits = pass.logits().f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?.f_contiguous()?;
        if logits.dim() != 2 {
            return Err(ExplainError::Output { shape: logits.size() });
        }
        Ok(Forward {
            logits,
            layers: targets,
            needs_plain_reverse: plan.needs_plain_reverse(),
            method: method.clone(),
            size: [height, width],
            pass,
        })
    }

    /// The plan's key and the target layers' names.
    fn resolve(&self, method: &Method, input_size: [i64; 2]) -> Result<(PlanSpec, Vec<String>), ExplainError> {
        let model = &self.model;
        let description = &model.description;
        let score = model.graph.score(description.output.logits.as_deref())?;
        let mut names = Vec::new();
        let mut targets = Vec::new();
        if method.maps.needs_grad_cam() {
            names = if method.target_layers.is_empty() {
                description.explain.target_layers.clone()
            } else {
                method.target_layers.clone()
            };
            if names.is_empty() {
                let value = model.graph.default_target(score)?;
                names.push(model.graph.layer_name(value));
            }
            for name in &names {
                targets.push(model.graph.layer(name)?);
            }
        }
        let mode = if description.explain.precision == Precision::Exact { Mode::Exact } else { method.mode };
        let spec = PlanSpec {
            score,
            targets,
            mode,
            input_gradient: method.maps.needs_guided_gradient(),
            target_gradients: method.maps.needs_grad_cam(),
            guide_smooth: description.explain.guide_smooth_activations,
            input_size,
            device: self.device,
        };
        Ok((spec, names))
    }
}

/// A batch after its forward run.
pub struct Forward<'e> {
    logits: Tensor,
    layers: Vec<TargetLayer>,
    needs_plain_reverse: bool,
    method: Method,
    size: [i64; 2],
    pass: Pass<'e>,
}

impl<'e> Forward<'e> {
    /// `[N, classes]`, f32, on the CPU, before softmax.
    pub fn logits(&self) -> &Tensor {
        &self.logits
    }

    /// The logits of one row.
    pub fn row(&self, row: usize) -> Result<Vec<f32>, ExplainError> {
        Ok(Vec::try_from(self.logits.f_get(row as i64)?)?)
    }

    /// The classes that each row's targets mean.
    ///
    /// # Errors
    /// A class that does not exist; logits that are not numbers. The index of the row comes with the error.
    pub fn classes(&self, targets: &[Vec<Target>]) -> Vec<Result<Vec<u32>, ExplainError>> {
        targets
            .iter()
            .enumerate()
            .map(|(row, targets)| {
                let logits = self.row(row)?;
                if !logits.iter().all(|logit| logit.is_finite()) {
                    return Err(ExplainError::NotFinite);
                }
                choose_classes(&logits, targets)
            })
            .collect()
    }

    /// Takes gradients back: for row `n`, one of each of `classes[n]`. Rows may differ in number; one with none takes
    /// no part.
    pub fn reverse(self, classes: &[Vec<u32>], interrupt: &dyn Interrupt) -> Result<Reversed, ExplainError> {
        let rounds = classes.iter().map(Vec::len).max().unwrap_or(0);
        let gradients = if self.method.maps.is_empty() || rounds == 0 {
            Vec::new()
        } else {
            let seeds = (0..rounds).map(|round| self.seed(classes, round)).collect::<Result<Vec<_>, _>>()?;
            self.reverse_rounds(&seeds, interrupt)?
        };
        let activations = (0..self.layers.len()).map(|i| self.pass.activations(i).shallow_clone()).collect();
        Ok(Reversed {
            logits: self.logits,
            layers: self.layers,
            method: self.method,
            size: self.size,
            classes: classes.to_vec(),
            activations,
            gradients,
        })
    }

    /// For each seed what the maps need.
    fn reverse_rounds(&self, seeds: &[Tensor], interrupt: &dyn Interrupt) -> Result<Vec<Gradients>, ExplainError> {
        let maps = self.method.maps;
        let run = |gradient, until| self.pass.reverse_each(seeds, gradient, until, interrupt);
        Ok(match (maps.needs_grad_cam(), maps.needs_guided_gradient()) {
            (true, false) => run(Gradient::Plain, Until::Targets)?,
            (false, _) => run(Gradient::Guided, Until::Input)?,
            (true, true) if !self.needs_plain_reverse => run(Gradient::Guided, Until::Input)?,
            (true, true) => {
                let plain = run(Gradient::Plain, Until::Targets)?;
                let guided = run(Gradient::Guided, Until::Input)?;
                let both = plain.into_iter().zip(guided);
                both.map(|(plain, guided)| Gradients { targets: plain.targets, input: guided.input }).collect()
            }
        })
    }

    /// `∂(Σ_n y[n, c_n])/∂y` for every row's `round`-th class: one 1 a row.
    fn seed(&self, classes: &[Vec<u32>], round: usize) -> Result<Tensor, ExplainError> {
        let [rows, count] = *self.logits.size().as_slice() else {
            return Err(ExplainError::Output { shape: self.logits.size() });
        };
        let mut seed = vec![0f32; (rows * count) as usize];
        for (row, chosen) in classes.iter().enumerate() {
            if let Some(&class) = chosen.get(round) {
                seed[row * count as usize + class as usize] = 1.0;
            }
        }
        let logits = self.pass.logits();
        Ok(Tensor::f_from_slice(&seed)?
            .f_view([rows, count])?
            .f_to_device(logits.device())?
            .f_to_kind(logits.f_kind()?)?)
    }
}

/// A batch after its reverse runs.
pub struct Reversed {
    logits: Tensor,
    layers: Vec<TargetLayer>,
    method: Method,
    size: [i64; 2],
    classes: Vec<Vec<u32>>,
    activations: Vec<Tensor>,
    /// One for each round: the rows' first classes, their second ones, …
    gradients: Vec<Gradients>,
}

/// The maps of one class at one target layer, for one row.
#[derive(Debug)]
pub struct TargetMaps {
    pub class_index: u32,
    /// The class's logit.
    pub score: f32,
    /// Under [`Convention::PytorchGradCam`], all target layers joined by `+`, since their maps are averaged.
    pub target_layer: String,
    /// Grad-CAM is zero everywhere: nothing in the layer speaks for the class.
    pub no_positive_evidence: bool,
    /// Grad-CAM at the layer's own resolution, `[h, w]`; absent when layers of several sizes were averaged.
    pub layer_map: Option<Tensor>,
    /// Grad-CAM at the input's resolution, `[H, W]`.
    pub grad_cam: Option<Tensor>,
    /// The guided gradient, `[C, H, W]`.
    pub guided_backprop: Option<Tensor>,
    /// Guided gradient × Grad-CAM, `[C, H, W]`.
    pub guided_grad_cam: Option<Tensor>,
}

/// Grad-CAM of the whole batch for one round and one result: `[N, h, w]` and `[N, H, W]`.
struct BatchMap {
    target_layer: String,
    layer_map: Option<Tensor>,
    map: Tensor,
}

impl Reversed {
    /// The maps that were asked for, a list a row: class by class, and for each class layer by layer. All tensors are
    /// f32 on the device.
    pub fn fuse(self) -> Result<Vec<Vec<TargetMaps>>, ExplainError> {
        let mut rows: Vec<Vec<TargetMaps>> = self.classes.iter().map(|_| Vec::new()).collect();
        for (round, gradients) in self.gradients.iter().enumerate() {
            let guided = gradients.input.as_ref().map(|g| g.f_to_kind(Kind::Float)).transpose()?;
            let cams = self.grad_cams(gradients)?;
            let results: Vec<Option<BatchMap>> =
                if cams.is_empty() { vec![None] } else { cams.into_iter().map(Some).collect() };
            for result in results {
                self.distribute(round, guided.as_ref(), result.as_ref(), &mut rows)?;
            }
        }
        Ok(rows)
    }

    fn grad_cams(&self, gradients: &Gradients) -> Result<Vec<BatchMap>, ExplainError> {
        let layer_maps = self
            .layers
            .iter()
            .zip(&self.activations)
            .zip(&gradients.targets)
            .map(|((layer, activations), gradient)| grad_cam::grad_cam(activations, gradient, layer.layout))
            .collect::<Result<Vec<_>, _>>()?;
        if layer_maps.is_empty() {
            return Ok(Vec::new());
        }
        match self.method.convention {
            Convention::Captum => self
                .layers
                .iter()
                .zip(layer_maps)
                .map(|(layer, layer_map)| {
                    let map = scale::upsample(&layer_map, self.size)?;
                    Ok(BatchMap { target_layer: layer.name.clone(), layer_map: Some(layer_map), map })
                })
                .collect(),
            Convention::PytorchGradCam => {
                let scaled = layer_maps.iter().map(scale::min_max_scale).collect::<Result<Vec<_>, _>>()?;
                let resized =
                    scaled.iter().map(|map| scale::upsample(map, self.size)).collect::<Result<Vec<_>, _>>()?;
                let mean = Tensor::f_stack(&resized, 0)?.f_mean_dim([0i64].as_slice(), false, None::<Kind>)?;
                let names: Vec<_> = self.layers.iter().map(|layer| layer.name.as_str()).collect();
                let same_size = scaled.len() == 1;
                Ok(vec![BatchMap {
                    target_layer: names.join("+"),
                    layer_map: if same_size { scaled.into_iter().next() } else { None },
                    map: scale::min_max_scale(&mean)?,
                }])
            }
        }
    }

    fn distribute(
        &self,
        round: usize,
        guided: Option<&Tensor>,
        cam: Option<&BatchMap>,
        rows: &mut [Vec<TargetMaps>],
    ) -> Result<(), ExplainError> {
        let maps = self.method.maps;
        let fused = match (guided, cam) {
            (Some(guided), Some(cam)) if maps.guided_grad_cam => Some(scale::fuse(guided, &cam.map)?),
            _ => None,
        };
        let highest: Vec<f32> = match cam {
            Some(cam) => Vec::try_from(cam.map.f_amax([1i64, 2].as_slice(), false)?.f_to_device(Device::Cpu)?)?,
            None => Vec::new(),
        };
        let row_of = |tensor: Option<&Tensor>, row: usize| tensor.map(|t| t.f_get(row as i64)).transpose();
        for (row, chosen) in self.classes.iter().enumerate() {
            let Some(&class_index) = chosen.get(round) else { continue };
            rows[row].push(TargetMaps {
                class_index,
                score: self.logits.f_double_value(&[row as i64, i64::from(class_index)])? as f32,
                target_layer: cam.map(|cam| cam.target_layer.clone()).unwrap_or_default(),
                no_positive_evidence: highest.get(row).is_some_and(|&value| value == 0.0),
                layer_map: row_of(cam.filter(|_| maps.grad_cam).and_then(|cam| cam.layer_map.as_ref()), row)?,
                grad_cam: row_of(cam.filter(|_| maps.grad_cam).map(|cam| &cam.map), row)?,
                guided_backprop: row_of(guided.filter(|_| maps.guided_backprop), row)?,
                guided_grad_cam: row_of(fused.as_ref(), row)?,
            });
        }
        Ok(())
    }
}
