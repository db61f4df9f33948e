//! The CUDA backend: convolutions with what follows them, channels-last, as cuDNN's fused operators or as a convolution
//! and one kernel of camlens's own.

mod convolution;
mod weight;

use std::sync::Arc;

use tch::{Device, Kind};

use crate::model::node::{Argument, Node};
use crate::plan::backend::Backend;
use crate::plan::convolution::{Candidate, FusedNode, fuse_convolutions};
use crate::plan::device_tensors::Constants;
use crate::plan::draft::Draft;
use crate::plan::rule::Rule;
use crate::plan::{KernelChoice, PlanError};
use crate::torch::{OperatorError, Value, window_may_miss};

use convolution::ConvolutionRule;
use weight::Weight;

/// Convolutions with constant weights, in the dtypes that cuDNN computes with.
pub struct CudaBackend {
    device: Device,
    choice: KernelChoice,
    weights: Vec<Arc<Weight>>,
}

impl CudaBackend {
    pub fn new(device: Device, choice: KernelChoice) -> Self {
        CudaBackend { device, choice, weights: Vec::new() }
    }
}

impl Backend for CudaBackend {
    fn rewrite(&self, draft: &mut Draft) -> Result<(), PlanError> {
        fuse_convolutions(draft, |&Candidate { kind, input, weight, padding, dilation }| {
            // The default rule writes the padding out where a window can lie in it alone.
            let may_miss = window_may_miss(&input[2..], &weight[2..], &padding, &dilation);
            matches!(kind, Kind::Float | Kind::Half | Kind::BFloat16) && !may_miss
        })
    }

    fn claim(
        &mut self,
        node: &mut Node,
        constants: &mut Constants<'_>,
    ) -> Result<Option<Box<dyn Rule>>, OperatorError> {
        let Some(fused) = FusedNode::read(node)? else { return Ok(None) };
        let Some(constant) = constants.constant(fused.weight) else { return Ok(None) };
        node.arguments[fused.weight_position] = Argument::Literal(Value::None);
        let identity = constant.identity();
        let weight = match self.weights.iter().find(|weight| weight.is_of(&identity)) {
            Some(known) => Arc::clone(known),
            None => {
                let weight = Arc::new(Weight::new(constant, self.device)?);
                self.weights.push(Arc::clone(&weight));
                weight
            }
        };
        Ok(Some(Box::new(ConvolutionRule::new(fused, weight, self.choice.clone())?)))
    }

    fn drop_unused(&mut self) {
        self.weights.retain(|weight| Arc::strong_count(weight) > 1);
    }
}
