//! Forward kernels of a convolution: oneDNN, a matrix product, Winograd's algorithm, products that skip the input's
//! zeros, or sums in each channel alone.

use tch::Tensor;

use crate::torch::{Call, OperatorError, Value, channels_last};

use super::depthwise::{Depthwise, DepthwiseCall};
use super::epilogue::Epilogue;
use super::gemm::{Gemm, GemmCall};
use super::onednn::{INPUT, Operators};
use super::sparse::{DENSITY_OF_ACTIVATIONS, SparseForward, SparseForwardCall, with_typical_zeros};
use super::winograd::{Winograd, WinogradCall};
use crate::plan::KernelChoice;
use crate::plan::autotune::{Candidate, Chosen, Fetched, Task, autotune, bytes};
use crate::plan::convolution::Activation;
use crate::plan::convolution::Geometry;
use crate::plan::rules::rectifiers::Gate;

/// A weight packed for one kernel.
#[derive(Debug)]
pub(in crate::plan) enum ForwardKernel {
    Direct(Tensor),
    Gemm(Gemm),
    Winograd(Winograd),
    Sparse(SparseForward),
    Depthwise(Depthwise),
}

impl ForwardKernel {
    /// The kernel for a convolution with `weight` and its epilogue, timed on `input`; `before` as for [`autotune`].
    pub fn choose(
        weight: &Tensor,
        geometry: &Geometry,
        input: &Tensor,
        epilogue: &Epilogue<'_>,
        operators: &Operators,
        choice: &KernelChoice,
        before: Option<Chosen<Self>>,
    ) -> Result<Chosen<Self>, OperatorError> {
        let size = input.size();
        let kernels = Self::candidates(weight, geometry, &size, operators);
        let shapes = format_args!("{:?} {:?} {size:?} {geometry:?} {epilogue}", input.f_kind()?, weight.size());
        let task = Task { operator: "a convolution", shapes, choice };
        let input = &channels_last(&with_typical_zeros(input, DENSITY_OF_ACTIVATIONS)?)?;
        autotune(&task, before, kernels, Self::fetched, |kernel| {
            let call = kernel.call(&Value::None, geometry, epilogue.fused_activation(), operators)?;
            Ok(move || Ok(call.run_with(input, epilogue)?.0))
        })
    }

    /// What a run fetches.
    pub fn fetched(&self) -> Fetched {
        let bytes = match self {
            ForwardKernel::Direct(weight) => bytes(weight),
            ForwardKernel::Gemm(gemm) => gemm.size(),
            ForwardKernel::Winograd(winograd) => winograd.size(),
            ForwardKernel::Sparse(sparse) => sparse.size(),
            ForwardKernel::Depthwise(depthwise) => depthwise.size(),
        };
        Fetched { bytes, is_onednn: matches!(self, ForwardKernel::Direct(_)) }
    }

    /// The packed weight, where the sparse backward kernel can read it too.
    pub fn panels(&self) -> Result<Option<Tensor>, OperatorError> {
        match self {
            ForwardKernel::Sparse(sparse) => Ok(Some(sparse.panels())),
            ForwardKernel::Gemm(gemm) => gemm.panels(),
            ForwardKernel::Direct(_) | ForwardKernel::Winograd(_) | ForwardKernel::Depthwise(_) => Ok(None),
        }
    }

    /// Every kernel that may suit.
    pub fn candidates<'a>(
        weight: &'a Tensor,
        geometry: &'a Geometry,
        input: &'a [i64],
        operators: &'a Operators,
    ) -> Vec<Candidate<'a, Self>> {
        let mut kernels =
            vec![Candidate::new(move || Ok(Depthwise::new(weight, geometry)?.map(ForwardKernel::Depthwise)))];
        kernels.extend(Self::dense(weight, geometry, input, operators));
        kernels.push(Candidate::new(move || Ok(SparseForward::new(weight, geometry)?.map(ForwardKernel::Sparse))));
        kernels
    }

    /// The kernels that do not skip zeros.
    pub fn dense<'a>(
        weight: &'a Tensor,
        geometry: &'a Geometry,
        input: &'a [i64],
        operators: &'a Operators,
    ) -> Vec<Candidate<'a, Self>> {
        let direct = move || Ok(Some(ForwardKernel::Direct(operators.pack(weight, geometry, input)?)));
        let gemm = move || Ok(Gemm::new(weight, geometry)?.map(ForwardKernel::Gemm));
        let winograd =
            Winograd::candidates(weight, geometry).into_iter().map(|kernel| kernel.map(ForwardKernel::Winograd));
        [Candidate::new(direct), Candidate::new(gemm)].into_iter().chain(winograd).collect()
    }

    /// The kernel with all of its arguments except the input, which may have any size.
    pub fn call(
        &self,
        bias: &Value,
        geometry: &Geometry,
        activation: Activation,
        operators: &Operators,
    ) -> Result<ForwardCall, OperatorError> {
        Ok(match self {
            ForwardKernel::Direct(weight) => {
                ForwardCall::Direct(operators.convolution(weight, bias, geometry, activation)?)
            }
            ForwardKernel::Gemm(gemm) => ForwardCall::Gemm(gemm.call(bias.tensor(), geometry, activation)?),
            ForwardKernel::Winograd(winograd) => {
                ForwardCall::Winograd(winograd.call(bias.tensor(), geometry, activation)?)
            }
            ForwardKernel::Sparse(sparse) => ForwardCall::Sparse(sparse.call(bias.tensor(), geometry, activation)?),
            ForwardKernel::Depthwise(depthwise) => {
                ForwardCall::Depthwise(depthwise.call(bias.tensor(), geometry, activation)?)
            }
        })
    }
}

/// A kernel with all of its arguments except the input.
#[derive(Debug)]
pub(in crate::plan) enum ForwardCall {
    Direct(Call),
    Gemm(GemmCall),
    Winograd(WinogradCall),
    Sparse(SparseForwardCall),
    Depthwise(DepthwiseCall),
}

impl ForwardCall {
    /// The result of a channels-last input, with the [fused activation](Epilogue::fused_activation) that the call was
    /// made with.
    pub fn run(&self, input: &Tensor) -> Result<Tensor, OperatorError> {
        match self {
            ForwardCall::Direct(call) => call.call([(INPUT, input)]),
            ForwardCall::Gemm(call) => call.run(input),
            ForwardCall::Winograd(call) => call.run(input),
            ForwardCall::Sparse(call) => call.run(input),
            ForwardCall::Depthwise(call) => call.run(input),
        }
    }

    /// The same with the whole epilogue.
    pub fn run_with(&self, input: &Tensor, epilogue: &Epilogue<'_>) -> Result<(Tensor, Option<Gate>), OperatorError> {
        match self {
            ForwardCall::Gemm(call) => call.run_with(input, epilogue),
            ForwardCall::Depthwise(call) => call.run_with(input, epilogue),
            _ => epilogue.apply(self.run(input)?),
        }
    }
}
