//! A model ready to explain: it resolves a method to a plan and runs it forward.

use std::sync::Arc;

use tch::{Device, Tensor};

use crate::model::description::Precision;
use crate::model::{Metadata, Model};
use crate::plan::{Interrupt, KernelChoice, PlanCache, PlanError, PlanSpec};

use super::check::check_method;
use super::enqueued::Enqueued;
use super::forward::Forward;
use super::target_layer::TargetLayer;
use super::{ExplainError, Head, Method, Mode};

/// Plans that an explainer keeps: one for each combination of target layers, maps, mode and input size in use.
const PLANS_KEPT: usize = 16;

/// One model on one device. A single thread owns it.
pub struct Explainer {
    model: Model,
    head: Head,
    device: Device,
    plans: PlanCache,
}

impl Explainer {
    /// Takes a model. Nothing is compiled before the first frame.
    pub fn new(model: Model, device: Device) -> Self {
        Self::choosing(model, device, KernelChoice::default())
    }

    /// As [`Explainer::new`], with another way to choose kernels.
    pub fn choosing(model: Model, device: Device, choice: impl Into<KernelChoice>) -> Self {
        let plans = PlanCache::choosing(PLANS_KEPT, choice.into());
        Explainer { head: Head::of(&model.metadata), model, device, plans }
    }

    /// An explainer of the same model for another thread. It shares the weights and compiles its own plans.
    pub fn share(&self) -> Self {
        self.share_on(self.device)
    }

    /// As [`Explainer::share`], on another device. Weights on a device are shared by its explainers alone.
    pub fn share_on(&self, device: Device) -> Self {
        Explainer { model: self.model.share(), head: self.head.clone(), device, plans: self.plans.sharing_weights() }
    }

    pub fn metadata(&self) -> &Arc<Metadata> {
        &self.model.metadata
    }

    /// Runs the model on `input`, `[N, C, H, W]` of f32.
    ///
    /// # Errors
    /// Those of [`super::check_method`]; [`ExplainError::Output`] when the output is not `[N, classes]`; and those of
    /// the plan: a wrong input shape, out of memory, interrupted.
    pub fn forward(
        &mut self,
        method: &Method,
        input: &Tensor,
        interrupt: &dyn Interrupt,
    ) -> Result<Forward<'_>, ExplainError> {
        Forward::wait_for(self.enqueue(method, input, interrupt)?)
    }

    /// As [`Explainer::forward`], on a device that works asynchronously: nothing is read from it.
    ///
    /// # Errors
    /// As [`Explainer::forward`], except for what only the output shows.
    pub fn enqueue(
        &mut self,
        method: &Method,
        input: &Tensor,
        interrupt: &dyn Interrupt,
    ) -> Result<Enqueued<'_>, ExplainError> {
        let size = input.size();
        let [_, _, height, width] = *size.as_slice() else {
            return Err(ExplainError::Plan(PlanError::InputShape {
                got: size,
                allowed: format!("{:?}", self.model.metadata.input.shape),
            }));
        };
        let (spec, names) = self.resolve(method, [height, width])?;
        let plan = self.plans.get_or_compile(&self.model.graph, &spec)?;
        let pass = plan.forward(input.shallow_clone(), interrupt)?;
        // Sizes may be dynamic, so the shapes of the layers are certain only after the run.
        let layer = |(index, name): (usize, &String)| {
            TargetLayer::new(&self.model.metadata, name, &pass.activations(index).size(), [height, width])
        };
        let layers = names.iter().enumerate().map(layer).collect::<Result<Vec<_>, _>>()?;
        Ok(Enqueued {
            head: self.head.clone(),
            layers,
            needs_plain_reverse: plan.needs_plain_reverse(),
            method: method.clone(),
            size: [height, width],
            pass,
        })
    }

    /// The plan's key, and the names of the target layers: none when no map needs a CAM.
    fn resolve(&self, method: &Method, input_size: [i64; 2]) -> Result<(PlanSpec, Vec<String>), ExplainError> {
        let model = &self.model;
        let description = &model.description;
        let score = self.head.value();
        let mut names = Vec::new();
        let mut targets = Vec::new();
        if method.maps.needs_cam() {
            check_method(&model.metadata, method)?;
            names = if method.target_layers.is_empty() {
                model.metadata.default_target_layers.clone()
            } else {
                method.target_layers.clone()
            };
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
            target_gradients: method.maps.needs_cam(),
            guide_smooth: description.explain.guide_smooth_activations,
            input_size,
            device: self.device,
        };
        Ok((spec, names))
    }
}
